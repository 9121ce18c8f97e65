"""Every op of every tier against an independent float64 formula, within a derived bound; and forward of one tier,
backward of another.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_checks import CHECKS, Cross
from tiers import EXPECTED, PAIRS

import minedge.ops
from minedge.ops.registry import OPS

WITH_BACKWARD = [name for name, check in CHECKS.items() if any(op.endswith("_backward") for op in check.ops)]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("backend", EXPECTED)
@given(data=st.data())
def test_op_stays_within_the_derived_bound(backend, name, data):
    check = CHECKS[name]
    check.run(minedge.ops.get(backend), **{key: data.draw(strategy, key) for key, strategy in check.draw.items()})


@pytest.mark.parametrize("name", WITH_BACKWARD)
@pytest.mark.parametrize("pair", PAIRS, ids="->".join)
@given(data=st.data())
def test_backward_accepts_the_cache_of_another_tier(pair, name, data):
    check, (forward, backward) = CHECKS[name], pair
    ops = Cross(minedge.ops.get(forward), minedge.ops.get(backward))
    check.run(ops, **{key: data.draw(strategy, key) for key, strategy in check.draw.items()})


def test_every_op_of_the_table_has_a_check():
    covered = {op for check in CHECKS.values() for op in check.ops}
    assert covered == set(OPS)
