"""What all tests share: how many random examples, which backends must exist, which markers need asking for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import minedge.ops

for _folder in ("ops", "mutants"):  # op_checks and planting, which several folders use
    sys.path.insert(0, str(Path(__file__).parent / _folder))

# "quick" draws the same examples every time, so that CI never fails by luck; "campaign" draws new and many ones.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("quick", max_examples=15, derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("campaign", max_examples=200, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("MINEDGE_TEST_PROFILE", "quick"))

_ON_REQUEST = ("slow", "campaign", "oracle")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked slow, campaign or oracle run only where `-m` names the marker."""
    asked = config.getoption("markexpr") or ""
    left_out = [item for item in items if any(item.get_closest_marker(m) and m not in asked for m in _ON_REQUEST)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest error of each op as a share of the bound it is held to."""
    checks = sys.modules.get("op_checks.bounds")
    if checks is not None and checks.RATIOS:
        worst = sorted(checks.RATIOS.items(), key=lambda pair: -pair[1])
        text = ", ".join(f"{name} {share:.2f}" for name, share in worst)
        terminalreporter.write_line(f"largest share of the derived error bound: {text}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`tier_ops`: every backend that is here, and every one that MINEDGE_EXPECT_BACKENDS ("numba,c") says must be."""
    if "tier_ops" in metafunc.fixturenames:
        here = [name for name, reason in minedge.ops.available().items() if not reason]
        expected = [name for name in os.environ.get("MINEDGE_EXPECT_BACKENDS", "").split(",") if name]
        metafunc.parametrize("tier_ops", list(dict.fromkeys([*here, *expected])), indirect=True)


@pytest.fixture
def tier_ops(request: pytest.FixtureRequest) -> minedge.ops.Ops:
    """The ops of one backend; an expected one that is missing raises BackendError here, which fails the test."""
    return minedge.ops.get(request.param)
