"""A report as a Markdown table: a line for each piece of work and each peer. README's table of speed is made so."""

from __future__ import annotations

from minedge.bench.busy import BUSY
from minedge.bench.measure import Run
from minedge.bench.report import derived, disturbed, headline, memory_text, rate_text, ratio_of, ratio_text, share_text
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
        label = ours.job.label.removeprefix("minedge").lstrip(", ")
        work = " ".join(filter(None, (result.name, result.shape))) + (f", {label}" if label else "")
        head = [work, str(result.threads), rate_text(ours), share_text(ours, limit), memory_text(ours)]
        beside = peers if ours is result.ours else []
        if not beside:
            rows.append([*head, "", "", "", ""])
        for peer in beside:
            rows.append(
                [
                    *head,
                    peer.job.label,
                    rate_text(peer),
                    memory_text(peer),
                    _times(ratio_of(peer, result), [ours, peer]),
                ]
            )
    return rows


def _times(ratio: Spread | None, runs: list[Run]) -> str:
    others = disturbed(runs)
    return ratio_text(ratio) + (f", others used {others:.0%}" if ratio is not None and others > BUSY else "")
