"""Each assignment as a whole: solutions score, handouts do not, nothing leaks, wrong ideas are named."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from minedge.course import assignments
from minedge.course.check import check_files
from minedge.course.cut import blocks, handout, leaks
from minedge.course.grade import GRADE_SEED
from minedge.course.report import report
from minedge.course.sandbox import Student
from minedge.course.start import files_of
from tests.course.planted import (
    APART,
    InProcess,
    Once,
    Planted,
    Remembered,
    Untimed,
    load,
    planted_files,
    solved,
    verdict,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # wrong code divides by zero and overflows

ALL = [assignment.id for assignment in assignments()]


def plants(which: str) -> list:
    """(assignment, plant) of every planted_aN.py, PLANTED or HIDDEN."""
    found = []
    for name in ALL:
        module = importlib.import_module(f"tests.course.planted_{name}")
        found += [
            pytest.param(name, p, id=f"{name}-{i}-{p.misconception}") for i, p in enumerate(getattr(module, which))
        ]
    return found


@pytest.mark.parametrize("name", ALL)
def test_the_solution_has_all_points_and_the_handout_none(name):
    """In the real process, as check runs it."""
    assignment = load(name)
    full = verdict(assignment, solved(assignment), apart=True)
    assert full.complete and full.earned == full.points == 100, report(full, [])
    assert not full.notes and not full.printed
    blank = verdict(assignment, {f.name: handout(assignment, f).encode() for f in assignment.files}, apart=True)
    assert blank.earned == 0
    assert {p.outcome.kind for t in blank.tasks for p in t.properties} == {"blank"}, report(blank, [])


@pytest.mark.parametrize("name", ALL)
def test_the_solution_passes_the_cases_of_grade_too(name):
    result = verdict(load(name), solved(load(name)), GRADE_SEED)
    assert result.complete, report(result, [])


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [3, 4, 12345, 4294967295])
@pytest.mark.parametrize("name", ALL)
def test_the_solution_passes_other_cases(name, seed):
    result = verdict(load(name), solved(load(name)), seed)
    assert result.complete, report(result, [])


@pytest.mark.parametrize("name", ALL)
def test_every_task_has_a_blank_and_a_property_and_no_solution_line_is_handed_out(name):
    assignment = load(name)
    marked = {task for file in assignment.files for task in blocks(assignment, file)}
    tested = {p.task for p in assignment.properties}
    tasks = {task.id for task in assignment.tasks}
    assert tested == tasks
    assert marked == tasks or name == "a8"  # a8's tasks are figures to reach
    assert not leaks(assignment, (data.decode() for data in files_of(assignment).values()))


def test_a_leak_is_found():
    assignment = load("a1")
    line = next(line for line in blocks(assignment, assignment.files[0])["a1.1"] if "np.mean" in line)
    assert leaks(assignment, [f"before\n        {line.strip()}   # a remark\nafter"])
    assert not leaks(assignment, ["before\nafter"])


@pytest.mark.parametrize("name", ALL)
def test_at_least_ten_misconceptions_and_each_is_planted(name):
    known = {m.name for m in load(name).misconceptions}
    planted = {p.misconception for p in importlib.import_module(f"tests.course.planted_{name}").PLANTED}
    assert len(known) >= 10
    assert known == planted
    assert len({(m.name, m.hint) for m in load(name).misconceptions}) == len(known)  # one hint for one name


def rejected_with_its_hint(name: str, plant: Planted, seed: int = 1, apart: bool = False) -> None:
    """Of the tasks that can show the idea, one at least loses points and prints the hint. `apart`: in a process of its
    own, as check runs it; C and recipes always are, all tasks at once since starting costs more than they do.
    """
    assignment = load(name)
    ideas = [m for m in assignment.misconceptions if m.name == plant.misconception]
    asked = [p for p in assignment.properties if any(m.belongs_to(getattr(p, "call", p.name)) for m in ideas)]
    tasks = dict.fromkeys(p.task for p in asked) or [task.id for task in assignment.tasks]
    files, hint, told = planted_files(assignment, plant), ideas[0].hint, []
    runner = Student if apart else {"a7": Untimed, "a8": Once}.get(name, InProcess)
    if plant.misconception == "not_repeatable":
        runner = Remembered
    for task in tasks if name not in APART else [None]:
        result = check_files(assignment, files, seed, task, runner=runner)
        told.append(report(result, []))
        if f"hint: {plant.misconception}: {hint}" in " ".join(told[-1].split()):
            assert result.earned < result.points
            return
    raise AssertionError("\n".join(told))


@pytest.mark.parametrize(("name", "plant"), plants("PLANTED"))
def test_a_planted_misconception_loses_points_and_is_named(name, plant, monkeypatch):
    if name == "a8":  # a quarter of the lines tell the habits of a model as well
        monkeypatch.setitem(load("a8").properties[-1].function.__globals__, "TEST", 150)
    rejected_with_its_hint(name, plant)


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "plant"), plants("HIDDEN"))
def test_a_misconception_in_another_style_is_named(name, plant):
    """Renamed variables, loops in place of array expressions: detection goes by what the code does."""
    rejected_with_its_hint(name, plant, apart=True)


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "plant"), plants("PLANTED"))
def test_a_planted_misconception_is_named_with_other_cases(name, plant):
    for seed in (2, 7, 99):
        rejected_with_its_hint(name, plant, seed)
