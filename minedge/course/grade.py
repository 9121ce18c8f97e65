"""Grade many submissions: one line of a table and one report for each, whatever is in them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minedge.config import did_you_mean
from minedge.course.check import CheckResult, check_files
from minedge.course.content import Assignment, assignments, load
from minedge.course.report import report
from minedge.course.start import STATE
from minedge.course.submit import Submission, unpack
from minedge.errors import MinedgeError, UsageError
from minedge.io.atomic import atomic_write, os_errors

__all__ = ["GRADE_SEED", "Grade", "grade"]

GRADE_SEED = 2  # not check's: what passes by luck there has to pass again
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Grade:
    """One row: the file, what it is of, and the verdict; `problem` where there is none or nothing ran."""

    file: str
    student: str
    assignment: str
    result: CheckResult | None
    problem: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def points(self) -> float:
        return self.result.earned if self.result else 0.0


def grade(
    files: Sequence[str | Path],
    out: str | Path,
    seed: int = GRADE_SEED,
    points: Mapping[str, float] | None = None,
    only: str | None = None,
    progress: Callable[[Grade], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Grade]:
    """Grade archives and folders; write OUT/grades.csv and OUT/reports/NAME.txt. All get the same `seed`.

    Those of an earlier call are kept beside them, as grades.csv.orig and reports.orig, then .orig2. UsageError, before
    anything is written, where a file is not there or a folder is nobody's work but holds that of others.

    points     task -> points, where they are not the assignment's own ({"a1.2": 30})
    only       the assignment that submissions have to be of
    progress   called after each
    note       called with one line where earlier marks were there
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder to write into, it is a file")
    known: dict[str, Assignment] = {}
    if only is not None:
        known[only] = load(only)
    for task, value in (points or {}).items():
        _refuse_unknown(task, value)
    _refuse_mistyped([Path(file) for file in files])
    names = _report_names([Path(file) for file in files])
    grades = []
    with os_errors(out):
        kept = _keep_earlier(out)
        if kept and note:
            note(f"earlier marks are kept: {', '.join(kept)}")
        (out / "reports").mkdir(parents=True, exist_ok=True)
    for file, name in zip(files, names, strict=True):
        one = _grade_one(Path(file), seed, points or {}, only, known)
        grades.append(one)
        atomic_write(out / "reports" / f"{name}.txt", _report(one).encode())
        atomic_write(out / "grades.csv", _csv(grades).encode())  # after each, so that nothing is lost by stopping
        if progress:
            progress(one)
    return grades


def _refuse_unknown(task: str, value: float) -> None:
    """UsageError where no assignment has such a task, or it cannot be worth that."""
    every = assignments()
    known = [t.id for assignment in every for t in assignment.tasks]
    if task not in known:
        raise UsageError(f"points: no assignment has a task {task!r}{did_you_mean(task, known)}")
    next(a for a in every if task.startswith(f"{a.id}.")).with_points({task: value})


def _refuse_mistyped(paths: Sequence[Path]) -> None:
    """UsageError for what the caller got wrong; what a student got wrong is a row of the table."""
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file; nothing was graded")
        if not path.is_dir() or (path / STATE).is_file():
            continue
        with os_errors(path, "read"):
            inside = list(path.iterdir())
        sources = any(item.suffix in (".py", ".c", ".h") for item in inside)
        others = any(item.suffix == ".zip" or (item / STATE).is_file() for item in inside)
        if not sources and (others or len(paths) == 1):
            raise UsageError(f"{path}: a folder without {STATE}, nobody's work; give its files: {path}/*")


def _keep_earlier(out: Path) -> list[str]:
    """Move the table and the reports of an earlier call aside, under one free number. Returns their new paths."""
    if not (out / "grades.csv").exists():
        return []
    end, number = ".orig", 1
    while any((out / f"{name}{end}").exists() for name in ("grades.csv", "reports")):
        number += 1
        end = f".orig{number}"
    there = [name for name in ("grades.csv", "reports") if (out / name).exists()]
    return [str((out / name).rename(out / f"{name}{end}")) for name in there]


def _grade_one(
    path: Path, seed: int, points: Mapping[str, float], only: str | None, known: dict[str, Assignment]
) -> Grade:
    file = _line(path.name)
    try:
        submission: Submission = unpack(path)
    except (MinedgeError, OSError, RecursionError, MemoryError) as error:
        return Grade(file, "", only or "", None, _line(str(error)))
    student, name = _line(submission.student), submission.assignment
    if only is not None and name != only:
        return Grade(file, student, name, None, f"a submission for {name}, expected {only}", submission.remarks)
    assignment = known.setdefault(name, load(name))
    own = {task: value for task, value in points.items() if task.startswith(f"{name}.")}
    result = check_files(assignment.with_points(own), submission.files, seed)
    return Grade(file, student, name, result, _line(result.problem), submission.remarks)


def _report(one: Grade) -> str:
    head = [f"file     {one.file}", f"student  {one.student or '?'}", f"assignment {one.assignment or '?'}"]
    head += [f"remark   {_line(remark)}" for remark in one.remarks]
    if one.result is None:
        return "\n".join([*head, "", "points 0", "", one.problem]) + "\n"
    text = report(one.result, head)
    return "".join(c if c in "\n\t" else _CONTROL.sub("\ufffd", c) for c in text)


def _csv(grades: Sequence[Grade]) -> str:
    """One line for each submission; columns for the tasks of all assignments among them."""
    tasks = list(dict.fromkeys(task.id for one in grades if one.result for task in one.result.tasks))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "student", "assignment", "points", "of", *tasks, "problem", "misconceptions", "notes"])
    for one in grades:
        earned = {task.id: f"{task.earned:g}" for task in one.result.tasks} if one.result else {}
        hints = sorted(one.result.hints) if one.result else []
        of = f"{one.result.points:g}" if one.result else ""
        notes = [*one.remarks, *(one.result.notes if one.result else ())]
        notes += (
            [p.outcome.note for t in one.result.tasks for p in t.properties if p.outcome.note] if one.result else []
        )
        cells = [one.file, one.student, one.assignment, f"{one.points:g}", of, *(earned.get(t, "") for t in tasks)]
        writer.writerow([_cell(cell) for cell in (*cells, one.problem, " ".join(hints), "; ".join(notes))])
    return out.getvalue()


def _cell(text: str) -> str:
    """A cell that a spreadsheet does not take for a formula."""
    text = _line(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _line(text: str) -> str:
    return _CONTROL.sub(" ", text)[:500]


def _report_names(paths: Sequence[Path]) -> list[str]:
    """A name for each report, from the file's own; two of one name get numbers."""
    names: list[str] = []
    for path in paths:
        stem = path.stem if path.suffix == ".zip" else path.name
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).lstrip(".")[:80] or "submission"
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names
