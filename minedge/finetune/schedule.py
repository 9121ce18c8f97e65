"""How the learning rate moves over a run: a linear rise, then a curve down. A pure function of the step."""

from __future__ import annotations

import math

from minedge.config import did_you_mean
from minedge.errors import UsageError

__all__ = ["SCHEDULES", "learning_rate"]

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(
    step: int, iters: int, peak: float, warmup: int = 0, kind: str = "cosine", final_ratio: float = 0.1
) -> float:
    r"""The rate of step `step` (counted from 0) of a run of `iters` steps.

    Warm-up, step < warmup:  peak * (step + 1) / warmup, because Adam's second moments are poor estimates at first.
    After it, with progress p = (step - warmup) / (iters - 1 - warmup) from 0 to 1 and the end value e = final_ratio:
        cosine    peak * (e + (1 - e) * (1 + cos(pi p)) / 2)      arXiv:1608.03983, Eq. 5, one cycle
        linear    peak * (e + (1 - e) * (1 - p))
        constant  peak

    >>> [round(learning_rate(s, 5, 1.0, warmup=2, final_ratio=0.0), 3) for s in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if kind not in SCHEDULES:
        raise UsageError(
            f"schedule: expected one of {', '.join(SCHEDULES)}, got {kind!r}{did_you_mean(str(kind), list(SCHEDULES))}"
        )
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, iters - 1 - warmup))
    shape = 0.5 * (1.0 + math.cos(math.pi * progress)) if kind == "cosine" else 1.0 - progress
    return peak * (final_ratio + (1.0 - final_ratio) * shape)
