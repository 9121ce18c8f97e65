"""`start` writes the folder a student works in, `reset` its files anew; both from the installed package."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from minedge.course.content import Assignment, load
from minedge.course.cut import handout, leaks
from minedge.errors import MinedgeError, MinedgeFormatError, UsageError
from minedge.io.atomic import atomic_dir, atomic_write, os_errors
from minedge.io.jsonfile import dump_json, read_json

__all__ = ["STATE", "changed_tests", "files_of", "read_state", "reset", "start"]

STATE = "course.json"
_PUBLIC_TEST = '''"""The public tests: one for each task. python -m pytest runs them; minedge course check . tells more.

What is tested stands in properties.py, a copy to read: check and grade always run the installed one.
"""

from pathlib import Path

import pytest

from minedge.course import check_task


@pytest.mark.parametrize("task", {tasks!r})
def test_task(task):
    check_task(Path(__file__).parent, task)
'''


def start(name: str, folder: str | Path, student: str = "") -> Path:
    """Write assignment `name` into `folder`, which must not exist or be empty. Returns the folder."""
    assignment, folder = load(name), Path(folder)
    if (folder / STATE).is_file():
        raise UsageError(f"{folder} exists already; give a new folder, or minedge course reset {folder} to begin anew")
    if folder.is_dir() and folder.samefile(Path()):
        raise UsageError(f"{folder} is the folder you are in; give a new one, which start makes")
    if folder.is_dir() and not any(folder.iterdir()):
        with os_errors(folder):
            folder.rmdir()
    if os.path.lexists(folder):
        what = "and is not empty" if folder.is_dir() else "and is no folder"
        raise UsageError(f"{folder} exists already {what}; give a new folder")
    with atomic_dir(folder) as temporary:
        for file, data in files_of(assignment).items():
            (temporary / file).write_bytes(data)
        state = {"assignment": assignment.id, "student": student}
        dump_json(state, temporary / STATE)
    return folder


def reset(folder: str | Path) -> list[str]:
    """Put the handed-out files back; what the student wrote is kept beside them as NAME.orig. Returns the names."""
    folder = Path(folder)
    assignment = load(read_state(folder)["assignment"])
    student = {file.name for file in assignment.files}
    kept = []
    with os_errors(folder):
        for name, data in files_of(assignment).items():
            target = folder / name
            if name in student and target.is_file() and target.read_bytes() != data:
                copy = folder / f"{name}.orig"
                number = 1
                while copy.exists():
                    number += 1
                    copy = folder / f"{name}.orig{number}"
                shutil.copyfile(target, copy)
                kept.append(copy.name)
            atomic_write(target, data)
    return kept


def files_of(assignment: Assignment) -> dict[str, bytes]:
    """Name -> content of all that `start` writes beside course.json. No solution line is in it: MinedgeError if so."""
    texts = {file.name: handout(assignment, file) for file in assignment.files}
    tasks = "\n".join(f"| {t.id} | {t.title} | {t.points:g} |" for t in assignment.tasks)
    table = f"| task | what | points |\n|---|---|---|\n{tasks}"
    text = (assignment.folder / "handout.md").read_text(encoding="utf-8")
    texts["handout.md"] = text.replace("{tasks}", table).replace("{files}", ", ".join(f"`{name}`" for name in texts))
    texts["properties.py"] = (assignment.folder / "properties.py").read_text(encoding="utf-8")
    texts["test_public.py"] = _PUBLIC_TEST.format(tasks=[t.id for t in assignment.tasks])
    found = leaks(assignment, texts.values())
    if found:
        raise MinedgeError(f"{assignment.id}: a line of the solution stands in the handout: {found[0]!r}")
    return {name: text.encode() for name, text in texts.items()}


def changed_tests(folder: Path, assignment: Assignment) -> list[str]:
    """A remark for each public test file of the folder that is not as the installed package has it."""
    given, odd = files_of(assignment), []
    for name in ("properties.py", "test_public.py"):
        path = folder / name
        with contextlib.suppress(OSError):
            if path.is_file() and (path.stat().st_size != len(given[name]) or path.read_bytes() != given[name]):
                odd.append(f"{name} here differs from the installed one, which is what is run")
    return odd


def read_state(folder: Path) -> dict[str, Any]:
    """What course.json says. MinedgeFormatError where the folder is not one that `start` made."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; minedge course start a1 {folder} makes one")
    if not (folder / STATE).is_file():
        raise UsageError(f"{folder}: no {STATE} in it; it is not a folder that minedge course start made")
    state = read_json(folder / STATE, max_bytes=1 << 16)
    if not isinstance(state.get("assignment"), str) or not isinstance(state.get("student", ""), str):
        raise MinedgeFormatError(f"{folder / STATE}: expected the keys assignment and student, both texts")
    return state
