"""Mutants of every format: an error or a whole model, and nothing that the other library rejects."""

from __future__ import annotations

import os

import pytest

from tests.io import fuzz

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_mutants_are_refused_or_whole(name: str) -> None:
    count = int(2000 * fuzz.SHARES[name][0]) or 1
    assert fuzz.run(name, count, seed=0) >= count * fuzz.SHARES[name][1] // 1000


@pytest.mark.campaign
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_mutants_campaign(name: str) -> None:
    """MINEDGE_FUZZ safetensors files, 100,000 unless said otherwise, and of other formats their shares of it."""
    count = int(int(os.environ.get("MINEDGE_FUZZ", "100000")) * fuzz.SHARES[name][0])
    accepted = fuzz.run(name, count, seed=int(os.environ.get("MINEDGE_FUZZ_SEED", "1")))
    print(f"{name}: {count:,} tried, {accepted:,} accepted")
    assert accepted >= count * fuzz.SHARES[name][1] // 1000
