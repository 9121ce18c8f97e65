"""Backends: one set of op names in three tiers, numpy (the specification), numba and c.

    ops = minedge.ops.get("c")          # or "numpy", "numba", "c:scalar", "c:avx2", "c:avx512", "c:neon";
                                        # None: the default
    out, cache = ops.rms_norm_forward(x, weight, 1e-5)

The default is, in turn: the innermost `use_backend`, the environment variable MINEDGE_BACKEND, else c where its
extension was built, else numba, else numpy. Asking for a backend that is not available raises `BackendError`; nothing
falls back in silence.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from minedge.config import did_you_mean
from minedge.errors import BackendError, UsageError
from minedge.ops.registry import OPS, TIERS

__all__ = ["OPS", "TIERS", "Ops", "available", "default_backend", "get", "use_backend"]

_NAMES = ("numpy", "numba", "c", "c:scalar", "c:avx2", "c:avx512", "c:neon")
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("minedge_backend", default=None)


class Ops:
    """The ops of one tier as attributes. `name` is the tier, `isa` the instruction set ("" outside c), `spec` what
    was asked for.

    `origin[op]` says where each op came from: "native", "blas" or "numpy", as in `registry.OPS`.
    """

    def __init__(self, name: str, isa: str, table: dict[str, Callable[..., Any]], origin: dict[str, str]):
        self.name, self.isa = name, isa
        self.spec = f"{name}:{isa}" if isa else name
        self.origin = origin
        for op, function in table.items():
            setattr(self, op, function)

    def __getattr__(self, op: str) -> Callable[..., Any]:  # only reached for names that are not there
        raise AttributeError(f"backend {self.__dict__.get('spec')!r} has no op {op!r}{did_you_mean(op, list(OPS))}")

    def __repr__(self) -> str:
        return f"Ops({self.spec!r})"

    def __reduce__(self) -> tuple:
        return get, (self.spec,)


@functools.cache
def _load(spec: str) -> Ops:
    tier, _, isa = spec.partition(":")
    reference = importlib.import_module("minedge.ops.numpy_ops")
    if tier == "c":
        try:
            c_ops = importlib.import_module("minedge.ops.c_ops")
        except UsageError as error:  # MINEDGE_THREADS
            raise BackendError(f"backend {spec!r} is not available here: {error}") from None
        if not c_ops.available():
            raise BackendError(f"backend 'c' is not available here: {c_ops.why_not()}")
        try:
            own = c_ops.load(isa or None)
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"backend {spec!r} is not available here: {error}") from None
        isa = isa or c_ops.isa()
    elif tier == "numba":
        try:
            module = importlib.import_module("minedge.ops.numba_ops")
        except ImportError as error:
            raise BackendError(f"backend 'numba' is not available here: {error}") from None
        own = {op: getattr(module, op) for op in OPS if hasattr(module, op)}
    else:
        own = {op: getattr(reference, op) for op in OPS}
    table, origin = {}, {}
    for op, tiers in OPS.items():
        if op in own:
            table[op], origin[op] = own[op], "native" if tiers[tier] == "numpy" else tiers[tier]
        elif tiers[tier] == "numpy":
            table[op], origin[op] = getattr(reference, op), "numpy"
        else:
            raise BackendError(f"backend {spec!r}: op {op!r} is missing and the table allows no fallback")
    return Ops(tier, isa, table, origin)


def available() -> dict[str, str]:
    """Backend name -> "" where it can be used here, else the reason why not."""
    out = {}
    for name in _NAMES:
        try:
            _load(name)
            out[name] = ""
        except BackendError as error:
            out[name] = str(error)
    return out


def get(backend: str | Ops | None = None) -> Ops:
    """The ops of `backend`, or of the default. Raises `BackendError` for an unknown or unavailable one."""
    if isinstance(backend, Ops):
        return backend
    name = backend if backend is not None else default_backend()
    if name not in _NAMES:
        raise BackendError(
            f"backend: expected one of {', '.join(_NAMES)}, got {name!r}{did_you_mean(str(name), list(_NAMES))}"
        )
    return _load(name)


def default_backend() -> str:
    """Name of the backend in force where a model names none."""
    return _chosen.get() or os.environ.get("MINEDGE_BACKEND") or _best()


@functools.lru_cache(maxsize=1)
def _best() -> str:
    c_ops = importlib.import_module("minedge.ops.c_ops")
    if c_ops.available():
        return "c"
    best = "numba" if importlib.util.find_spec("numba") else "numpy"
    warnings.warn(
        f"minedge runs on {best}: its C kernels are not available ({c_ops.why_not()}). "
        "Results are the same up to rounding, speed is lower; `minedge doctor` says more.",
        RuntimeWarning,
        stacklevel=3,
    )
    return best


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[Ops]:
    """Make `name` the default inside the `with` block (this thread or task only)."""
    ops = get(name)
    token = _chosen.set(name)
    try:
        yield ops
    finally:
        _chosen.reset(token)
