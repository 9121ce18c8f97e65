"""A wrong idea as a change of the solved file: the solution with a text replaced computes what the idea gives.

Used where writing the wrong behaviour by hand would mean writing a transformer again. The changed files are the
library's own sources and run in the grader's process, never anything of a student's.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from minedge.course.content import Assignment
from minedge.course.cut import solution
from minedge.course.wire import pack, unpack
from minedge.errors import MinedgeFormatError
from minedge.model import linears

__all__ = ["changed_solution", "kinds_kept", "module_from"]

_numbers = itertools.count()


def changed_solution(
    assignment: Assignment, file: str, changes: tuple[tuple[str, str], ...], calls: types.ModuleType
) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    """A function (call, arguments) -> what the assignment's call gives when `file` has each old text replaced by the
    new one. The modules are made at the first use.
    """
    made: list[types.SimpleNamespace] = []

    def answer(call: str, case: Mapping[str, Any]) -> dict[str, Any]:
        if not made:
            made.append(_student(assignment, file, changes))
        arguments = unpack(pack(dict(case))[8:])  # as they arrive in the student's process
        return unpack(pack(getattr(calls, call)(made[0], **arguments))[8:])

    return answer


def module_from(text: str, stem: str, where: str) -> types.ModuleType:
    """A module made from source text, without a trace in the registry of linear kinds."""
    module = types.ModuleType(f"minedge_course_made_{next(_numbers)}_{stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with kinds_kept():
        exec(compile(text, where, "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def kinds_kept() -> Iterator[None]:
    """Linear kinds that are registered inside are forgotten at the end: a second LoRA must not replace the first."""
    before = dict(linears._KINDS)
    classes = {name: cls.kind for name, cls in before.items()}
    try:
        yield
    finally:
        linears._KINDS.clear()
        linears._KINDS.update(before)
        for name, cls in before.items():
            cls.kind = classes[name]


def _student(assignment: Assignment, file: str, changes: tuple[tuple[str, str], ...]) -> types.SimpleNamespace:
    student = types.SimpleNamespace(files={})
    for entry in (entry for entry in assignment.files if entry.name.endswith(".py")):
        text = solution(assignment, entry)
        if entry.name == file:
            for old, new in changes:
                if text.count(old) != 1:
                    raise MinedgeFormatError(f"{file}: expected {old!r} once, found it {text.count(old)} times")
                text = text.replace(old, new)
        setattr(student, entry.stem, module_from(text, entry.stem, f"<{entry.name}, changed>"))
    return student
