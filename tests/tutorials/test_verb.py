"""minedge tutorial: list, open, run, and what goes wrong; on a small tutorial made here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import nbformat
import pytest

from minedge import lessons
from minedge.cli import main
from tests.tutorials.building import notebook


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder; the tutorials are 1 (works) and 2 (its second cell raises)."""
    folder = tmp_path / "lessons"
    folder.mkdir()
    (folder / "build.py").write_text("")
    for name, title, sources in (
        ("01_good", "Good", ["# 1. Good", "import minedge; x = 2", "print(x + 1)"]),
        ("02_bad", "Bad", ["# 2. Bad", "x = 2", "raise ValueError('a figure\\nwent away')", "print('after')"]),
    ):
        (folder / f"{name}.py").write_text(f"# %% [markdown]\n# # {name[1]}. {title}\n")
        nbformat.write(notebook(*sources), folder / f"{name}.ipynb")
    monkeypatch.setattr(lessons, "_place", lambda name, marker: folder)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["tutorial", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list(place, capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert "1  01_good   Good" in out
    code, out, _ = call(capsys, "list", "--json")
    assert [item["title"] for item in json.loads(out)] == ["Good", "Bad"]


@pytest.mark.parametrize("name", ["1", "01", "good", "01_good"])
def test_a_tutorial_has_several_names(place, name):
    assert lessons.find(name).name == "01_good"


def test_run_writes_the_executed_copy(place, capsys):
    code, out, err = call(capsys, "run", "1", "--out", "mine.ipynb")
    assert (code, "mine.ipynb: executed in" in out) == (0, True), err
    cells = nbformat.read(place / "mine.ipynb", as_version=4).cells
    assert cells[2].outputs[0].text == "3\n"
    assert "2/2" in err.replace(" ", "") or "step 2/2" in err
    code, _, err = call(capsys, "run", "1", "--out", "mine.ipynb")
    assert (code, "exists already" in err) == (2, True)
    assert call(capsys, "run", "1", "--out", "mine.ipynb", "--overwrite", "--quiet")[0] == 0


def test_run_names_the_cell_that_failed_and_keeps_the_copy(place, capsys):
    packaged = nbformat.read(lessons.find("bad").notebook, as_version=4)
    for cell in packaged.cells[1:]:
        cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="packaged")]
    nbformat.write(packaged, lessons.find("bad").notebook)
    code, _, err = call(capsys, "run", "bad")
    assert code == 1
    line = err.strip().splitlines()[-1]
    assert "tutorial 2, cell 3 of 4" in line
    assert "ValueError: a figure went away" in line
    assert "02_bad.ipynb" in line
    cells = nbformat.read(place / "02_bad.ipynb", as_version=4).cells
    assert [output.ename for output in cells[2].outputs] == ["ValueError"]
    assert [(len(cell.outputs), cell.execution_count) for cell in (cells[1], cells[3])] == [(0, 1), (0, None)]


def test_a_kernel_that_dies_is_one_line(place, capsys):
    nbformat.write(notebook("# 1. Good", "import os; os._exit(3)"), lessons.find("1").notebook)
    code, _, err = call(capsys, "run", "1")
    assert code == 1
    assert "the kernel died" in err.strip().splitlines()[-1]


@pytest.mark.parametrize("told", [None, "2"])
def test_blas_gets_one_thread_unless_told_otherwise(place, monkeypatch, told):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", told)
    cells = notebook("# 1. Good", "import os; print(os.environ['OPENBLAS_NUM_THREADS'])")
    lessons.execute(cells, place)
    assert cells.cells[1].outputs[0].text == f"{told or '1'}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "expected a tutorial, as in minedge tutorial run 3"),
        (["run", "9"], "expected one of 1 (good), 2 (bad), got '9'"),
        (["run", "1", "--out", "no/such/file.ipynb"], "the folder 'no/such' does not exist"),
        (["dance"], "invalid choice"),
        (["list", "extra"], "list: expected nothing more, got extra"),
        (["list", "--html"], "--html: list has no such option"),
        (["list", "--out", "x.ipynb"], "--out: list has no such option"),
        (["open", "1", "--html", "--seed", "0"], "--seed: open has no such option"),
        (["run", "1", "--html"], "--html: run has no such option"),
        (["open", "1", "--out", "../lessons/01_good.ipynb"], "that is the tutorial itself"),
    ],
)
def test_bad_words(place, capsys, words, said):
    code, out, err = call(capsys, *words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else found(name, *a))


def test_what_is_not_installed_is_named_with_the_remedy(place, capsys, monkeypatch):
    without(monkeypatch, "nbclient", "jupyterlab")
    code, _, err = call(capsys, "run", "1")
    assert (code, "needs nbclient" in err, "minedge[notebook]" in err) == (2, True, True)
    code, _, err = call(capsys, "open", "1")
    assert (code, "JupyterLab is not installed" in err, "01_good.ipynb" in err) == (2, True, True)
    assert not list(place.iterdir())


def test_open_starts_jupyterlab_on_a_copy_and_leaves_a_changed_copy_alone(place, capsys, monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, env: started.append(command) or 0)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: name == "jupyterlab" or found(name, *a))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(place / "data"))
    assert call(capsys, "open", "1")[0] == 0
    assert started[0][1:] == ["-m", "jupyterlab", "01_good.ipynb"]
    copy = place / "01_good.ipynb"
    assert nbformat.read(copy, as_version=4).cells[0].source == "# 1. Good"
    nbformat.write(notebook("# 1. Mine"), copy)
    assert "opens as you left it" in call(capsys, "open", "1")[1]
    assert nbformat.read(copy, as_version=4).cells[0].source == "# 1. Mine"


def test_open_as_a_page(place, capsys):
    code, out, _ = call(capsys, "open", "1", "--html")
    assert (code, "01_good.html" in out) == (0, True)
    assert "<h1" in (place / "01_good.html").read_text()


def test_an_install_without_tutorials_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(lessons, "__file__", str(tmp_path / "minedge" / "lessons.py"))
    code, _, err = call(capsys, "list")
    assert code == 2
    assert "was installed without it" in err
