"""How a Numba kernel is declared, compiled, checked and spread over threads.

A kernel is a plain Python function in this package with one declared signature. It is compiled at its first call,
never at import, for exactly that signature: a second one (for read-only weights, say) would double the compilation
time for the same machine code. The result is cached on disk by Numba, so a machine pays once.

Threads are ours: a kernel whose first two arguments are `start, stop` works on that range of rows without the GIL,
and `kernel.rows` gives each thread a range. Every row is computed in the same order whoever computes it, so the
number of threads changes no bit. Numba's own parallel loops would need a process-wide threading layer (the portable
one is not thread-safe), twice the compilation time, and about 50 microseconds a call even for one row.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minedge.errors import UsageError

__all__ = [
    "Kernel",
    "as_float32",
    "as_int64",
    "bits_to_float",
    "float_to_bits",
    "kernel",
    "same_shape",
    "set_threads",
    "threads",
    "writable_float32",
]

_intrinsic: Any = intrinsic  # its own types describe the function before it is decorated
_SCALARS: dict[str, Any] = {
    "f": types.float32,
    "d": types.float64,
    "i": types.int64,
    "j": types.int32,
    "c": types.int8,
    "b": types.uint8,
    "h": types.uint16,
    "u": types.uint32,
    "q": types.uint64,
}
WORTH_A_THREAD = 200_000  # elementary operations; below it, waking a thread costs more than it saves


def _type(code: str) -> types.Type:
    """'i' an int64; 'f2' a float32 array with two axes, C-contiguous, only read; 'f2!' one that is written."""
    if len(code) == 1:
        return _SCALARS[code]
    return types.Array(_SCALARS[code[0]], int(code[1]), "C", readonly=not code.endswith("!"))


class Kernel:
    """A function compiled by Numba for one signature, at its first call."""

    def __init__(self, function: Callable[..., Any], signature: str):
        self._function, self._signature = function, signature
        self._compiled: Callable[..., Any] | None = None
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def compile(self) -> Callable[..., Any]:
        """The machine code, made now or taken from the cache. Exact float32: no fast-math, no fused multiply-add."""
        if self._compiled is None:
            signature = tuple(_type(code) for code in self._signature.split())
            options: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": False, "error_model": "numpy"}
            self._compiled = numba.njit(signature, **options)(self._function)
        return self._compiled

    def __call__(self, *args: Any) -> Any:
        return (self._compiled or self.compile())(*args)

    def rows(self, n: int, cost: int, *args: Any) -> None:
        """Call the kernel with (start, stop, *args) over 0 .. n, in parts where `cost` operations are worth it."""
        call = self._compiled or self.compile()
        parts = min(threads(), n, 1 + cost // WORTH_A_THREAD)
        if parts <= 1:
            call(0, n, *args)
            return
        edges = [n * part // parts for part in range(parts + 1)]
        pool = _pool()
        others = [pool.submit(call, edges[part], edges[part + 1], *args) for part in range(1, parts)]
        call(0, edges[1], *args)
        for other in others:
            other.result()


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel: `@kernel("i i f2 f2!")`, see `_type` for the codes."""
    return lambda function: Kernel(function, signature)


@_intrinsic
def bits_to_float(typing_context, bits):
    """The float32 with these 32 bits (inside kernels)."""
    return types.float32(types.int32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.FloatType())


@_intrinsic
def float_to_bits(typing_context, number):
    """The 32 bits of a float32 (inside kernels)."""
    return types.int32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.IntType(32))


_threads: int | None = None
_executor: concurrent.futures.ThreadPoolExecutor | None = None
_guard = threading.Lock()


def threads() -> int:
    """Threads in use: MINEDGE_THREADS, else the CPUs this process may run on. UsageError for nonsense."""
    global _threads
    if _threads is None:
        text = os.environ.get("MINEDGE_THREADS", "")
        if text and not (text.isascii() and text.isdigit() and 1 <= int(text) <= 256):
            raise UsageError(f"MINEDGE_THREADS: expected a number in 1..256, got {text!r}")
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _threads = int(text) if text else allowed
    return _threads


def set_threads(n: int) -> None:
    """Use `n` threads from now on."""
    global _threads, _executor
    if n < 1:
        raise ValueError(f"n: expected at least one thread, got {n}")
    with _guard:
        _threads, _executor = n, None


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    global _executor
    with _guard:
        if _executor is None:
            _executor = concurrent.futures.ThreadPoolExecutor(max_workers=threads(), thread_name_prefix="minedge")
        return _executor


def _after_fork() -> None:
    """A child process has none of its parent's threads: it starts its own pool, with a lock that nobody holds."""
    global _executor, _guard
    _executor, _guard = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def as_float32(name: str, array: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """`array` as C-contiguous float32, copied only where it is not; reshaped where `shape` is given."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: backend numba works on float32 arrays, got {got}; use backend numpy for float64")
    out = np.require(array, requirements=["C", "A"])
    return out if shape is None else out.reshape(shape)


def writable_float32(name: str, array: Any) -> np.ndarray:
    """`array` flattened for a kernel that writes to it; a copy would lose the result, so nothing is converted."""
    as_float32(name, array)
    if not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
        raise ValueError(f"{name}: changed in place, so it must be C-contiguous and writable; pass a writable copy")
    return array.reshape(-1)


def as_int64(name: str, array: Any, limit: int) -> np.ndarray:
    """Indices as flat int64, each within [-limit, limit) as NumPy has it: a kernel does not check."""
    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise IndexError(f"{name}: expected integers, got {array.dtype}")
    flat = np.ascontiguousarray(array, dtype=np.int64).reshape(-1)
    if flat.size and (flat.min() < -limit or flat.max() >= limit):
        raise IndexError(f"{name}: expected values below {limit}, got {flat.min()} .. {flat.max()}")
    return flat


def same_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Kernels trust shapes, so a wrong one stops here."""
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
