"""Plant a wrong idea into a solved assignment, and run an assignment's checks without a process of its own."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any, NamedTuple

from minedge.course import worker
from minedge.course.check import CheckResult, check_files
from minedge.course.content import Assignment
from minedge.course.cut import solution
from minedge.course.mutation import kinds_kept
from minedge.course.sandbox import CallError, Student, _call_error
from minedge.course.wire import pack, unpack

__all__ = ["APART", "InProcess", "Planted", "from_changes", "planted_files", "solved", "verdict"]


APART = ("a7", "a8")  # C that crashes takes its process along; a recipe is run in several


class Planted(NamedTuple):
    """`old` -> `new` in the solved file `file`; the hint of `misconception` has to be printed. `old` may be a tuple of
    texts, replaced by those of `new` in turn.
    """

    misconception: str
    file: str
    old: str | tuple[str, ...]
    new: str | tuple[str, ...]


def from_changes(assignment: Assignment) -> list[Planted]:
    """The misconceptions that are given as a change of the solution, planted as they stand."""
    return [
        Planted(m.name, m.file, tuple(old for old, _ in m.change), tuple(new for _, new in m.change))
        for m in assignment.misconceptions
        if m.change
    ]


def solved(assignment: Assignment) -> dict[str, bytes]:
    return {file.name: solution(assignment, file).encode() for file in assignment.files}


def planted_files(assignment: Assignment, plant: Planted) -> dict[str, bytes]:
    files = solved(assignment)
    text = files[plant.file].decode()
    olds, news = ((x,) if isinstance(x, str) else x for x in (plant.old, plant.new))
    for old, new in zip(olds, news, strict=True):
        found = text.count(old)
        assert found == 1, f"{plant.misconception}: expected {old!r} once in {plant.file}, found it {found} times"
        text = text.replace(old, new)
    return {**files, plant.file: text.encode()}


def verdict(assignment: Assignment, files: dict[str, bytes], seed: int = 1, apart: bool = False) -> CheckResult:
    """check_files, with `apart` in the real process, otherwise in this one."""
    return check_files(assignment, files, seed, runner=Student if apart or assignment.id in APART else InProcess)


@functools.cache
def _calls(path: Path) -> types.ModuleType:
    return worker._module(f"calls_{path.parent.name}", path)


class InProcess(Student):
    """The same calls, with the same way of data there and back, in the tests' own process: for code we trust."""

    def start(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if hasattr(self, "student"):
            return
        paths = {name: Path(path) for name, path in self._files.items()}
        self.student = types.SimpleNamespace(files=paths)
        try:
            module = _calls(self._calls)
            if hasattr(module, "setup"):
                module.setup(self.student, paths)
            for name in (name for name in paths if name.endswith(".py")):
                stem = Path(name).stem
                with kinds_kept():
                    loaded = worker._module(stem, paths[name], f"student_{stem}")
                self.signatures[name] = worker._signatures(loaded)
                setattr(self.student, stem, worker._Named(loaded, name))
        except BaseException as error:
            self._fatal = _call_error(worker._failure(error, paths))
            raise self._fatal from error

    def call(self, name: str, **args: Any) -> dict[str, Any]:
        self.start()
        paths = {key: Path(path) for key, path in self._files.items()}
        body = pack({"call": name, "args": args})[8:]
        answer = worker._answer(body, _calls(self._calls), self.student, paths)
        try:
            answer = unpack(pack(answer)[8:])
        except TypeError as error:
            raise CallError("answer", f"returned {error}") from None
        if not answer["ok"]:
            raise _call_error(answer)
        self.changed = answer["changed"]
        return answer["value"]
