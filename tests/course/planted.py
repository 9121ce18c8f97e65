"""Plant a wrong idea into a solved assignment, and run an assignment's checks without a process of its own."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from minedge.course import content, worker
from minedge.course.check import CheckResult, check_files
from minedge.course.content import Assignment, Limits
from minedge.course.cut import solution, source_path
from minedge.course.mutation import kinds_kept
from minedge.course.sandbox import CallError, Student, _call_error
from minedge.course.watch import Watch
from minedge.course.wire import pack, unpack

__all__ = [
    "APART", "InProcess", "Once", "Planted", "Remembered", "Untimed", "from_changes", "load", "planted_files", "solved",
    "verdict",
]  # fmt: skip


APART = ("a7", "a8")  # C that crashes takes its process along; a recipe is run in several

# C compiled for a planted error is run on small arrays and never timed, so it need not be fast. Most of the compiler's
# time goes into the header of intrinsics, which one folder keeps ready. A compiler that cannot use that reads it again.
_QUICK_CC = """#!/bin/sh
exec {compiler} -include {folder}/all.h "$@" -O0
"""
_HEADERS = "#include <pthread.h>\n#include <stdint.h>\n#if defined(__x86_64__)\n#include <immintrin.h>\n#endif\n"


@functools.cache
def load(name: str) -> Assignment:
    """The assignment, read once: making its misconceptions ready takes longer than most tests."""
    return content.load(name)


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
    runner = Student if apart or assignment.id in APART else InProcess
    return check_files(assignment, files, seed, runner=Remembered if assignment.id == "a8" else runner)


@functools.cache
def quick_compiler() -> str:
    """A compiler for CC that takes a fifth of the time over a7's file."""
    folder = Path(tempfile.mkdtemp(prefix="minedge-course-cc-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    compiler = os.environ.get("CC", "") or next(c for c in ("cc", "gcc", "clang") if shutil.which(c))
    (folder / "all.h").write_text(_HEADERS)
    flags = [*a7_flags(), "-fPIC", "-O0"]
    subprocess.run([*compiler.split(), *flags, "-x", "c-header", folder / "all.h", "-o", folder / "all.h.gch"])
    script = folder / "cc"
    script.write_text(_QUICK_CC.format(compiler=compiler, folder=folder))
    script.chmod(0o755)
    return str(script)


def a7_flags() -> list[str]:
    return worker._module("calls_a7", load("a7").folder / "calls.py").FLAGS


class Untimed(Student):
    """a7 without its measurements of speed: what is planted shows in the numbers. The reference is not compiled."""

    def __init__(self, files: Mapping[str, bytes], calls: Path, limits: Limits, homes: Mapping[str, str] | None = None):
        super().__init__(files, calls, limits, homes)
        self._folder.joinpath("reference.so").symlink_to(_reference())

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "CC": quick_compiler()}

    def call(self, name: str, **args: Any) -> dict[str, Any]:
        if name == "speed":
            return {"measured": True, "own": 1.0, "reference": 1.0, "bytes": 1}
        return super().call(name, **args)


@functools.cache
def _reference() -> Path:
    """The solution, compiled."""
    source = source_path(load("a7"), load("a7").files[0])
    library = Path(quick_compiler()).with_name("reference.so")
    subprocess.run([quick_compiler(), *a7_flags(), "-fPIC", "-shared", source, "-o", library], check=True)
    return library


class Remembered(Student):
    """a8: what a recipe builds does not depend on the check's seed, so equal files are built once in a run, and once
    again for comparison.
    """

    _remembered: ClassVar[dict[tuple[bytes, ...], dict[int, dict[str, Any]]]] = {}

    def __init__(self, files: Mapping[str, bytes], calls: Path, limits: Limits, homes: Mapping[str, str] | None = None):
        super().__init__(files, calls, limits, homes)
        self._key, self._turn = tuple(files.values()), 0

    def twin(self) -> Student | None:
        twin = super().twin()
        if twin is not None:
            twin._turn = 1  # type: ignore[attr-defined]
        return twin

    def call(self, name: str, **args: Any) -> dict[str, Any]:
        known, self._turn = self._remembered.setdefault(self._key, {}), self._turn + 1
        if self._turn not in known:
            known[self._turn] = super().call(name, **args)
        return known[self._turn]


class Once(Remembered):
    """a8 where another error than a difference between two builds is planted: the first build stands for both."""

    def twin(self) -> None:
        return None

    def call(self, name: str, **args: Any) -> dict[str, Any]:
        self._turn = 0
        return super().call(name, **args)


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
        answer = worker._answer(body, _calls(self._calls), self.student, paths, Watch({}, {}))
        try:
            answer = unpack(pack(answer)[8:])
        except TypeError as error:
            raise CallError("answer", f"returned {error}") from None
        if not answer["ok"]:
            raise _call_error(answer)
        self.changed = answer["changed"]
        return answer["value"]
