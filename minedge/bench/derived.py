"""Sentences that need two figures of a report: shares, a step in other steps, bytes against time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from minedge.bench.measure import Run
from minedge.bench.run import Report
from minedge.bench.stats import ratios, spread
from minedge.bench.tasks_context import EMPTY
from minedge.bench.tasks_sparse import crossings
from minedge.bench.tasks_text import ADAPTED

__all__ = ["derived"]

Found = Mapping[tuple[str, str, int, str], Run]  # (part, shape, threads, label) -> what counted


def derived(report: Report) -> list[str]:
    """Attention's share of a step, an adapter's cost, time against bytes, a MeZO step in forward passes, what
    quantization took, from which density packed weights pay.
    """
    found = {
        (result.name, result.shape, result.threads, run.job.label): run
        for result in report.results
        for run in result.runs
        if run.counts
    }
    lines = []
    for result in report.results:
        if result.name.startswith("sparse"):
            lines += [f"{result.name}, threads {result.threads}: {line}" for line in crossings(result.runs)]
    for (name, shape, threads, label), run in found.items():
        where = f"{shape}, {label}, threads {threads}"
        beside = {key: found.get((name, shape, threads, f"minedge, {key}")) for key in (EMPTY, ADAPTED, *_ALONE)}
        short, adapter, (forward, numbers) = beside[EMPTY], beside[ADAPTED], (beside[key] for key in _ALONE)
        first = run.job.who == "minedge" and not any(label.endswith(f", {key}") for key in beside)
        if first and short is not None:
            lines.append(f"{where}: {_attention(run, short)}")
        if first and adapter is not None:
            cost = ratios(adapter.seconds, run.seconds)
            lines.append(
                f"{where}: with an adapter on queries and values, not merged ({ADAPTED}), a token takes "
                f"{cost.median - 1:+.1%} ({cost.low - 1:+.1%} to {cost.high - 1:+.1%})"
            )
        if first and name.startswith("mezo") and forward and numbers:
            lines.append(f"{where}: {_mezo(name, run, forward, numbers)}")
        if "result_bytes" in run.facts and run.peak_bytes:
            result_bytes = run.facts["result_bytes"]
            lines.append(
                f"{where}: quantization took {spread(run.seconds).median:.2f} s; its whole process "
                f"{run.peak_bytes / 1e6:,.0f} MB, {run.peak_bytes / result_bytes:.2f} x the result of "
                f"{result_bytes / 1e6:,.0f} MB"
            )
    return [*lines, *_scaling(found)]


_ALONE = ("forward alone", "generator alone")


def _attention(long: Run, short: Run) -> str:
    """What stands behind a step is attention over it: all else is the same in both."""
    share = spread([1 - b / a for a, b in zip(long.seconds, short.seconds, strict=False)])
    by_bytes = 1 - short.facts["bytes"] / long.facts["bytes"]
    return (
        f"attention over {long.facts['past']:,} tokens takes {share.median:.0%} ({share.low:.0%} to {share.high:.0%}) "
        f"of a token's {spread(long.seconds).median * 1e3:.3g} ms; of the bytes that it reads {by_bytes:.0%} are the "
        "past's"
    )


def _mezo(name: str, run: Run, forward: Run, numbers: Run) -> str:
    seconds, one, z = (spread(r.seconds).median for r in (run, forward, numbers))
    over = (run.peak_bytes - run.imports_bytes) / max(1, forward.peak_bytes - forward.imports_bytes) - 1
    return (
        f"a MeZO step ({name}) takes {seconds:.3g} s: {seconds / one:.2f} forward passes of {one:.3g} s; "
        f"two passes and 1.15 x two z of {z:.3g} s would take {2 * one + 2.3 * z:.3g} s; peak {over:+.1%} of the "
        "forward pass's"
    )


def _scaling(found: Found) -> Iterator[str]:
    """Whether a token's time goes with the bytes that it reads: of shapes and pasts, the fewest against the most."""
    points: dict[tuple[str, int], list[tuple[float, float, str]]] = {}
    for (name, shape, threads, label), run in found.items():
        if name in ("decode", "context") and "bytes" in run.facts and not label.endswith(ADAPTED):
            past = run.facts.get("past", 0)
            what = f"{shape} behind {past:,} tokens" if past else shape
            who = label.removesuffix(f", {EMPTY}")
            points.setdefault((who, threads), []).append((run.facts["bytes"], spread(run.seconds).median, what))
    for (who, threads), measured in points.items():
        few, many = min(measured), max(measured)
        if many[0] >= 2 * few[0]:
            yield (
                f"{who}, threads {threads}: from {few[2]} to {many[2]} the bytes a token are {many[0] / few[0]:.2f} x, "
                f"its time is {many[1] / few[1]:.2f} x ("
                + ", ".join(f"{b / 1e6:,.0f} MB at {b / s / 1e9:.3g} GB/s" for b, s, _ in sorted(measured))
                + ")"
            )
