"""Memory for what is read from end to end every token: on huge pages, where the processor finds more of it at once.

A page of 4 KB costs a look-up for each, and hardware stops prefetching at its end; of 2 MB there are 512 times fewer.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

__all__ = ["huge_zeros"]

PAGE = 1 << 21


def huge_zeros(nbytes: int) -> np.ndarray:
    """Zeros, uint8 (nbytes,), from an address that 64 divides. Pages are taken when they are first touched."""
    if nbytes < PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        space = np.zeros(nbytes + 64, np.uint8)
        start = -space.__array_interface__["data"][0] % 64
        return space[start : start + nbytes]
    memory = mmap.mmap(-1, nbytes + PAGE)  # anonymous: zeros; it goes when the last array on it goes
    space = np.frombuffer(memory, np.uint8)
    start = -space.__array_interface__["data"][0] % PAGE
    with contextlib.suppress(OSError):  # a kernel without them: the memory is as good as any
        memory.madvise(mmap.MADV_HUGEPAGE)
    return space[start : start + nbytes]
