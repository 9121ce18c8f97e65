"""Memory for what is read from end to end every token: on huge pages, where the processor finds more of it at once.

A page of 4 KB costs a look-up for each, and hardware stops prefetching at its end; of 2 MB there are 512 times fewer.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

__all__ = ["FileMap", "Slabs", "give_back", "huge_zeros"]

PAGE = 1 << 21
SLAB = 64 << 20


def huge_zeros(nbytes: int) -> np.ndarray:
    """Zeros, uint8 (nbytes,), from an address that 64 divides. Pages are taken when they are first touched; a fork gets
    a copy. MemoryError where there is no room.
    """
    if nbytes < PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        space = np.zeros(nbytes + 64, np.uint8)
        start = -space.__array_interface__["data"][0] % 64
        return space[start : start + nbytes]
    try:  # zeros; they go when the last array on them goes. Shared memory, the default, would get no huge pages
        memory = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {nbytes:,} bytes: {error}") from error
    space = np.frombuffer(memory, np.uint8)
    start = -space.__array_interface__["data"][0] % PAGE
    with contextlib.suppress(OSError):  # a kernel without them: the memory is as good as any
        memory.madvise(mmap.MADV_HUGEPAGE)
    return space[start : start + nbytes]


class FileMap(mmap.mmap):
    """A file's bytes as memory that may only be read. Pages come when they are touched, and can be given back."""

    def __new__(cls, file: int, length: int) -> FileMap:
        return super().__new__(cls, file, length, access=mmap.ACCESS_READ)


def give_back(array: np.ndarray) -> bool:
    """Tell the system that an array's pages are not needed for now; only of an array on a `FileMap`, whose bytes come
    again from the file when they are touched. Whether it is one.
    """
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    file = owner.base.obj if isinstance(owner.base, memoryview) else owner.base
    if not isinstance(file, FileMap):
        return False
    if hasattr(file, "madvise") and array.size and array.flags.c_contiguous:
        start = array.__array_interface__["data"][0] - np.frombuffer(file, np.uint8).__array_interface__["data"][0]
        first = start // mmap.PAGESIZE * mmap.PAGESIZE  # neighbours on the same pages only come again
        file.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)
    return True


class Slabs:
    """Hands out arrays side by side in pieces of 64 MB on huge pages: the many matrices of a quantized model, of which
    each is too small for such a page of its own, lie as they are read. A piece goes with the last array in it.

    total  about how many bytes will be asked for; where that is less than a page, arrays are NumPy's own. One of more
           than half a piece has memory to itself.
    """

    def __init__(self, total: int):
        self._slab, self._left = min(total + total // 64, SLAB), np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new C-contiguous array, from an address that 64 divides but for NumPy's own."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        step = -(-size // 64) * 64
        if self._slab < PAGE or size == 0:
            return np.empty(shape, dtype)
        if step > self._slab // 2:
            return huge_zeros(size).view(dtype).reshape(shape)
        if step > len(self._left):
            self._left = huge_zeros(self._slab)
        out, self._left = self._left[:size], self._left[step:]
        return out.view(dtype).reshape(shape)
