"""Which backends these tests expect. One that is expected and missing fails its tests: nothing is skipped."""

from __future__ import annotations

import os

__all__ = ["EXPECTED", "PAIRS"]

EXPECTED = [name.strip() for name in os.environ.get("MINEDGE_EXPECT_BACKENDS", "numpy,numba,c").split(",")]
PAIRS = [(first, second) for first in EXPECTED for second in EXPECTED if first != second]
