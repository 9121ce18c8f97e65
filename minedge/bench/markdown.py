"""A report as a Markdown table: a line for each piece of work and each peer. README's table of speed is made so."""

from __future__ import annotations

from minedge.bench.busy import BUSY
from minedge.bench.measure import Run
from minedge.bench.report import derived, disturbed, figure, headline, rate_of, ratio_of, share_of
from minedge.bench.run import PartResult, Report
from minedge.bench.stats import Spread

__all__ = ["markdown_table"]

_COLUMNS = ("work", "threads", "minedge", "of the limit", "memory", "beside", "its figure", "its memory", "minedge is")


def markdown_table(report: Report) -> str:
    """One row for each figure of minedge and each peer beside it, then the sentences that need two figures and the
    machine. What does not count (outputs that are wrong, a failure) has no row; a busy machine is named.
    """
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    for result in report.results:
        lines += ["| " + " | ".join(row) + " |" for row in _rows(result, report)]
    notes = [f"- {line}" for line in [*derived(report), *headline(report)]]
    return "\n".join([*lines, "", *notes, ""])


def _rows(result: PartResult, report: Report) -> list[list[str]]:
    rows = []
    limit = report.limits
    counted = [run for run in result.runs if run.counts]
    peers = [run for run in counted if run.job.who != "minedge"]
    for ours in (run for run in counted if run.job.who == "minedge"):
        share = share_of(ours, limit)
        label = ours.job.label.removeprefix("minedge").lstrip(", ")
        work = " ".join(filter(None, (result.name, result.shape))) + (f", {label}" if label else "")
        head = [work, str(result.threads), _rate(ours), f"{share:.0%}" if share is not None else "", _memory(ours)]
        beside = peers if ours is result.ours else []
        if not beside:
            rows.append([*head, "", "", "", ""])
        for peer in beside:
            rows.append(
                [*head, peer.job.label, _rate(peer), _memory(peer), _times(ratio_of(peer, result), [ours, peer])]
            )
    return rows


def _rate(run: Run) -> str:
    return f"{figure(rate_of(run).median)} {run.facts['unit']}"


def _memory(run: Run) -> str:
    return f"{(run.peak_bytes - run.imports_bytes) / 1e6:,.0f} MB" if run.peak_bytes else ""


def _times(ratio: Spread | None, runs: list[Run]) -> str:
    if ratio is None:
        return ""
    others = disturbed(runs)
    busy = f", others used {others:.0%}" if others > BUSY else ""
    return f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f}){busy}"
