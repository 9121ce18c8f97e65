"""minedge course: hand out assignments, check them, pack them, grade them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minedge.cli.console import Console
from minedge.cli.parser import integer, one_of
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Assignments that are cut from this package's own sources. list: which there are. start aN DIR:
write the handout, the files with blanks and the public tests. check DIR: points for each task, the first failing
case, expected against got, and a hint; ends with 5 while points are missing. submit DIR: pack one file to hand in.
reset DIR: put the handed-out files back, keeping yours beside them. grade FILES...: grade what was handed in, each in
a process of its own with limits; writes grades.csv and a report for each, and keeps those of an earlier run as
grades.csv.orig and reports.orig."""
EXAMPLES = (
    "minedge course start a1 my-a1",
    "minedge course check my-a1 --task a1.2",
    'minedge course submit my-a1 --student "Ada L."',
    "minedge course grade inbox/a1-Ada.zip inbox/a1-Bob.zip --assignment a1 --out graded",
)
ACTIONS = ("list", "start", "check", "submit", "reset", "grade")
MISSING_POINTS = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", type=one_of(*ACTIONS), metavar="ACTION", help=f"one of {', '.join(ACTIONS)}")
    add("words", nargs="*", metavar="WHAT", help="aN DIR for start, FILES for grade, DIR for the others")
    add("--task", metavar="ID", help="check: this task alone, such as a1.2")
    add("--seed", type=integer(0, (1 << 32) - 1), metavar="N", help="draw the cases with N (default: check 1, grade 2)")
    add("--student", metavar="NAME", help="start, submit: the name or number the course knows you by")
    add("--out", "-o", metavar="PATH", help="submit: the file to write; grade: the folder (default: graded)")
    add("--assignment", metavar="ID", help="grade: the assignment that all submissions have to be of")
    add("--points", metavar="FILE", help='grade: a JSON file with other points, such as {"a1.2": 30}')


def run(args: argparse.Namespace, console: Console) -> int:
    allowed = {
        "check": {"task", "seed"}, "start": {"student"}, "submit": {"student", "out"},
        "grade": {"seed", "out", "assignment", "points"},
    }  # fmt: skip
    for option in ("task", "seed", "student", "out", "assignment", "points"):
        if getattr(args, option) is not None and option not in allowed.get(args.action, set()):
            raise UsageError(f"--{option}: {args.action} has no such option; see minedge course --help")
    return {"list": _list, "start": _start, "check": _check, "submit": _submit, "reset": _reset, "grade": _grade}[
        args.action
    ](args, console)


def _words(args: argparse.Namespace, *names: str) -> list[str]:
    if len(args.words) != len(names):
        raise UsageError(
            f"{args.action}: expected {' '.join(names) or 'nothing more'}, got {' '.join(args.words) or 'nothing'}"
        )
    return args.words


def _list(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import assignments

    _words(args)
    found = assignments()
    rows = [(a.id, a.title, len(a.tasks), f"{a.points:g}", f"{a.hours:g}") for a in found]
    console.table(["id", "title", "tasks", "points", "hours"], rows, left=2)
    console.note("\nminedge course start a1 my-a1   writes the first into the folder my-a1")
    console.result([
        {"id": a.id, "title": a.title, "hours": a.hours, "points": a.points, "files": [f.name for f in a.files],
         "tasks": [{"id": t.id, "title": t.title, "points": t.points} for t in a.tasks]} for a in found
    ])  # fmt: skip
    return 0


def _start(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import load, start

    name, folder = _words(args, "aN", "DIR")
    path = start(name, folder, args.student or "")
    assignment = load(name)
    files = [file.name for file in assignment.files]
    console.out(f"wrote {assignment.id} ({assignment.title}) to {path}")
    console.note(f"read   {path / 'handout.md'}\nfill   {', '.join(files)}\ncheck  minedge course check {path}")
    console.result({"assignment": name, "folder": str(path), "files": files})
    return 0


def _check(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import check_folder
    from minedge.course.report import failures, table

    (folder,) = _words(args, "DIR")
    result = check_folder(folder, args.seed, args.task)
    console.table(["task", "title", "points"], [(t, title, points) for t, points, title in table(result)], left=2)
    for line in failures(result):
        console.out(line if line.startswith(" ") else f"\n{line}")
    for line in [p.outcome.note for t in result.tasks for p in t.properties if p.outcome.note]:
        console.out(f"\n{line}")
    for note in result.notes:
        console.out(f"\nnote: {note}")
    if result.printed:
        console.note("\nyour code printed (the first characters):\n  " + result.printed.replace("\n", "\n  "))
    console.out(f"\n{result.earned:g} of {result.points:g} points (seed {result.seed}, {result.seconds:.1f} s)")
    console.result(result.to_dict())
    return 0 if result.complete else MISSING_POINTS


def _submit(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import submit

    (folder,) = _words(args, "DIR")
    path = submit(folder, args.out, args.student)
    console.out(f"wrote {path}, {path.stat().st_size:,} bytes: hand this file in")
    console.result({"file": str(path), "bytes": path.stat().st_size})
    return 0


def _reset(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import reset

    (folder,) = _words(args, "DIR")
    kept = reset(folder)
    console.out(
        f"the handed-out files are back in {folder}" + (f"; yours are kept as {', '.join(kept)}" if kept else "")
    )
    console.result({"folder": folder, "kept": kept})
    return 0


def _grade(args: argparse.Namespace, console: Console) -> int:
    from minedge.course.grade import GRADE_SEED, Grade, grade
    from minedge.io.jsonfile import read_json

    if not args.words:
        raise UsageError("grade: expected the files that were handed in, got nothing")
    points = read_json(args.points, max_bytes=1 << 16) if args.points else {}

    def show(one: Grade) -> None:
        of = f" of {one.result.points:g}" if one.result else ""
        line = f"{one.file}  {one.student or '?'}  {one.points:g}{of}"
        console.out(f"{line}  {one.problem}" if one.problem else line)

    out = Path(args.out or "graded")
    seed = GRADE_SEED if args.seed is None else args.seed
    grades = grade(args.words, out, seed, points, args.assignment, show, console.note)
    count = "1 report" if len(grades) == 1 else f"{len(grades)} reports"
    console.out(f"wrote {out / 'grades.csv'} and {count} in {out / 'reports'}")
    console.result({"csv": str(out / "grades.csv"), "grades": [_row(one) for one in grades]})
    return 0


def _row(one: Any) -> dict[str, Any]:
    return {
        "file": one.file, "student": one.student, "assignment": one.assignment, "points": one.points,
        "problem": one.problem, "remarks": list(one.remarks), "result": one.result.to_dict() if one.result else None,
    }  # fmt: skip
