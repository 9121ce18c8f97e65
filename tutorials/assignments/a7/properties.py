"""What a7 tests: each step's numbers, that it stays inside its arrays, and how fast it is beside the library's step.

Scales are powers of two and activations small enough that every float operation is exact in any order: the answers have
to be equal to the last bit, however the sums are arranged. One more case has scales as they come, with a derived bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from minedge.course.properties import Check, Outcome, Property
from minedge.course.sandbox import CallError

F32 = np.float32
OUTSIDE = F32(12345)  # calls.py: what stands in rows that may not be touched
FULL, NOTHING = 0.7, 0.2  # of the reference's speed: all of the points, none of them
SECONDS = 0.25  # measured at a time


def codes_of(q):
    return np.concatenate([q & 15, q >> 4], -1).astype(np.int64) - 8


def exact(rng, rows, blocks, largest=128):
    """largest 128: up to 8 blocks stay below 2^24 steps of the smallest scale; more blocks take smaller activations."""
    x = rng.integers(-largest, largest, (blocks, 32))
    if largest == 128:
        x[0, 3], x[-1, 30] = -128, -128  # has no opposite in int8
    return {
        "q": rng.integers(0, 256, (rows, blocks, 16)).astype(np.uint8),
        "scales": F32(2) ** rng.integers(-2, 2, (rows, blocks)).astype(F32),
        "x": x.astype(np.int8),
        "xscales": F32(2) ** rng.integers(-2, 2, blocks).astype(F32),
    }


def step_cases(step):
    def cases(rng):
        for rows, blocks, begin, end in ((4, 2, 0, 4), (9, 3, 0, 9), (11, 3, 2, 9), (3, 2, 0, 3), (1, 1, 0, 1)):
            yield {"step": step, **exact(rng, rows, blocks), "begin": begin, "end": end}
        yield {"step": step, **exact(rng, 6, 2), "begin": 3, "end": 3}  # no rows at all
        full = exact(rng, 4, 2)  # the largest sums there are
        full["q"][:], full["x"][:] = 0, -128
        yield {"step": step, **full, "begin": 0, "end": 4}
        for blocks in (5, 8, 64):
            yield {"step": step, **exact(rng, 13, blocks, 128 if blocks <= 8 else 8), "begin": 0, "end": 13}

    return cases


def rows_of(q, scales, x, xscales):
    part = np.einsum("obj,bj->ob", codes_of(q), x.astype(np.int64))
    return (part * scales.astype(np.float64) * xscales).sum(1)


def expected(step, q, scales, x, xscales, begin, end):
    y = np.full(len(q), OUTSIDE)
    y[begin:end] = rows_of(q, scales, x, xscales)[begin:end]
    return {"y": y, "y_at_start": y}


def thread_cases(rng):
    for rows, count in ((8, 2), (7, 2), (1, 4), (3, 8), (13, 5), (64, 3), (5, 1), (70, 64)):
        yield {**exact(rng, rows, 2), "count": count}


def all_rows(q, scales, x, xscales, count):
    return {"y": rows_of(q, scales, x, xscales).astype(F32)}


@dataclass(frozen=True)
class Kernel(Property):
    """A property whose call may crash: a segmentation fault here means an access outside the arrays."""

    def run(self, student, rng, misconceptions):
        outcome = super().run(student, rng, misconceptions)
        if outcome.kind in ("crash", "timeout"):
            student.ended = {**getattr(student, "ended", {}), self.name.partition(":")[0]: outcome.kind}
        if outcome.kind == "crash" and "SIGSEGV" in outcome.detail:
            told = f"{outcome.detail}: a byte outside the arrays was read or written"
            names = ("outside_the_arrays", "not_waited_for") if self.call == "threads" else ("outside_the_arrays",)
            return replace(outcome, detail=told, misconceptions=names)
        if self.call == "threads" and not outcome.misconceptions and "got nan" in outcome.detail:
            return replace(outcome, misconceptions=("not_waited_for",))
        return outcome


def not_run(kind):
    """Of a step that crashed or hung the rest says nothing new, and would cost its time again."""
    return Outcome(False, detail=f"not run: the step {'crashed' if kind == 'crash' else 'did not end'}", kind=kind)


def any_scales(step):
    """Scales as they come. A sum of 64 blocks, in any order, over at most 8 lanes: each of the 64 + 8 additions and of
    the 4 roundings of a term errs by u = 2^-24 of the magnitudes it adds; codes may be split as code and -8, so that a
    term's magnitude is |x| (code + 8).
    """

    def check(student, rng):
        rows, blocks = 37, 64
        case = {
            "q": rng.integers(0, 256, (rows, blocks, 16)).astype(np.uint8),
            "scales": rng.standard_normal((rows, blocks)).astype(F32),
            "x": rng.integers(-128, 128, (blocks, 32)).astype(np.int8), "xscales": rng.random(blocks).astype(F32),
        }  # fmt: skip
        shown = f"rows {rows}, blocks {blocks}"
        if step in getattr(student, "ended", {}):
            return not_run(student.ended[step])
        try:
            if step == "threads":
                got = student.call("threads", **case, count=3)["y"]
            else:
                got = student.call("product", step=step, **case, begin=0, end=rows)["y"]
        except CallError as error:
            return Outcome(False, shown, str(error), kind=error.kind)
        weight = np.abs(case["scales"].astype(np.float64)) * case["xscales"]
        size = np.einsum("obj,bj->ob", codes_of(case["q"]) + 16, np.abs(case["x"].astype(np.int64)))
        bound = (blocks + 12) * 2.0**-24 * (size * weight).sum(1)
        want = rows_of(**case)
        gap = np.abs(np.asarray(got, np.float64) - want)
        worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap) / bound))
        if not gap[worst] <= bound[worst]:
            told = f"y[{worst}]: expected {want[worst]:.6g} within {bound[worst]:.2g}, got {got[worst]:.6g}"
            return Outcome(False, shown, told)
        return Outcome(True)

    return check


def speed_of(step):
    """Full points from FULL of the reference's speed on, none below NOTHING; both measured in turns in one run. A step
    whose numbers are wrong is not measured.
    """

    def check(student, rng):
        best = {"own": np.inf, "reference": np.inf}
        case = exact(rng, 13, 3)
        if step in getattr(student, "ended", {}):
            return not_run(student.ended[step])
        try:
            if step == "threads":
                got = student.call("threads", **case, count=2)["y"]
            else:
                got = student.call("product", step=step, **case, begin=0, end=13)["y"]
            if not np.array_equal(got, rows_of(**case)):
                return Outcome(False, "rows 13, blocks 3", "not measured: the numbers are wrong")
            for _ in range(5):  # a busy machine: more turns before a verdict below the full points
                told = student.call("speed", step=step, seconds=SECONDS)
                if not told["measured"]:
                    return Outcome(
                        False, "emulated", "speed is not measured under emulation; correctness counts", share=0
                    )
                best = {who: min(best[who], told[who]) for who in best}
                ratio = best["reference"] / best["own"]
                if ratio >= FULL:
                    break
        except CallError as error:
            return Outcome(False, "rows of 2048", str(error), kind=error.kind)
        share = float(np.clip((ratio - NOTHING) / (FULL - NOTHING), 0, 1))
        rate = told["bytes"] / best["own"] / 1e9
        note = f"{step}: {best['own'] * 1e3:.2f} ms, {rate:.1f} GB/s of weights, {ratio:.2f} of the reference's speed"
        detail = "" if share == 1 else f"{ratio:.2f} of the reference's speed; all points from {FULL:g} on"
        return Outcome(share == 1, "rows of 2048", detail, share=share, note=note)

    return check


PROPERTIES = [
    prop
    for task, step in (("a7.1", "scalar"), ("a7.2", "unrolled"), ("a7.3", "simd"))
    for prop in (
        Kernel(
            task, "product", step_cases(step), expected, "rows begin..end-1, exactly, and nothing outside", 0,
            label=f"{step}: exact",
        ),
        Check(task, f"{step}: any scales", any_scales(step), "within float32's rounding"),
        Check(task, f"{step}: speed", speed_of(step), "as a ratio to the reference, measured in the same run"),
    )
] + [
    Kernel("a7.4", "threads", thread_cases, all_rows, "every row once, for any number of threads", 0),
    Check("a7.4", "threads: any scales", any_scales("threads"), "within float32's rounding"),
    Check("a7.4", "threads: speed", speed_of("threads"), "as a ratio to the reference, measured in the same run"),
]  # fmt: skip
