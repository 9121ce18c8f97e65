"""`tier_ops`: every backend that is here, and every one that MINEDGE_EXPECT_BACKENDS ("numba,c") says must be here."""

from __future__ import annotations

import os

import pytest

import minedge.ops


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tier_ops" in metafunc.fixturenames:
        here = [name for name, reason in minedge.ops.available().items() if not reason]
        expected = [name for name in os.environ.get("MINEDGE_EXPECT_BACKENDS", "").split(",") if name]
        metafunc.parametrize("tier_ops", list(dict.fromkeys([*here, *expected])), indirect=True)


@pytest.fixture
def tier_ops(request: pytest.FixtureRequest) -> minedge.ops.Ops:
    """The ops of one backend; an expected one that is missing raises BackendError here, which fails the test."""
    return minedge.ops.get(request.param)
