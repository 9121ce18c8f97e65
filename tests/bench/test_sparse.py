"""The part that says from which density on packed pruned weights pay."""

from __future__ import annotations

import dataclasses
import doctest
from types import SimpleNamespace

import numpy as np
import pytest

from minedge.bench import tasks_sparse
from minedge.bench.tasks_sparse import DENSITIES, PARTS, crossing, crossings
from minedge.bench.worker import Clock

SMALL = {"width": 64, "rows": 3, "cached": True}


@pytest.mark.parametrize("entry", PARTS["sparse"].entries, ids=lambda e: e.note)
def test_competitors_multiply_rightly(entry):
    job = {"backend": None, "sizes": {**SMALL, **entry.sizes}}
    subject = tasks_sparse.product(job)
    assert PARTS["sparse"].check("minedge", subject.outputs, {})[0], subject.outputs
    clock = Clock()
    subject.run(2, clock)
    assert clock.seconds > 0 and subject.facts["amount"] == 64 * 64 / 1e9


def test_wrong_products_do_not_count(monkeypatch):
    import minedge.ops

    ops = minedge.ops.get("numpy")
    one_value_off = lambda x, bits, values, starts: ops.sparse_linear_forward(x, bits, np.roll(values, 1), starts)  # noqa: E731
    monkeypatch.setattr(minedge.ops, "get", lambda _: SimpleNamespace(sparse_linear_forward=one_value_off, spec="bad"))
    subject = tasks_sparse.product({"backend": None, "sizes": {**SMALL, "dtype": "float32", "percent": 50}})
    assert not PARTS["sparse"].check("minedge", subject.outputs, {})[0]


def test_the_crossing_lies_between_its_neighbours():
    assert doctest.testmod(tasks_sparse).failed == 0
    assert crossing([90, 70, 50, 30], [0.5, 0.9, 0.95, 0.99]) is None
    assert crossing([50, 90, 70], [2.0, 1.1, 1.5]) == 100.0
    assert crossing([70, 30], [0.5, 1.5]) == 50.0


def test_every_pair_of_types_gets_a_line():
    """Time in proportion to the density, so dense costs 1 and the crossing of equal types is where time is 1."""

    def run(label: str, seconds: float) -> SimpleNamespace:
        n = len(label)  # a unit may be any number of matrices
        job = SimpleNamespace(label=f"minedge, {label}")
        return SimpleNamespace(job=job, counts=True, seconds=[seconds * n] * 3, facts={"amount": n})

    runs = [run("dense float32", 1.0), run("dense float16", 0.5)]
    runs += [run(f"{d}% {t}", d / 100 * (1.0 if t == "float32" else 2.0)) for t, ds in DENSITIES.items() for d in ds]
    lines = crossings(runs)
    assert len(lines) == 3
    assert lines[0].startswith("packed float32 beats dense float32 at every density that was measured")
    assert "float16 beats dense float16 below a density of 2" in lines[1]
    assert crossings(runs[1:])[0] == lines[1]


def test_from_end_to_end(capfd, monkeypatch):
    """Each competitor in its own process, on a matrix so small that only what is printed counts."""
    import json

    from minedge.cli import main

    small = dataclasses.replace(PARTS["sparse"], sizes={"width": 64, "rows": 1, "cached": True})
    monkeypatch.setitem(PARTS, "sparse", small)
    code = main(["bench", "--only", "sparse", "--json", "--rounds", "1", "--turn", "0.01", "--threads", "1"])
    report = json.loads(capfd.readouterr().out)
    assert code == 0 and all(run["counts"] for run in report["results"][0]["runs"])
    assert sum("packed" in line for line in report["derived"]) == 3
