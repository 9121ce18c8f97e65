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
