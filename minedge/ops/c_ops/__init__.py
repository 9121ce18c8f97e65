"""The C tier: kernels of minedge._kernels behind checks. Importable without the extension; then `available()` is False.

`load(isa)` gives the ops bound to one instruction set. `c_ops.rms_norm_forward` and the like are those of `isa()`, the
best one that this processor has, which MINEDGE_ISA can lower. The number of threads changes no bit of any result.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from minedge.errors import BackendError, MinedgeError, UsageError
from minedge.ops.c_ops import native
from minedge.ops.registry import OPS

__all__ = ["available", "isa", "isas", "load", "set_isa", "set_threads", "threads", "why_not"]

FILES = (
    "layers", "attention", "attention_decode", "loss", "optim", "noise", "int4", "q8", "nf4", "half", "masks", "sparse",
)  # fmt: skip
_current: list[int] = []  # index of the instruction set in use, decided at first need


def available() -> bool:
    """True where the compiled module loads."""
    return native.lib is not None


def why_not() -> str:
    """Why `available()` is False; "" where it is True."""
    return native.reason


def isas() -> list[tuple[str, bool]]:
    """(name, whether this processor runs it) of every instruction set in the compiled module, the plainest first."""
    if not available():
        return []
    lib = native.lib
    names = [native.ffi.string(lib.me_isa_name(i)).decode() for i in range(lib.me_isa_count())]
    return [(name, bool(lib.me_isa_supported(i))) for i, name in enumerate(names)]


def _index(name: str) -> int:
    if not available():
        raise RuntimeError(why_not())
    table = isas()
    for i, (known, supported) in enumerate(table):
        if known == name and supported:
            return i
        if known == name:
            raise BackendError(f"isa: this processor does not run {name!r}")
    raise UsageError(f"isa: expected one of {', '.join(n for n, ok in table if ok)}, got {name!r}")


def _selected() -> int:
    if not _current:
        usable = [i for i, (_, ok) in enumerate(isas()) if ok]
        wanted = os.environ.get("MINEDGE_ISA")
        try:
            _current.append(_index(wanted) if wanted else usable[-1])
        except MinedgeError as error:
            raise type(error)(f"MINEDGE_ISA: {str(error).partition(': ')[2]}") from None
    return _current[0]


def isa() -> str:
    """Name of the instruction set in use."""
    return isas()[_selected()][0]


def set_isa(name: str) -> None:
    """Use instruction set `name` from now on. UsageError for one that does not exist, BackendError for one that does
    not run here.
    """
    _current[:] = [_index(name)]


def threads() -> int:
    """How many threads a kernel may use, the caller included."""
    return native.lib.me_get_threads() if available() else 1


def set_threads(n: int) -> None:
    """Use up to `n` threads, 1..256, from now on, in the whole process."""
    if not isinstance(n, int) or not 1 <= n <= 256:
        raise ValueError(f"threads: expected a number in 1..256, got {n!r}")
    if available():
        native.lib.me_set_threads(n)


@functools.cache
def _load(index: int) -> MappingProxyType[str, Callable[..., Any]]:
    table = {}
    for file in FILES:
        for name, function in importlib.import_module(f"minedge.ops.c_ops.{file}").OPS.items():
            table[name] = functools.partial(function, index)
    return MappingProxyType(table)


def load(isa: str | None = None) -> dict[str, Callable[..., Any]]:
    """Op name -> callable, bound to `isa` (None: the one in use now). RuntimeError without the extension."""
    return dict(_load(_index(isa) if isa is not None else _selected() if available() else _index("scalar")))


def __getattr__(name: str) -> Callable[..., Any]:
    """The op `name` for the instruction set in use."""
    if name in OPS and available():
        return _load(_selected())[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if available():
    set_threads(native.threads_wanted())
