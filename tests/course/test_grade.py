"""start, check, submit, reset and grade from the command line."""

from __future__ import annotations

import csv
import io
import json
import shlex
import stat
from types import SimpleNamespace

import pytest

from minedge.cli import course as course_verb
from minedge.cli import main
from minedge.course import grade, load, start
from minedge.course.submit import unfinished, unpack
from tests.course.planted import solved
from tests.course.test_archives import archive, special


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main(["course", *map(str, words)])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


@pytest.fixture
def folder(tmp_path):
    return start("a1", tmp_path / "work", "Ada")


def solve(folder, name="a1"):
    for file, data in solved(load(name)).items():
        (folder / file).write_bytes(data)
    return folder


def test_list_names_every_assignment(run):
    told = run("list")
    assert told.code == 0 and "a1  Ops and their backward passes" in told.out
    data = json.loads(run("list", "--json").out)
    assert data[0]["id"] == "a1" and sum(task["points"] for task in data[0]["tasks"]) == 100


def test_start_check_solve_submit_grade(run, tmp_path):
    folder = tmp_path / "mine"
    told = run("start", "a1", folder, "--student", "Ada L.")
    assert told.code == 0 and "layers.py" in told.out
    assert {p.name for p in folder.iterdir()} == {
        "layers.py", "loss.py", "attention.py", "handout.md", "properties.py", "test_public.py", "course.json",
    }  # fmt: skip
    assert "| a1.1 | RMSNorm and its backward | 14 |" in (folder / "handout.md").read_text()
    told = run("check", folder, "--task", "a1.4")
    assert told.code == 5 and "not done yet: a1.4\n" in told.out and "0 of 10 points" in told.out
    told = run("submit", folder, "--out", tmp_path / "ada.zip")
    assert told.code == 0 and "note: still blank: a1.1, a1.2, a1.3, a1.4, a1.5, a1.6, a1.7, a1.8\n" in told.out
    solve(folder)
    assert run("check", folder, "--task", "a1.4").code == 0
    data = json.loads(run("check", folder, "--json").out)
    assert data["earned"] == 100
    told = run("submit", folder, "--out", tmp_path / "ada.zip")
    assert told.code == 0 and "note" not in told.out and (tmp_path / "ada.zip").stat().st_size < 50_000
    points = tmp_path / "points.json"
    points.write_text('{"a1.1": 50, "a2.1": 7}')
    told = run("grade", tmp_path / "ada.zip", folder, "--out", tmp_path / "out", "--points", points)
    assert told.code == 0 and "Ada L.  136 of 136" in told.out
    rows = list(csv.DictReader((tmp_path / "out" / "grades.csv").open()))
    assert [row["file"] for row in rows] == ["ada.zip", "mine"]
    assert rows[0]["points"] == "136" and rows[0]["a1.1"] == "50" and rows[0]["problem"] == ""
    assert "points 136 of 136" in (tmp_path / "out" / "reports" / "ada.txt").read_text()


@pytest.mark.parametrize("action", ["list", "start", "check", "submit", "reset", "grade"])
def test_each_action_has_help_of_its_own(run, action):
    told = run(action, "--help")
    assert told.code == 0 and f"usage: minedge course {action} " in told.out
    for example in course_verb.ACTIONS[action].examples:
        assert example in told.out
        words = shlex.split(example)[2:]
        assert course_verb.parser(words).read(words).action in course_verb.ACTIONS
    options = {"list": "", "reset": "", "start": "student", "check": "task seed", "submit": "student out"}
    others = {"task", "seed", "student", "out", "assignment", "points"}
    wanted = set(options.get(action, "seed out assignment points").split())
    assert {name for name in others if f"--{name} " in told.out} == wanted
    assert f"  {action}" in run("--help").out


def test_submit_names_blanks_and_files_that_do_not_parse(tmp_path):
    folder = start("a1", tmp_path / "a1", "Ada")
    solve(folder)
    assert unfinished(folder) == []
    text = (folder / "layers.py").read_text()
    (folder / "layers.py").write_text(text + '\n\ndef more():\n    raise NotImplementedError("a1.99: of my own")\n')
    assert unfinished(folder) == []
    blank = '    raise NotImplementedError("a1.3: backward of a matrix product and of an embedding")\n'
    (folder / "layers.py").write_text(text + f"\n\ndef more():\n{blank}")
    (folder / "loss.py").write_text("def f(:\n")
    first, second = unfinished(folder)
    assert first == "still blank: a1.3" and second.startswith("loss.py line 1: SyntaxError")
    folder = start("a7", tmp_path / "a7", "Ada")
    blanks = unfinished(folder)
    assert blanks == ["still blank: a7.1, a7.2, a7.3, a7.4"]
    text = (folder / "int4_ladder.c").read_text()  # its third step has a blank for each kind of processor
    (folder / "int4_ladder.c").write_text(text.replace('NOT_IMPLEMENTED("a7.3: step 3, SIMD");', "work;", 1))
    assert unfinished(folder) == ["still blank: a7.1, a7.2, a7.4"]


