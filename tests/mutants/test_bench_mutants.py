"""Planted bugs in the measurements: each must be caught by the property that tests/bench checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from planting import mutated_module

from minedge.bench.jobs import Job
from minedge.bench.measure import Run
from minedge.bench.run import PartResult


def check_spread(stats: Any) -> None:
    assert stats.spread([3.0, 1.0, 2.0, 5.0, 4.0]) == stats.Spread(3.0, 2.0, 4.0, 5)


def check_rate(stats: Any) -> None:
    assert stats.Spread(2.0, 1.0, 4.0, 3).per(8) == stats.Spread(4.0, 2.0, 8.0, 3)


def check_ratio(stats: Any) -> None:
    assert stats.ratios([2.0, 4.0, 4.0], [1.0, 2.0, 2.0]) == stats.Spread(2.0, 2.0, 2.0, 3)


def check_gaps(text: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 1000))
    best = rows.argmax(-1).tolist()
    assert text.gaps(rows, best) == [0.0, 0.0, 0.0]
    assert min(text.gaps(rows, [0, 1, 2])) > text.CLOSE
    assert np.allclose(text.gaps(7 * rows, [0, 1, 2]), text.gaps(rows, [0, 1, 2]))


def check_wrong_token(text: Any) -> None:
    check = text.PARTS["decode"].check
    assert check("minedge", {}, {"gaps": [0.0, 0.001]})[0]
    assert not check("minedge", {}, {"gaps": [0.0, 0.2]})[0]
    assert not check("minedge", {}, {"gaps": [0.0], "long_gaps": [0.2]})[0]
    assert not check("llama.cpp", {"gaps": [0.0, 1.0]}, {})[0]


def check_wrong_loss(train: Any) -> None:
    check = train.PARTS["train"].check
    assert check("torch", {"losses": [2.0, 1.9]}, {"losses": [2.0, 1.9001]})[0]
    assert not check("torch", {"losses": [2.0, 1.9]}, {"losses": [2.0, 1.8]})[0]


def check_wrong_gradient(mezo: Any) -> None:
    check, right = mezo.PARTS["mezo"].check, {"loss": 2.0, "mean": 2.0, "projected_grad": 0.5}
    assert check("minedge", right, right)[0]
    assert not check("minedge", {**right, "projected_grad": -0.5}, right)[0]
    assert not check("minedge", {"numbers": [1.0]}, {"numbers": [2.0]})[0]


def check_memory_limit(machine: Any) -> None:
    limit = machine.Limit(read=4e9, float_macs=1e9, int8_macs=8e9)
    assert limit.seconds({"bytes": 1e9, "macs": 4e9, "arithmetic": "int8"}) == 0.5
    assert limit.seconds({"bytes": 4e9, "macs": 4e9, "arithmetic": "int8"}) == 1.0


def check_wrong_counts_not(report: Any) -> None:
    facts = {"amount": 1.0, "unit": "tokens/s"}
    ours, peer = (Run(Job(who, who, "", 1), "s", {"x": 1}, facts, [1.0]) for who in ("minedge", "torch"))
    result = PartResult("decode", "", "", 1, [ours, peer])
    assert report.rows_of(result, {})[1][6]
    peer.wrong = True
    assert not report.rows_of(result, {})[1][6] and "token" not in report.rows_of(result, {})[1][2]


MUTANTS: list[tuple[str, str, str, str, Callable[[Any], None]]] = [
    (
        "the mean for the median",
        "stats",
        "low, middle, high =",
        "low, middle, high = 0, sum(values) / 5, 0; _ =",
        check_spread,
    ),
    (
        "quartiles of a rate not swapped",
        "stats",
        "amount / self.high, amount / self.low",
        "amount / self.low, amount / self.high",
        check_rate,
    ),
    ("the ratio upside down", "stats", "t / o for", "o / t for", check_ratio),
    ("a gap not scaled", "tasks_text", "/ rows.std(-1)", "/ 1", check_gaps),
    ("a gap from the mean", "tasks_text", "rows.max(-1) - chosen", "rows.mean(-1) - chosen", check_gaps),
    (
        "wrong tokens pass",
        "tasks_text",
        "right = right and worst < CLOSE",
        "right = right or worst < CLOSE",
        check_wrong_token,
    ),
    ("a peer's wrong tokens pass", "tasks_text", "near >= 0.75 * n", "near >= 0", check_wrong_token),
    (
        "only the first loss is compared",
        "tasks_train",
        "np.abs(mine / theirs - 1).max()",
        "np.abs(mine / theirs - 1)[0]",
        check_wrong_loss,
    ),
    (
        "the gradient is not compared",
        "tasks_mezo",
        "right = off < 1e-5 and apart <= allowed",
        "right = off < 1e-5",
        check_wrong_gradient,
    ),
    ("numbers are not compared", "tasks_mezo", '"numbers" not in other or', "True or", check_wrong_gradient),
    ("the least of two limits", "machine", "return max(memory,", "return min(memory,", check_memory_limit),
    ("wrong outputs count", "report", "if not run.counts:", "if not run.seconds:", check_wrong_counts_not),
]


@pytest.mark.parametrize("name, module, old, new, check", MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_planted_bug_is_caught(name, module, old, new, check):
    check(__import__("importlib").import_module(f"minedge.bench.{module}"))
    with pytest.raises(AssertionError):
        check(mutated_module(f"minedge.bench.{module}", old, new))
