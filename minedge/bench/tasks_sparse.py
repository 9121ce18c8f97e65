"""Packed pruned weights against dense ones: from which density on does leaving weights out take less time?

The competitors are one matrix: dense in float32 and float16, and packed at several densities, its kept weights in
either. Which weights are kept is drawn at random; 2:4 is 50% and takes the same path. A unit goes once through
`MEGABYTES` of weights ("from memory"), or again and again through one that the second-level cache holds. Every product
is compared with the float64 product of the weights as they are stored, zeros included: u sqrt(n) = 4e-6 of the
product's deviation is what float32 sums of 4096 terms leave; `RTOL` is twice that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.stats import ratios
from minedge.bench.worker import Clock, Subject

__all__ = ["DENSITIES", "PARTS", "crossing", "crossings", "imports", "product"]

MEGABYTES = 96
RTOL = 8e-6
DENSITIES = {"float32": (90, 70, 50, 30), "float16": (70, 50, 30, 15)}  # percent of the weights that are kept


def imports(job: Mapping[str, Any]) -> None:
    """The ops of the backend."""
    from minedge.ops import get

    get(job["backend"])


class _Product(Subject):
    def __init__(self, job: Mapping[str, Any]):
        from minedge.ops import get

        sizes, self.ops = job["sizes"], get(job["backend"])
        width, rows, dtype, kept = sizes["width"], sizes["rows"], sizes["dtype"], sizes["percent"]
        rng = np.random.default_rng(3)
        weight = rng.standard_normal((width, width), np.float32).astype(dtype)
        self.x = rng.standard_normal((rows, width), np.float32)
        if kept:
            keep = rng.random(weight.shape) < kept / 100
            starts = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
            one: tuple[Any, ...] = (np.packbits(keep, bitorder="little"), weight[keep], starts)
            weight[~keep] = 0
            self.op = self.ops.sparse_linear_forward
        else:
            one = (weight,)
            self.op = self.ops.linear_forward if dtype == "float32" else self.ops.half_linear_forward
        size = sum(a.nbytes for a in one)
        copies = 1 if sizes["cached"] else max(2, round(MEGABYTES * 1e6 / size))
        self.chain = [tuple(a.copy() for a in one) for _ in range(copies)]
        self.settings = f"{width} x {width}, {size / 1e6:.1f} MB each, {copies} in turn; {self.ops.spec}"
        n = float(copies * weight.size)
        self.facts = {"amount": n / 1e9, "unit": "G weights/s", "bytes": float(copies * size), "macs": n * rows}
        if sizes["cached"]:
            del self.facts["bytes"]
        right = self.x.astype(np.float64) @ weight[:64].T.astype(np.float64)
        found = self.op(self.x, *one)[0][:, :64]
        self.outputs = {"error": float(np.sqrt(((found - right) ** 2).mean()) / right.std())}

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                for weight in self.chain:
                    self.op(self.x, *weight)


def product(job: Mapping[str, Any]) -> Subject:
    """Through the ops, a call per matrix."""
    return _Product(job)


def _check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    return outputs["error"] <= RTOL, f"{outputs['error']:.1e} from the float64 product"


def crossing(percents: Sequence[float], faster: Sequence[float]) -> float | None:
    """The density in percent at which `faster`, how many times faster than dense, falls to 1: on the straight line
    between the two measured densities around it. None where all of them are slower, 100 where none is.

    >>> crossing([90, 70, 50], [0.5, 0.75, 1.25])
    60.0
    """
    points = sorted(zip(percents, faster, strict=True))
    if points[0][1] < 1:
        return None
    for (low, above), (high, below) in pairwise(points):
        if below < 1:
            return low + (high - low) * (above - 1) / (above - below)
    return 100.0


def crossings(runs: Sequence[Any]) -> list[str]:
    """A line for each pair of types: where packed weights start to beat the dense matrix."""
    by_label = {run.job.label: run for run in runs if run.counts}
    lines = []
    for dense, packed in (("float32", "float32"), ("float16", "float16"), ("float32", "float16")):
        base = by_label.get(f"minedge, dense {dense}")
        found = {d: by_label.get(f"minedge, {d}% {packed}") for d in DENSITIES[packed]}
        if base is None or None in found.values():
            continue
        times = {d: ratios(_each(base), _each(run)).median for d, run in found.items()}
        where = crossing(list(times), list(times.values()))
        ends = {None: "at no density that was measured", 100.0: "at every density that was measured"}
        verdict = ends.get(where) or f"below a density of {where:.0f}%"
        table = ", ".join(f"{d}%: {ratio:.2f} x" for d, ratio in times.items())
        lines.append(f"packed {packed} beats dense {dense} {verdict} ({table})")
    return lines


def _each(run: Any) -> list[float]:
    """Seconds per 1e9 weights, round by round: competitors go through as many matrices as fill the same memory."""
    return [seconds / run.facts["amount"] for seconds in run.seconds]


def _entries() -> tuple[Entry, ...]:
    maker = "minedge.bench.tasks_sparse:product"
    dense = [Entry("minedge", maker, (), f"dense {t}", {"dtype": t, "percent": 0}, alone=True) for t in DENSITIES]
    packed = [
        Entry("minedge", maker, (), f"{percent}% {dtype}", {"dtype": dtype, "percent": percent}, alone=True)
        for dtype, percents in DENSITIES.items()
        for percent in percents
    ]
    return (*dense, *packed)


def _part(name: str, what: str, **sizes: Any) -> Part:
    return Part(name, what, _entries(), _check, sizes=sizes, shaped=False)


PARTS = {
    "sparse": _part(
        "sparse", "pruned weights packed (mask and kept weights) times one token, from memory, against dense ones",
        width=4096, rows=1, cached=False,
    ),
    "sparse-cached": _part(
        "sparse-cached", "the same with one small matrix, from the cache", width=576, rows=1, cached=True
    ),
    "sparse-rows": _part("sparse-rows", "the same times 64 tokens", width=2048, rows=64, cached=False),
}  # fmt: skip
