"""Memory on huge pages: zeros of its own, aligned, on huge pages where the system has them."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import numpy as np
import pytest

from minedge.ops.memory import PAGE, SLAB, Slabs, huge_zeros

LINUX_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mapping_of(array: np.ndarray) -> str:
    """The entry of /proc/self/smaps in which the array's first byte lies."""
    at = array.__array_interface__["data"][0]
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        low, high = (int(x, 16) for x in entry.split(maxsplit=1)[0].split("-"))
        if low <= at < high:
            return entry
    raise AssertionError("not mapped")


@pytest.mark.parametrize("nbytes", [0, 1, 1000, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 17])
def test_zeros_aligned_writable_of_that_size(nbytes):
    space = huge_zeros(nbytes)
    assert space.shape == (nbytes,) and space.dtype == np.uint8 and not space.any()
    assert space.__array_interface__["data"][0] % 64 == 0 or nbytes == 0
    space[:] = 7
    assert not huge_zeros(nbytes).any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("nbytes", [PAGE // 2, 4 * PAGE])
def test_a_fork_writes_to_its_own_copy(nbytes):
    space = huge_zeros(nbytes)
    child = os.fork()
    if child == 0:
        space[:] = 7
        os._exit(int(space[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not space.any()


@pytest.mark.skipif(not LINUX_THP.exists(), reason="needs Linux with transparent huge pages")
def test_touched_memory_lies_on_huge_pages_where_the_system_gives_them():
    if "[never]" in LINUX_THP.read_text():
        pytest.skip("this system gives no huge pages")
    space = huge_zeros(8 * PAGE)
    space[:] = 1
    entry = mapping_of(space)
    assert re.search(r"VmFlags:.*\bhg\b", entry), entry
    assert " rw-p " in entry.splitlines()[0], entry
    huge = re.search(r"AnonHugePages:\s+(\d+) kB", entry)
    assert huge and int(huge[1]) > 0, entry  # the system may be short of some, not of all


def test_too_much_is_a_memory_error():
    for nbytes in (1 << 62, (1 << 63) - PAGE, 1 << 64):
        with pytest.raises(MemoryError):
            huge_zeros(nbytes)


def test_slabs_hand_out_arrays_that_do_not_overlap():
    slabs = Slabs(3 * SLAB)
    shapes = [
        ((1000, 333), "u1"),
        ((7,), "f2"),
        ((0, 5), "u1"),
        ((4096, 4096), "u1"),
        ((SLAB,), "u1"),
        ((512, 999), "f2"),
    ] * 4
    arrays = [slabs.empty(shape, np.dtype(dtype)) for shape, dtype in shapes]
    for i, array in enumerate(arrays):
        array.view(np.uint8)[...] = i
    for i, (array, (shape, dtype)) in enumerate(zip(arrays, shapes, strict=True)):
        assert array.shape == shape and array.dtype == dtype and (array.view(np.uint8) == i).all()
        assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
    del arrays, array, slabs
    gc.collect()
