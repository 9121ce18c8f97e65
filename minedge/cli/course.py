"""minedge course: hand out assignments, check them, pack them, grade them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minedge.cli.console import Console
from minedge.cli.parser import Parser, integer, one_of

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "parser", "run"]

DESCRIPTION = """Assignments that are cut from this package's own sources: eight, from the ops of a transformer to a
kernel in C. Students start, check and submit; instructors grade."""
EXAMPLES = (
    "minedge course start a1 my-a1",
    "minedge course check my-a1 --task a1.2",
    'minedge course submit my-a1 --student "Ada L."',
    "minedge course grade inbox/a1-Ada.zip inbox/a1-Bob.zip --assignment a1 --out graded",
)
MISSING_POINTS = 5
NOT_GRADED = 1


class _Argument(NamedTuple):
    names: tuple[str, ...]
    settings: dict[str, Any]


def _argument(*names: str, **settings: Any) -> _Argument:
    return _Argument(names, settings)


class _Action(NamedTuple):
    """One action: a line about it, the text of its help, examples, and its arguments."""

    summary: str
    description: str
    examples: tuple[str, ...]
    arguments: tuple[_Argument, ...] = ()


_FOLDER = _argument("folder", metavar="DIR", help="the folder that start made")
_STUDENT = _argument("--student", metavar="NAME", help="the name or number the course knows you by")


def _seed(default: int) -> _Argument:
    told = f"draw the cases with N (default: {default})"
    return _argument("--seed", type=integer(0, (1 << 32) - 1), metavar="N", help=told)


ACTIONS = {
    "list": _Action(
        "which assignments there are",
        "The assignments, with the number of their tasks, points and hours; with --json each task and file as well.",
        ("minedge course list", "minedge course list --json"),
    ),
    "start": _Action(
        "make a folder to work in",
        """Write an assignment into a new folder: handout.md to read, the files with blanks to fill in, and the public
        tests. A blank is a line that raises NotImplementedError (in C: NOT_IMPLEMENTED) with its task's number.""",
        ("minedge course start a1 my-a1", 'minedge course start a7 my-a7 --student "Ada L."'),
        (
            _argument("assignment", metavar="aN", help="the assignment, such as a1"),
            _argument("folder", metavar="DIR", help="the folder to make"),
            _STUDENT,
        ),
    ),
    "check": _Action(
        "points, the first failing case, a hint",
        """Test the files of a folder that start made: points for each task, and for each part that fails its first
        failing case, expected against got, and a hint where a wrong idea is recognised. Ends with 0 when all points
        are there, with 5 while some are missing.""",
        ("minedge course check my-a1", "minedge course check my-a1 --task a1.2", "minedge course check my-a1 --seed 7"),
        (_FOLDER, _argument("--task", metavar="ID", help="this task alone, such as a1.2"), _seed(1)),
    ),
    "submit": _Action(
        "pack one file to hand in",
        """Pack the files of a folder that start made into one archive. What is still blank is named, and handed in as
        it is. An earlier archive of the same name is replaced.""",
        ("minedge course submit my-a1", 'minedge course submit my-a1 --student "Ada L." --out a1-ada.zip'),
        (
            _FOLDER,
            _STUDENT,
            _argument("--out", "-o", metavar="FILE", help="the archive to write (default: ASSIGNMENT-STUDENT.zip)"),
        ),
    ),
    "reset": _Action(
        "the handed-out files back",
        "Put the handed-out files back into a folder. What you wrote is kept beside them, as NAME.orig.",
        ("minedge course reset my-a1", "minedge course check my-a1"),
        (_FOLDER,),
    ),
    "grade": _Action(
        "grade what was handed in",
        """Grade archives, and folders that start made. Each is run in a process of its own with limits on time, memory
        and files; whatever is in one costs nobody else anything. Writes grades.csv and a report for each, and keeps
        those of an earlier run as grades.csv.orig and reports.orig. Ends with 0 where each was graded, whatever its
        points, and with 1 where one could not be (a damaged archive, another assignment): its row says why. In a class
        that you do not trust, run it in a container.""",
        (
            "minedge course grade inbox/*.zip --assignment a1 --out graded-a1",
            "minedge course grade inbox/*.zip --points points.json --seed 4711",
        ),
        (
            _argument("files", nargs="+", metavar="FILES", help="what was handed in: archives or folders"),
            _argument("--assignment", metavar="ID", help="the assignment that all submissions have to be of"),
            _argument(
                "--points", metavar="FILE",
                help='a JSON file with other points, such as {"a1.2": 30}; 0 takes a task out',
            ),
            _seed(2),
            _argument("--out", "-o", metavar="DIR", help="the folder to write into (default: graded)"),
        ),
    ),
}  # fmt: skip


