"""Run an assignment's properties on a student's files, and count points."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minedge.course.content import Assignment, Task, load
from minedge.course.cut import handout, imports, signatures, source_path
from minedge.course.properties import Misconception, Outcome
from minedge.course.sandbox import CallError, Student
from minedge.course.start import changed_tests, read_state
from minedge.errors import UsageError
from minedge.io.jsonfile import open_regular

__all__ = [
    "CHECK_SEED",
    "MAX_FILE",
    "CheckResult",
    "PropertyResult",
    "TaskResult",
    "check_files",
    "check_folder",
    "check_task",
]

CHECK_SEED = 1  # what `check` draws its cases with, unless told otherwise
MAX_FILE = 512 << 10  # bytes of a student's file


@dataclass(frozen=True)
class PropertyResult:
    name: str
    says: str
    outcome: Outcome


@dataclass(frozen=True)
class TaskResult:
    id: str
    title: str
    points: float
    earned: float
    properties: tuple[PropertyResult, ...]


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one set of files. `problem` says why nothing could be run, `notes` what an instructor should see,
    `hints` the texts of the misconceptions that were recognised, by name.
    """

    assignment: str
    seed: int
    tasks: tuple[TaskResult, ...]
    points: float
    problem: str = ""
    notes: tuple[str, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)
    printed: str = ""
    seconds: float = 0.0

    @property
    def earned(self) -> float:
        return round(sum(task.earned for task in self.tasks), 2)

    @property
    def complete(self) -> bool:
        return not self.problem and all(p.outcome.ok for task in self.tasks for p in task.properties)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "earned": self.earned}


def check_folder(folder: str | Path, seed: int | None = None, task: str | None = None) -> CheckResult:
    """Check the folder that `start` made; `task` checks one task alone. MinedgeError where it is no such folder."""
    folder = Path(folder)
    state = read_state(folder)
    assignment = load(state["assignment"])
    files: dict[str, bytes] = {}
    for file in assignment.files:
        opened, _ = open_regular(folder / file.name, MAX_FILE)
        with opened:
            files[file.name] = opened.read() or b""
    result = check_files(assignment, files, CHECK_SEED if seed is None else seed, task)
    return replace(result, notes=(*result.notes, *changed_tests(folder, assignment)))


def check_task(folder: str | Path, task: str) -> None:
    """For a test runner: AssertionError that says what is wrong, unless the task has all its points."""
    result = check_folder(folder, task=task)
    if not result.complete:
        from minedge.course.report import failures

        raise AssertionError("\n".join(failures(result)) or result.problem)


def check_files(
    assignment: Assignment,
    files: Mapping[str, bytes],
    seed: int,
    task: str | None = None,
    runner: type[Student] = Student,
) -> CheckResult:
    """Check the files' contents by name. Never raises for what is in them: that is the verdict. `runner` holds the
    code; tests of trusted code take one without a process.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise UsageError(f"seed: expected an integer in [0, 2^32), got {seed!r}")
    wanted = assignment.tasks if task is None else (assignment.task(task),)
    begun = time.monotonic()
    missing = [file.name for file in assignment.files if file.name not in files]
    homes = {file.name: str(source_path(assignment, file)) for file in assignment.files if file.name.endswith(".py")}
    with runner(files, assignment.folder / "calls.py", assignment.limits, homes) as student:
        problem, notes = "", []
        if missing:
            problem = f"{missing[0]} is missing"
        else:
            try:
                student.start()
                notes = _notes(assignment, student)
            except CallError as error:
                problem = str(error)
        misconceptions = assignment.misconceptions
        tasks = tuple(_run_task(assignment, t, student, seed, problem, misconceptions) for t in wanted)
        named = {m for t in tasks for p in t.properties for m in p.outcome.misconceptions}
        return CheckResult(
            assignment=assignment.id,
            seed=seed,
            tasks=tasks,
            points=sum(t.points for t in wanted),
            problem=problem,
            notes=(*notes, *(f"{name}: the library's own answered, the solution" for name in sorted(student.taken))),
            hints={m.name: m.hint for m in misconceptions if m.name in named},
            printed=student.printed,
            seconds=round(time.monotonic() - begun, 2),
        )


def _run_task(
    assignment: Assignment,
    task: Task,
    student: Student,
    seed: int,
    problem: str,
    misconceptions: list[Misconception],
) -> TaskResult:
    results: list[PropertyResult] = []
    hung: set[str] = set()  # calls that did not end: asking them again would cost their whole time again
    for prop in (p for p in assignment.properties if p.task == task.id):
        call = getattr(prop, "call", prop.name)
        if problem:
            outcome = Outcome(False, detail=problem, kind="problem")
        elif call in hung:
            outcome = Outcome(False, detail=f"not run: {call} did not end before", kind="timeout")
        else:
            rng = np.random.default_rng([seed, zlib.crc32(f"{prop.task} {prop.name}".encode())])
            try:
                outcome = prop.run(student, rng, misconceptions)
            except CallError as error:
                outcome = Outcome(False, detail=str(error), kind=error.kind)
            except Exception as error:  # an answer that no comparison foresaw costs its points and nothing else
                detail = f"the answer cannot be used: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                outcome = Outcome(False, detail=detail, kind="answer")
            if outcome.kind == "timeout":
                hung.add(call)
        results.append(PropertyResult(prop.name, prop.says, outcome))
    share = sum(result.outcome.credit for result in results) / len(results) if results else 0.0
    return TaskResult(task.id, task.title, task.points, round(task.points * share, 2), tuple(results))


def _notes(assignment: Assignment, student: Student) -> list[str]:
    """What the run itself does not show: renamed parameters, and where the code takes the solution from."""
    notes: list[str] = []
    for file in assignment.files:
        if not file.name.endswith(".py"):
            continue
        text = handout(assignment, file)
        theirs = student.signatures.get(file.name, {})
        for name, parameters in signatures(text).items():
            if name not in theirs:
                continue  # missing or moved: the properties that need it say so
            if theirs[name] != parameters:
                told, wanted = ", ".join(map(str, theirs[name])), ", ".join(parameters)
                notes.append(f"{file.name}: the handout has {name}({wanted}), this file {name}({told})"[:300])
    python = [file for file in assignment.files if file.name.endswith(".py")]
    ours = {name for file in python for name in imports(handout(assignment, file))}
    homes = {file.source for file in python}
    homes |= {home.rpartition(".")[0] for home in homes if home.startswith("minedge.ops")}
    notes += [f"imports {name}, where the solution stands" for name in sorted(homes & set(student.imports) - ours)]
    return list(dict.fromkeys(notes))
