"""A verdict as text: for the student who checks, and for the instructor's report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from minedge.course.check import CheckResult, TaskResult

__all__ = ["failures", "report", "table"]

WIDTH = 112


def table(result: CheckResult) -> list[tuple[str, str, str]]:
    """(task, points, title) in turn."""
    return [(t.id, f"{t.earned:g} / {t.points:g}", t.title) for t in result.tasks]


def failures(result: CheckResult) -> Iterator[str]:
    """For each property that failed: what it says, the first failing shapes, expected against got, the hint. What has
    not been begun comes last, in one line.
    """
    if result.problem:
        yield f"nothing was run: {result.problem}"
        return
    told: set[str] = set()
    for task in result.tasks:
        for prop in task.properties:
            outcome = prop.outcome
            if outcome.ok or outcome.kind == "blank":
                continue
            yield f"{task.id}  {prop.name}: {prop.says or 'failed'}"
            if outcome.case:
                yield from _wrapped(f"first failing case: {outcome.case}")
            if outcome.detail:
                yield from _wrapped(outcome.detail)
            for name in outcome.misconceptions:
                known = name in told
                yield from _wrapped(f"hint: {name}" if known else f"hint: {name}: {result.hints.get(name, '')}")
                told.add(name)
    blank = [_blanks(task) for task in result.tasks if any(p.outcome.kind == "blank" for p in task.properties)]
    if blank:
        yield from textwrap.wrap(f"not done yet: {', '.join(blank)}", WIDTH, subsequent_indent="    ")


def report(result: CheckResult, head: list[str]) -> str:
    """The whole verdict as plain text, headed by the lines of `head`."""
    lines = [*head, "", f"points {result.earned:g} of {result.points:g} (seed {result.seed}, {result.seconds:g} s)", ""]
    rows = table(result)
    width = max(len(points) for _, points, _ in rows)
    lines += [f"{task}  {points.rjust(width)}  {title}" for task, points, title in rows]
    found = list(failures(result))
    if found:
        lines += ["", *found]
    notes = [p.outcome.note for t in result.tasks for p in t.properties if p.outcome.note]
    lines += [*([""] if notes or result.notes else []), *notes, *(f"note: {note}" for note in result.notes)]
    if result.printed:
        lines += ["", "printed (the first characters):", *textwrap.indent(result.printed, "  | ").splitlines()]
    return "\n".join(lines) + "\n"


def _blanks(task: TaskResult) -> str:
    """The task, and of one that was begun what is still a blank."""
    names = [p.name for p in task.properties if p.outcome.kind == "blank"]
    return task.id if len(names) == len(task.properties) else f"{task.id} ({', '.join(names)})"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ", break_long_words=False)
