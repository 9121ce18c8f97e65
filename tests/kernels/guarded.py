"""Memory with a forbidden page right before and right behind: one byte too far is a segmentation fault."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

__all__ = ["GuardedNumpy", "guarded", "guarded_copy"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PROT_NONE = 0


def guarded(shape: Any, dtype: Any, at_end: bool, poison: int) -> np.ndarray:
    """An array that ends (at_end) or begins at a forbidden page, every byte set to `poison`."""
    dtype = np.dtype(dtype)
    shape = (int(shape),) if np.ndim(shape) == 0 else tuple(map(int, shape))
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    page = mmap.PAGESIZE
    inside = max(1, -(-nbytes // page)) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for where in (base, base + page + inside):
        if _libc.mprotect(where, page, PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (inside - nbytes if at_end else 0)
    flat = np.frombuffer(memory, np.uint8, nbytes, offset)  # keeps the mapping alive
    flat[:] = poison
    return flat.view(dtype).reshape(shape)


def guarded_copy(value: Any, at_end: bool) -> Any:
    """Nested tuples with every array moved next to a forbidden page."""
    if isinstance(value, tuple):
        return tuple(guarded_copy(item, at_end) for item in value)
    if not isinstance(value, np.ndarray):
        return value
    copy = guarded(value.shape, value.dtype, at_end, 0)
    copy[...] = value
    return copy


class GuardedNumpy:
    """Stands in for the module `numpy` inside c_ops: its arrays lie next to a forbidden page, full of `poison`."""

    def __init__(self, at_end: bool, poison: int):
        self.at_end, self.poison = at_end, poison

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = np.float64) -> np.ndarray:
        return guarded(shape, dtype, self.at_end, self.poison)

    def zeros(self, shape: Any, dtype: Any = np.float64) -> np.ndarray:
        return guarded(shape, dtype, self.at_end, 0)