def parser(words: Sequence[str]) -> Parser:
    """The parser of the action that is among `words`; without one, that of the verb, which lists the actions."""
    name = next((word for word in words if word in ACTIONS), "")
    if not name:
        made = Parser("course", DESCRIPTION, EXAMPLES)
        width = max(map(len, ACTIONS))
        lines = "\n".join(f"  {key.ljust(width)}  {action.summary}" for key, action in ACTIONS.items())
        told = "minedge course ACTION --help shows an action's options with examples."
        made.epilog = f"actions:\n{lines}\n\n{told}\n\n{made.epilog}"
        add_options(made)
        return made
    action = ACTIONS[name]
    made = Parser(f"course {name}", action.description, action.examples)
    made.add_argument("action", type=one_of(*ACTIONS), help=argparse.SUPPRESS)
    for names, settings in action.arguments:
        made.add_argument(*names, **settings)
    return made


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the verb has without an action; `parser` has the actions'."""
    parser.add_argument("action", type=one_of(*ACTIONS), metavar="ACTION", help="what to do, of those below")


def run(args: argparse.Namespace, console: Console) -> int:
    does = {"list": _list, "start": _start, "check": _check, "submit": _submit, "reset": _reset, "grade": _grade}
    return does[args.action](args, console)


def _list(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import assignments

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

    assignment = load(args.assignment)
    path = start(assignment.id, args.folder, args.student or "")
    files = [file.name for file in assignment.files]
    console.out(f"wrote {assignment.id} ({assignment.title}) to {path}")
    console.note(f"read   {path / 'handout.md'}\nfill   {', '.join(files)}\ncheck  minedge course check {path}")
    console.result({"assignment": assignment.id, "folder": str(path), "files": files})
    return 0


def _check(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import check_folder
    from minedge.course.report import failures, table

    result = check_folder(args.folder, args.seed, args.task)
    console.table(["task", "title", "points"], [(t, title, points) for t, points, title in table(result)], left=2)
    for line in failures(result):
        console.out(line if line.startswith(" ") else f"\n{line}")
    for line in [p.outcome.note for t in result.tasks for p in t.properties if p.outcome.note]:
        console.out(f"\n{line}")
    for note in result.notes:
        console.out(f"\nnote: {note}")
    if result.printed:
        console.note("\nyour code printed (the first characters):\n  " + result.printed.rstrip().replace("\n", "\n  "))
    console.out(f"\n{result.earned:g} of {result.points:g} points (seed {result.seed}, {result.seconds:.1f} s)")
    console.result(result.to_dict())
    return 0 if result.complete else MISSING_POINTS


def _submit(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import submit
    from minedge.course.submit import unfinished

    path = submit(args.folder, args.out, args.student)
    remarks = unfinished(args.folder)
    console.out(f"wrote {path}, {path.stat().st_size:,} bytes: hand this file in")
    for remark in remarks:
        console.out(f"note: {remark}")
    console.result({"file": str(path), "bytes": path.stat().st_size, "notes": remarks})
    return 0


def _reset(args: argparse.Namespace, console: Console) -> int:
    from minedge.course import reset

    kept = reset(args.folder)
    console.out(
        f"the handed-out files are back in {args.folder}" + (f"; yours are kept as {', '.join(kept)}" if kept else "")
    )
    console.result({"folder": args.folder, "kept": kept})
    return 0


def _grade(args: argparse.Namespace, console: Console) -> int:
    from minedge.course.grade import GRADE_SEED, Grade, grade
    from minedge.io.jsonfile import read_json

    points = read_json(args.points, max_bytes=1 << 16) if args.points else {}

    def show(one: Grade) -> None:
        of = f" of {one.result.points:g}" if one.result else ""
        line = f"{one.file}  {one.student or '?'}  {one.points:g}{of}"
        console.out(f"{line}  {one.problem}" if one.problem else line)

    out = Path(args.out or "graded")
    seed = GRADE_SEED if args.seed is None else args.seed
    grades = grade(args.files, out, seed, points, args.assignment, show, console.note)
    count = "1 report" if len(grades) == 1 else f"{len(grades)} reports"
    console.out(f"wrote {out / 'grades.csv'} and {count} in {out / 'reports'}")
    console.result({"csv": str(out / "grades.csv"), "grades": [_row(one) for one in grades]})
    # As nbgrader's autograde: what a student earned is no failure of the grading.
    return NOT_GRADED if any(one.result is None for one in grades) else 0


def _row(one: Any) -> dict[str, Any]:
    return {
        "file": one.file, "student": one.student, "assignment": one.assignment, "points": one.points,
        "problem": one.problem, "remarks": list(one.remarks), "result": one.result.to_dict() if one.result else None,
    }  # fmt: skip
