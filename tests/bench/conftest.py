"""A job for a competitor that this folder defines (toy.py), and results made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from minedge.bench.jobs import Job
from minedge.bench.measure import Run
from minedge.bench.run import PartResult


def job(who: str = "minedge", maker: str = "tests.bench.toy:make", threads: int = 1, **sizes: Any) -> Job:
    """One competitor; `sizes` are what toy.py reads."""
    return Job(who, sizes.pop("label", who), maker, threads, sizes=sizes)


@pytest.fixture
def result() -> PartResult:
    """minedge at 1, 1 and 2 s a unit, a peer at 2, 3 and 4 s, one that failed and one that is wrong."""
    facts = {"amount": 10.0, "unit": "tokens/s", "macs": 4e9, "bytes": 1e9, "arithmetic": "int8"}
    ours = Run(job(), "c", {"x": 1}, dict(facts), [1.0, 1.0, 2.0], imports_bytes=10**8, peak_bytes=3 * 10**8)
    ours.check = "equal"
    peer = Run(job("torch"), "eager", {"x": 1}, dict(facts), [2.0, 3.0, 4.0], peak_bytes=10**9, check="close")
    failed = Run(job("peft"), error="no such thing")
    wrong = Run(job("llama.cpp"), "Q4_0", {"x": 2}, dict(facts), [0.5, 0.5], wrong=True, check="far away")
    return PartResult("decode", "one token after another", "a-shape", 1, [ours, peer, failed, wrong])
