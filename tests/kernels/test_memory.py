"""No kernel reads or writes one byte outside its arrays, and each writes every element of its outputs."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from minedge.ops import c_ops
from minedge.ops.registry import OPS
from tests.kernels.cases import CASES, ISAS, bits_of, outputs
from tests.kernels.guarded import GuardedNumpy, guarded_copy
from tests.python import PYTHON

FILES = c_ops.FILES
SIZES = [*range(1, 35), 63, 64, 65, 100, 127, 128, 129, 300]


def test_every_op_has_a_case():
    assert set(CASES) == {op for op, tiers in OPS.items() if tiers["c"] != "numpy"}


def _run(name: str, isa: str, n: int, at_end: bool, poison: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    ops = c_ops.load(isa)
    args = guarded_copy(CASES[name](np.random.default_rng(n), n), at_end)
    with monkeypatch.context() as patch:
        for file in FILES:
            patch.setattr(importlib.import_module(f"minedge.ops.c_ops.{file}"), "np", GuardedNumpy(at_end, poison))
        return bits_of(outputs(name, ops, args))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_stays_inside_and_writes_everything(name, isa, monkeypatch):
    for n in SIZES:
        at_end = _run(name, isa, n, True, 0xFF, monkeypatch)  # 0xFF...: NaN in every float type
        at_start = _run(name, isa, n, False, 0x3C, monkeypatch)
        assert at_end == at_start, f"n = {n}: an output was not written, or depends on where its arrays lie"


def test_the_guard_bites():
    """A read past the end must kill the process, or this file proves nothing."""
    import subprocess

    code = (
        "import numpy as np, ctypes\nfrom tests.kernels.guarded import guarded\n"
        "a = guarded(5, np.float32, True, 0)\nprint('alive', flush=True)\nctypes.string_at(a.ctypes.data, 21)"
    )
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "alive\n" and done.returncode != 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", (1, 3, 5))
def test_a_mask_that_contradicts_its_values_reads_nothing_outside(isa, rows):
    """More bits than values, and starts anywhere: the result means nothing, but every read stays inside the arrays."""
    ops, rng = c_ops.load(isa), np.random.default_rng(rows)
    for kept in (0, 1, 7, 15, 16, 17, 63, 64, 65, 200):
        starts = rng.integers(-(2**62), 2**62, 10)
        starts[0], starts[-1] = 0, kept
        for dtype in (np.float32, np.float16):
            x, dout = np.ones((rows, 72), np.float32), np.ones((rows, 9), np.float32)
            weight = (np.full(9 * 9, 255, np.uint8), np.ones(kept, dtype), starts)
            x, dout, *weight = guarded_copy((x, dout, *weight), at_end=True)
            assert ops["sparse_linear_forward"](x, *weight)[0].shape == (rows, 9)
            assert ops["sparse_linear_backward"](dout, tuple(weight)).shape == (rows, 72)
