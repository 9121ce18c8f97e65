"""Reuse freed memory between training steps instead of handing it back to the system and asking for it again.

A step frees and makes the same large arrays every time. glibc maps each array above 32 MB on its own and unmaps it
when it is freed, so the system clears the same pages again and again: a third of a step's time on (6 layers x 384,
batch 64 x 256), with the same peak memory (9.7 s against 6.9 s and 3.03 against 3.05 GB on two EPYC cores,
2026-11-23). While the block runs, memory stays with the process. Whoever has set glibc's own variables has decided
already, and is left alone; so do the tests that count what minedge holds rather than what glibc keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 * 1024, 65536


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let glibc keep what is freed inside the block, and give it back at the end. Does nothing on other C libraries,
    nor where the environment sets glibc's thresholds.
    """
    if any(name in os.environ for name in _CHOSEN):
        yield
        return
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, _DEFAULT_MMAPS)
        mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM)
        malloc_trim(0)
