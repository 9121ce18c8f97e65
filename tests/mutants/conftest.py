"""A mutant is meant to fail its check, so nobody reads why: pytest's explanation of a failed comparison stays out.

Where the variable CI is set, pytest explains differences in full, which takes minutes for long byte strings.
"""

from __future__ import annotations

import pytest
from _pytest.assertion import util


@pytest.fixture(autouse=True)
def no_explanations(monkeypatch):
    monkeypatch.setattr(util, "_reprcompare", None)
