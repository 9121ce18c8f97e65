"""The assignments that come with the package: where they stand and what `assignment.json` says about each."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from minedge.config import did_you_mean
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.jsonfile import read_json

__all__ = ["Assignment", "File", "Limits", "Task", "assignments", "load", "root"]


@dataclass(frozen=True)
class File:
    """A file that the student fills in: cut from the module `source`, or from a file beside assignment.json ("./x")."""

    name: str
    source: str

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Task:
    id: str
    title: str
    points: float


@dataclass(frozen=True)
class Limits:
    """What a student's process may use: seconds for one call and for all, memory, file size, processes of its own."""

    seconds: float = 5.0
    total_seconds: float = 60.0
    memory_mb: int = 2000
    file_mb: int = 16
    processes: int = 0


@dataclass(frozen=True)
class Assignment:
    """One assignment. `folder` holds handout.md, calls.py (child side), properties.py and misconceptions.py. `given`
    lists solution lines that may stand in the handout, because they say nothing.
    """

    id: str
    title: str
    hours: float
    files: tuple[File, ...]
    tasks: tuple[Task, ...]
    folder: Path
    docstrings: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    given: tuple[str, ...] = ()

    @property
    def points(self) -> float:
        return sum(task.points for task in self.tasks)

    def task(self, name: str) -> Task:
        for task in self.tasks:
            if task.id == name:
                return task
        known = [task.id for task in self.tasks]
        raise UsageError(f"task: expected one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")

    def with_points(self, points: Mapping[str, float]) -> Assignment:
        """The same assignment with other points for the tasks that `points` names."""
        for name, value in points.items():
            self.task(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
                raise UsageError(f"points: expected a number >= 0 for {name}, got {value!r}")
        return replace(self, tasks=tuple(replace(t, points=points.get(t.id, t.points)) for t in self.tasks))

    @cached_property
    def properties(self) -> list[Any]:
        """What is tested, in the order of the tasks."""
        order = [task.id for task in self.tasks]
        return sorted(self._module("properties").PROPERTIES, key=lambda p: order.index(p.task))

    @cached_property
    def misconceptions(self) -> list[Any]:
        """The wrong ideas it knows, those that are given as a change of the solution made ready."""
        from minedge.course.mutation import changed_solution

        found = list(self._module("misconceptions").MISCONCEPTIONS)
        calls = self._module("calls") if any(m.change for m in found) else types.ModuleType("calls")
        return [replace(m, changed=changed_solution(self, m.file, m.change, calls)) if m.change else m for m in found]

    def _module(self, stem: str) -> types.ModuleType:
        path = self.folder / f"{stem}.py"
        spec = importlib.util.spec_from_file_location(f"minedge_course_{self.id}_{stem}", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise MinedgeFormatError(f"{path}: no such file; assignment {self.id} is not complete")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def root() -> Path:
    """The folder of assignments: in the installed package, else in the source tree beside it."""
    import minedge

    package = Path(minedge.__file__).parent
    for folder in (package / "tutorials" / "assignments", package.parent / "tutorials" / "assignments"):
        if any(folder.glob("a*/assignment.json")):
            return folder
    raise UsageError("course: this installation of minedge has no assignments; install it from a wheel or its sources")


def assignments() -> list[Assignment]:
    """All of them, a1 first."""
    names = (path.parent.name for path in root().glob("a*/assignment.json"))
    return [load(name) for name in sorted(names, key=lambda name: (len(name), name))]


def load(name: str) -> Assignment:
    """Assignment `name`, such as "a1". UsageError with the nearest name where there is none."""
    folder = root() / name
    known = sorted(path.parent.name for path in root().glob("a*/assignment.json"))
    if name not in known:
        raise UsageError(f"assignment: expected one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")
    path = folder / "assignment.json"
    data = read_json(path)
    try:
        return Assignment(
            id=data["id"],
            title=data["title"],
            hours=data["hours"],
            files=tuple(File(**entry) for entry in data["files"]),
            tasks=tuple(Task(**entry) for entry in data["tasks"]),
            folder=folder,
            docstrings=data.get("docstrings", {}),
            limits=Limits(**data.get("limits", {})),
            given=tuple(data.get("given", ())),
        )
    except (KeyError, TypeError) as error:
        raise MinedgeFormatError(f"{path}: {error}") from None
