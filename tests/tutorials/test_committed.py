"""Every tutorial states what it promises, and the committed notebooks are what their sources give now."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from minedge import lessons
from tests.tutorials.building import ROOT, load_build

build = load_build()
LESSONS = lessons.lessons()
EACH = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


def read(lesson):
    return nbformat.read(lesson.notebook, as_version=4)


def test_there_are_eight():
    assert [lesson.number for lesson in LESSONS] == list(range(1, 9))


@EACH
def test_the_committed_notebook_is_that_of_the_source(lesson):
    found = read(lesson)
    assert build.differences(build.cells_of(lesson.source), found) == []
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]


@EACH
def test_it_says_what_a_reader_will_be_able_to_do(lesson):
    found = read(lesson)
    head = found.cells[0].source
    for promise in ("After this notebook you can", "It runs in about", "from seed 0", "arXiv:"):
        assert promise in head or (promise == "arXiv:" and "Paper" in head), f"the head lacks {promise!r}"
    assert len(build.stated(found)) >= 8
    text = "\n".join(cell.source for cell in found.cells if cell.cell_type == "markdown")
    questions = text.split("## Questions")[1]
    assert len(re.findall(r"^\*\*\d\.\*\*", questions, re.M)) == 3
    assert questions.count("<details><summary>Answer</summary>\n\n") == questions.count("\n\n</details>") == 3
    assert "here it breaks" in text
    fences = re.findall(r".*```.*", text)
    assert len(fences) % 2 == 0 and all(line.startswith("```") for line in fences), "code fences stand on their lines"
    assert "show(" in "".join(cell.source for cell in found.cells), "the package's own lines are shown"


@EACH
def test_figures_are_svg_with_units_and_a_caption(lesson):
    outputs = [o.get("data", {}) for cell in read(lesson).cells if cell.cell_type == "code" for o in cell.outputs]
    figures = [i for i, data in enumerate(outputs) if "image/svg+xml" in data]
    assert figures
    for number, i in enumerate(figures, 1):
        assert outputs[i + 1]["text/markdown"].startswith(f"*Figure {number}. ")
        assert "<text" in outputs[i]["image/svg+xml"], "text stays text"
    assert not [data for data in outputs if "image/png" in data]


@EACH
def test_nothing_of_the_machine_is_in_it(lesson):
    """Paths, times and ids would make every regeneration a large difference."""
    text = lesson.notebook.read_text(encoding="utf-8")
    assert not re.findall(r"(?:/tmp/|/home/|/root/|/work/|site-packages|ipykernel_\d)[^\"\\]{0,40}", text)
    document = json.loads(text)
    assert [cell["id"] for cell in document["cells"]] == [f"cell-{i:02}" for i in range(len(document["cells"]))]
    assert all("execution" not in cell["metadata"] for cell in document["cells"])
    assert set(document["metadata"]) == {"kernelspec", "language_info"}


@EACH
def test_lines_fit_a_page(lesson):
    """98 characters of code are what a page of 1,000 pixels shows; prose wraps by itself."""
    code = [cell.source for cell in read(lesson).cells if cell.cell_type == "code"]
    assert not [line for source in code for line in source.splitlines() if len(line) > 98]
    tool = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "98", "--check", str(lesson.source)]
    done = subprocess.run(tool, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def open_math(text):
    """Lines that begin a quote, a list or a heading while a formula is open: a page shows the formula as its source."""
    found, inside = [], False
    for line in text.splitlines():
        if inside and re.match(r"\s*(>|[-+*#] |\d+[.)] )", line):
            found.append(line)
        inside ^= len(re.findall(r"(?<![\\$])\$(?!\$)", line)) % 2 == 1
        inside &= bool(line.strip())
    return found


@EACH
def test_no_formula_is_cut_by_a_line_that_markdown_takes_for_something_else(lesson):
    cells = [cell.source for cell in read(lesson).cells if cell.cell_type == "markdown"]
    assert [line for text in cells for line in open_math(text)] == []
    assert open_math("where $x / d\n> 7.5$, and") == ["> 7.5$, and"]
    assert not open_math("$a$ and\n- b\n\n$$ c\n- d $$")


def first_text(found):
    return next(o for cell in found.cells for o in cell.get("outputs", ()) if o.output_type == "stream")


@pytest.mark.parametrize("fault", ["cell changed", "cell gone", "figure outside", "figure gone", "other output"])
def test_a_stale_notebook_is_noticed(fault):
    lesson = LESSONS[2]
    found = read(lesson)
    executed = copy.deepcopy(found)
    assert build.differences(executed, found) == []
    if fault == "cell changed":
        found.cells[3].source += "\n"
    elif fault == "cell gone":
        del found.cells[-2]
    elif fault == "other output":
        cell = next(cell for cell in found.cells if cell.get("outputs"))
        cell.outputs = cell.outputs[:-1]
    else:
        values = next(
            o["data"][build.FIGURES_MIME] for o in found.cells[-1].outputs if build.FIGURES_MIME in o.get("data", {})
        )
        name = next(iter(values))
        if fault == "figure gone":
            del values[name]
        else:
            values[name] = 1e9
    assert build.differences(executed, found)


def test_changed_prose_is_taken_over_without_executing_and_changed_code_is_not():
    lesson = LESSONS[2]
    executed = read(lesson)
    fresh = build.cells_of(lesson.source)
    fresh.cells[0].source += " More."
    assert build.take_over(fresh, executed)
    assert fresh.cells[0].source.endswith(" More.")
    assert [cell.get("outputs") for cell in fresh.cells] == [cell.get("outputs") for cell in executed.cells]
    fresh.cells[1].source += "\n1 + 1"
    assert not build.take_over(fresh, executed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [1, 2, 3])
@EACH
def test_figures_stay_in_their_ranges_on_other_seeds(lesson, seed, tmp_path):
    env = {**os.environ, "MINEDGE_TUTORIAL_SEED": str(seed), "MPLBACKEND": "Agg"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, str(lesson.source)], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-600:]