def test_reset_keeps_what_the_student_wrote(run, folder):
    blank = (folder / "loss.py").read_bytes()
    (folder / "loss.py").write_text("mine")
    (folder / "notes.txt").write_text("kept")
    assert "loss.py.orig" in run("reset", folder).out
    assert (folder / "loss.py").read_bytes() == blank and (folder / "loss.py.orig").read_text() == "mine"
    (folder / "loss.py").write_text("again")
    assert "loss.py.orig2" in run("reset", folder).out
    assert (folder / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("start", "a0", "x"), 2, "assignment: expected one of a1"),
        (("start", "a1"), 2, "the following arguments are required: DIR; see minedge course start --help"),
        (("start",), 2, "the following arguments are required: aN, DIR; see minedge course start --help"),
        (("check", "{folder}", "x"), 2, "unexpected argument 'x'; see minedge course check --help"),
        ((), 2, "the following arguments are required: ACTION; see minedge course --help"),
        (("start", "a1", "{folder}"), 2, "exists already; give a new folder, or minedge course reset"),
        (("start", "a1", "{tmp}"), 2, "exists already and is not empty; give a new folder\n"),
        (("start", "a1", "{folder}/loss.py"), 2, "exists already and is no folder"),
        (("start", "a1", "."), 2, "is the folder you are in"),
        (("check", "nowhere"), 2, "no such folder"),
        (("check", "{tmp}"), 2, "no course.json in it"),
        (("check", "{folder}", "--task", "a1.99"), 2, "task: expected one of a1.1"),
        (("check", "{folder}", "--out", "x"), 2, "unknown option '--out'"),
        (("stratt", "a1", "x"), 2, "did you mean 'start'"),
        (("grade",), 2, "the following arguments are required: FILES; see minedge course grade --help"),
        (("grade", "nothere.zip", "--out", "{tmp}/o"), 2, "nothere.zip: no such file; nothing was graded"),
        (("grade", "{folder}", "inbx/*.zip", "--out", "{tmp}/o"), 2, "inbx/*.zip: no such file"),
        (("grade", "{tmp}", "--out", "{tmp}/o"), 2, "give its files: {tmp}/*"),
        (("grade", "{folder}", "--out", "{tmp}/o", "--points", "{tmp}/none"), 3, "no such file"),
        (
            ("grade", "{folder}", "--out", "{tmp}/o", "--points", "{tmp}/unknown.json"), 2,
            "points: no assignment has a task 'a1.10' (did you mean 'a1.1'?)",
        ),
        (("grade", "{folder}", "--out", "{tmp}/o", "--points", "{tmp}/minus.json"), 2, "number >= 0 for a2.1, got -1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(run, folder, tmp_path, words, code, said):
    (tmp_path / "unknown.json").write_text('{"a1.10": 5}')
    (tmp_path / "minus.json").write_text('{"a2.1": -1}')
    told = run(*(word.format(folder=folder, tmp=tmp_path) for word in words))
    assert (told.code, told.err.count("\n")) == (code, 1), told
    assert said.format(tmp=tmp_path) in told.err
    assert not (tmp_path / "o").exists()


def test_grading_fails_by_what_was_not_graded_not_by_points(run, folder, tmp_path):
    """Blank files and files that do not parse are worth 0 points and graded; what is no submission is not."""
    damaged = tmp_path / "bob.zip"
    damaged.write_bytes(b"damaged")
    told = run("grade", folder, "--out", tmp_path / "blank")
    assert told.code == 0 and "  0 of " in told.out
    (folder / "loss.py").write_text("def f(:\n")
    told = run("grade", folder, "--out", tmp_path / "broken")
    assert told.code == 0 and "  0 of " in told.out
    told = run("grade", damaged, folder, "--out", tmp_path / "both")
    assert told.code == 1 and "bob.zip  ?  0  " in told.out
    rows = list(csv.DictReader((tmp_path / "both" / "grades.csv").open()))
    assert [(row["file"], bool(row["of"])) for row in rows] == [("bob.zip", False), (folder.name, True)]
    assert run("grade", folder, "--assignment", "a2", "--out", tmp_path / "other").code == 1


def test_grading_again_keeps_the_earlier_marks(run, tmp_path):
    box, out = tmp_path / "box", tmp_path / "out"
    box.mkdir()
    for name in ("ada", "bob", "cy"):
        (box / f"{name}.zip").write_bytes(b"damaged")
        told = run("grade", box / f"{name}.zip", "--out", out)
        assert told.code == 1 and "and 1 report in" in told.out
    assert "grades.csv.orig2" in told.out + told.err
    names = {"grades.csv": "cy", "grades.csv.orig": "ada", "grades.csv.orig2": "bob"}
    for file, name in names.items():
        assert [row["file"] for row in csv.DictReader((out / file).open())] == [f"{name}.zip"]
        assert [p.name for p in (out / file.replace("grades.csv", "reports")).iterdir()] == [f"{name}.txt"]


def test_an_unnamed_submission_and_a_damaged_folder_are_refused(run, tmp_path):
    folder = start("a1", tmp_path / "w")
    assert "give --student NAME" in run("submit", folder).err
    (folder / "course.json").write_text('{"assignment": 7}')
    told = run("check", folder)
    assert told.code == 3 and "course.json" in told.err


def test_submit_replaces_an_earlier_submission_and_no_other_file(run, folder, tmp_path):
    out = tmp_path / "s.zip"
    assert run("submit", folder, "-o", out).code == 0
    assert run("submit", folder, "-o", out).code == 0
    (folder / "notes.txt").write_text("mine")
    for path in (folder / "loss.py", folder / "notes.txt", folder / "course.json", folder):
        before = path.read_bytes() if path.is_file() else b""
        told = run("submit", folder, "-o", path)
        assert (told.code, told.err.count("\n")) == (2, 1) and str(path) in told.err
        assert not before or path.read_bytes() == before
    (folder / "loss.py").write_bytes(out.read_bytes())  # whatever it holds
    assert run("submit", folder, "-o", folder / "loss.py").code == 2


def test_editing_the_tests_in_the_folder_changes_nothing(run, folder):
    (folder / "properties.py").write_text("PROPERTIES = []")
    (folder / "test_public.py").write_text("")
    (folder / "minedge").mkdir()
    (folder / "minedge" / "__init__.py").write_text("raise RuntimeError")
    (folder / "numpy.py").write_text("raise RuntimeError")
    told = run("check", folder, "--task", "a1.4")
    assert told.code == 5 and "0 of 10 points" in told.out
    for name in ("properties.py", "test_public.py"):
        assert f"note: {name} here differs from the installed one, which is what is run" in told.out
        assert f"{name} here differs from the installed one, which is what is run" in unpack(folder).remarks


def test_every_submission_gets_its_line_whatever_it_is(tmp_path):
    """Good, half done, broken and hostile ones in one run: all graded, in order, nothing written elsewhere."""
    box = tmp_path / "box"
    box.mkdir()
    good = solved(load("a1"))
    text = good["layers.py"].decode()
    loop = text + "\n\ndef gelu_backward(dout, cache):\n    while True: pass\n"
    crash = text.replace("import numpy as np", "import faulthandler; faulthandler._sigsegv()\nimport numpy as np", 1)
    made = {
        "good": archive(box / "good.zip", good.items()),
        "loop": archive(box / "loop.zip", {**good, "layers.py": loop}.items()),
        "syntax": archive(box / "syntax.zip", {**good, "loss.py": "def ("}.items()),
        "crash": archive(box / "crash.zip", {**good, "layers.py": crash}.items()),
        "short": archive(box / "short.zip", [("layers.py", good["layers.py"])]),
        "nozip": box / "nozip.zip",
        "link": archive(box / "link.zip", [(special("loss.py", stat.S_IFLNK | 0o777), b"/etc/passwd")]),
        "wrong": box / "wrong",
    }
    made["nozip"].write_bytes(b"PK\x03\x04nothing")
    start("a2", made["wrong"], "Eve")
    seen = []
    grades = grade(list(made.values()), tmp_path / "out", only="a1", progress=seen.append)
    assert grades == seen and [one.file for one in grades] == [path.name for path in made.values()]
    points = dict(zip(made, (one.points for one in grades), strict=True))
    assert points["good"] == 100 and 80 < points["loop"] < 100
    assert not any(points[name] for name in ("syntax", "crash", "short", "nozip", "link", "wrong"))
    rows = list(csv.reader(io.StringIO((tmp_path / "out" / "grades.csv").read_text())))
    assert len(rows) == 1 + len(made) and len({len(row) for row in rows}) == 1
    problems = dict(zip(made, (row[rows[0].index("problem")] for row in rows[1:]), strict=True))
    for name, said in {
        "good": "", "loop": "", "syntax": "loss.py line 1: SyntaxError", "crash": "SIGSEGV", "short": "is missing",
        "nozip": "not a readable submission", "link": "a link or a device", "wrong": "a submission for a2, expected a1",
    }.items():  # fmt: skip
        assert said in problems[name] and bool(said) == bool(problems[name]), (name, problems[name])
    assert rows[1][1] == "'=cmd()"  # no formula in a spreadsheet
    reports = {path.stem: path.read_text() for path in (tmp_path / "out" / "reports").iterdir()}
    assert set(reports) == set(made)
    assert "is there an endless loop?" in reports["loop"] and "SIGSEGV" in reports["crash"]
    assert {p.name for p in tmp_path.iterdir()} == {"box", "out"}
