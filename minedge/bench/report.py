"""What was found, as rows of a table, lines of text and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from minedge.bench.busy import BUSY
from minedge.bench.derived import derived
from minedge.bench.machine import Limit
from minedge.bench.measure import Run
from minedge.bench.run import PartResult, Report
from minedge.bench.stats import Spread, ratios, spread

__all__ = [
    "HEADERS",
    "cpu_ratio_of",
    "derived",
    "disturbed",
    "headline",
    "lines_of",
    "memory_text",
    "rate_of",
    "rate_text",
    "ratio_of",
    "ratio_text",
    "rows_of",
    "share_of",
    "share_text",
    "to_json",
]

HEADERS = ("who", "threads", "median", "±", "of the limit", "memory", "minedge is")


def rate_of(run: Run) -> Spread:
    """The run's figure in its own unit: amounts per second, or plain seconds."""
    found = spread(run.seconds)
    return found if run.facts.get("seconds") else found.per(run.facts["amount"])


def share_of(run: Run, limits: Mapping[int, Limit]) -> float | None:
    """The least time that the machine would need over the time it took; None where nothing is known about either."""
    limit = limits.get(run.job.threads)
    least = limit.seconds(run.facts) if limit is not None else 0.0
    return least / spread(run.seconds).median if least else None


def ratio_of(run: Run, result: PartResult) -> Spread | None:
    """How many times faster minedge is than this peer, round by round; None for minedge itself."""
    ours = result.ours
    if ours is None or run.job.who == "minedge" or not run.counts:
        return None
    return ratios(run.seconds, ours.seconds)  # a unit is the same work for all


def cpu_ratio_of(run: Run, result: PartResult) -> Spread | None:
    """`ratio_of` in processor time. With one thread it says the same and does not mind what else the machine does,
    short of caches and memory shared with it; with more it mixes speed with how many threads were kept waiting.
    """
    ours = result.ours
    if ours is None or run.job.who == "minedge" or not run.counts or result.threads != 1:
        return None
    if not all([*run.cpu_seconds, *ours.cpu_seconds, run.cpu_seconds and ours.cpu_seconds]):
        return None
    return ratios(run.cpu_seconds, ours.cpu_seconds)


def rows_of(result: PartResult, limits: Mapping[int, Limit]) -> list[list[str]]:
    """Cells under HEADERS, a row a competitor; one that does not count says why instead."""
    rows = []
    for run in result.runs:
        who, threads = run.job.label, str(run.job.threads)
        if not run.counts:
            why = "outputs are wrong" if run.wrong and not run.error else "failed"
            rows.append([who, threads, why, "", "", "", ""])
            continue
        rows.append([
            who,
            threads,
            rate_text(run),
            f"{rate_of(run).relative:.1%}",
            share_text(run, limits),
            memory_text(run),
            ratio_text(ratio_of(run, result)),
        ])  # fmt: skip
    return rows


def rate_text(run: Run) -> str:
    """The run's figure with its unit."""
    return f"{_figure(rate_of(run).median)} {run.facts['unit']}"


def share_text(run: Run, limits: Mapping[int, Limit]) -> str:
    """`share_of` in percent, nothing where there is none."""
    share = share_of(run, limits)
    return f"{share:.0%}" if share is not None else ""


def memory_text(run: Run) -> str:
    """The process's peak less what its imports took, nothing where it was not measured."""
    return f"{(run.peak_bytes - run.imports_bytes) / 1e6:,.0f} MB" if run.peak_bytes else ""


def ratio_text(ratio: Spread | None) -> str:
    """A ratio with its quartiles, nothing where there is none."""
    return f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})" if ratio is not None else ""


def lines_of(result: PartResult) -> list[str]:
    """What stands below a part's table: set-up, check and trouble of each competitor."""
    if result.note:
        return [result.note]
    lines = []
    for run in result.runs:
        if run.error:
            lines.append(f"{run.job.label}: {run.error}")
        else:
            verdict = "WRONG, does not count: " if run.wrong else "checked: "
            lines.append(f"{run.job.label}: {run.settings}; {verdict}{run.check}")
    worst = disturbed(result.runs)
    if worst > BUSY:
        found = [(run.job.label, cpu_ratio_of(run, result)) for run in result.runs]
        by_cpu = "; ".join(f"{ratio.median:.2f} x {label}" for label, ratio in found if ratio is not None)
        by_cpu = f" (in processor time minedge is {by_cpu})" if by_cpu else ""
        lines.append(f"others used {worst:.0%} of the processors meanwhile: take the figures with care{by_cpu}")
    return lines


def disturbed(runs: Sequence[Run]) -> float:
    """The largest share of the processors that others used during a competitor's turns, by their median."""
    return max((spread(run.others).median for run in runs if run.others), default=0.0)


def headline(report: Report) -> list[str]:
    """The machine, and how quiet it was."""
    m = report.machine
    wide = f" ({', '.join(m['wide'])})" if m["wide"] else ""
    lines = [
        f"{m['processor']}{wide}, {m['cpus']} CPUs, {m['memory_bytes'] / 1e9:.0f} GB, {m['system']}; "
        f"minedge {m['minedge']}, Python {m['python']}, NumPy {m['numpy']}; {m['date']}"
    ]
    if report.load.disturbed:
        lines.append(report.load.warning)
    return lines


def to_json(report: Report) -> dict[str, Any]:
    """Everything, each turn included."""
    return {
        "machine": report.machine,
        "load": asdict(report.load),
        "not_installed": dict(report.absent),
        "limits": {str(n): asdict(limit) for n, limit in report.limits.items()},
        "results": [_part_json(result, report.limits) for result in report.results],
        "derived": derived(report),
        "interrupted": report.interrupted,
    }


def _part_json(result: PartResult, limits: Mapping[int, Limit]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "part": result.name, "what": result.what, "shape": result.shape or None, "threads": result.threads,
        "note": result.note, "runs": [],
    }  # fmt: skip
    for run in result.runs:
        ratio, by_cpu = ratio_of(run, result), cpu_ratio_of(run, result)
        out["runs"].append({
            "who": run.job.who, "label": run.job.label, "backend": run.job.backend, "settings": run.settings,
            "counts": run.counts, "error": run.error, "check": run.check, "right": not run.wrong and not run.error,
            "unit": run.facts.get("unit"), "rate": asdict(rate_of(run)) if run.counts else None,
            "share_of_limit": share_of(run, limits) if run.counts else None,
            "ratio": asdict(ratio) if ratio is not None else None,
            "cpu_ratio": asdict(by_cpu) if by_cpu is not None else None,
            "imports_bytes": run.imports_bytes, "peak_bytes": run.peak_bytes,
            "seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "others": run.others, "facts": dict(run.facts),
        })  # fmt: skip
    return out


def _figure(value: float) -> str:
    """A number to three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
