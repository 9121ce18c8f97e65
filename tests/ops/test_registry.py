"""Every tier provides exactly what the table says: no op missing, no fallback that the table does not name."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
from tiers import EXPECTED

import minedge.ops
from minedge.errors import BackendError
from minedge.ops.registry import OPS, TIERS


@pytest.mark.parametrize("backend", EXPECTED)
def test_tier_provides_what_the_table_says(backend):
    ops = minedge.ops.get(backend)
    tier = backend.partition(":")[0]
    assert ops.name == tier
    for op, tiers in OPS.items():
        assert ops.origin[op] == tiers[tier], f"{backend}: {op} is {ops.origin[op]}, the table says {tiers[tier]}"
    assert set(ops.origin) == set(OPS)


@pytest.mark.parametrize("backend", EXPECTED)
def test_no_op_is_the_specification_in_disguise(backend):
    """A tier that calls itself native must not hand out NumPy's function under its own name."""
    ops, reference = minedge.ops.get(backend), minedge.ops.get("numpy")
    if ops.name == "numpy":
        return
    for op, origin in ops.origin.items():
        same = getattr(ops, op) is getattr(reference, op)
        assert same == (origin == "numpy"), f"{backend}: {op} claims to be {origin!r}"


@pytest.mark.parametrize("backend", EXPECTED)
def test_signatures_agree_with_the_specification(backend):
    ops, reference = minedge.ops.get(backend), minedge.ops.get("numpy")
    for op in OPS:
        got = [(p.name, p.default) for p in inspect.signature(getattr(ops, op)).parameters.values()]
        want = [(p.name, p.default) for p in inspect.signature(getattr(reference, op)).parameters.values()]
        assert got == want, f"{backend}: {op}{inspect.signature(getattr(ops, op))}"


def test_table_names_every_tier():
    assert all(set(tiers) == set(TIERS) for tiers in OPS.values())
    assert all(tiers["numpy"] == "native" for tiers in OPS.values())


def test_unknown_backend_is_refused_with_the_nearest_name():
    with pytest.raises(BackendError, match="numba"):
        minedge.ops.get("nunba")


def test_unknown_op_is_an_attribute_error_with_the_nearest_name():
    with pytest.raises(AttributeError, match="rms_norm_forward"):
        minedge.ops.get("numpy").rms_norm_foward  # noqa: B018


def test_importing_the_package_loads_no_numba():
    code = "import sys, minedge, minedge.ops; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert out.stdout.strip() == "False"


def test_asking_for_numba_compiles_nothing_yet():
    code = (
        "import minedge.ops; minedge.ops.get('numba'); from minedge.ops.numba_ops import runtime, layers, exp_kernels\n"
        "kernels = [k for m in (layers, exp_kernels) for k in vars(m).values() if isinstance(k, runtime.Kernel)]\n"
        "print(len(kernels) > 10, any(k._compiled for k in kernels))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert out.stdout.split() == ["True", "False"]
