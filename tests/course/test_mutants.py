"""Bugs planted into the course's own machinery: each must make a check here fail that the real code passes."""

from __future__ import annotations

import json
import stat
import zipfile

import numpy as np
import pytest
from planting import mutated_module

from minedge.course import load, worker
from minedge.course.cut import leaks, source_path
from minedge.course.properties import Misconception
from minedge.course.wire import pack
from minedge.errors import MinedgeFormatError
from minedge.ops import numpy_ops

A1 = load("a1")
LAYERS = A1.files[0]


def nothing_leaks(cut):
    assert not leaks(A1, [cut.handout(A1, LAYERS)])
    compile(cut.handout(A1, LAYERS), "handout", "exec")
    assert cut.handout(A1, LAYERS).count('raise NotImplementedError("a1.1: RMSNorm and its backward")') == 2


def docstrings_are_replaced(cut):
    assert "Derive dx: x enters twice" in cut.handout(A1, LAYERS)
    assert "dx = rstd * (dn - n * mean(dn * n))" not in cut.handout(A1, LAYERS)


def leaks_are_found(cut):
    assert cut.leaks(A1, ["  n   =  x*rstd[..., None]  # a remark"])


def the_solution_runs(cut):
    assert "SOLUTION" not in cut.solution(A1, LAYERS)
    compile(cut.solution(A1, LAYERS), "solution", "exec")


def differences_are_seen(compare):
    one = np.ones((2, 2))
    assert not compare.difference("x", one, one + 1e-12, 1e-9)
    for got in (one + 1e-6, one * np.nan, np.ones((2, 2), int), np.ones((2, 1)), np.ones((1, 2, 2)), None, "x", [1.0]):
        assert compare.difference("x", one, got, 1e-9), got
    assert compare.difference("x", np.array([1, 2]), np.array([1, 3]), 1e-9)
    assert compare.difference("x", {"a": 1.0}, {"a": 1.0, "b": 2.0}, 1e-9)
    assert compare.difference("x", [1.0, 2.0], [1.0], 1e-9)
    assert compare.difference("x", True, False, 1e-9)
    assert not compare.difference("x", np.array([np.inf, np.nan]), np.array([np.inf, np.nan]), 1e-9)


def only_what_fits_is_named(properties):
    def idea(name, **outputs):
        return Misconception(name, "f", "hint", lambda x: outputs)

    ideas = [idea("both", a=2.0, b=5.0), idea("a alone", a=2.0, b=3.0), idea("right", a=1.0, b=3.0)]
    expected, got = {"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 4.0}
    assert properties.explain(ideas, "f", {"x": 0}, expected, got, 1e-9) == ("a alone",)


def small_cases_are_told_apart_by_larger_ones(properties):
    out = properties.Outcome
    several = [out(True), out(False, "small", misconceptions=("a", "b")), out(False, misconceptions=("b", "c"))]
    found = properties._first_failure(iter(several))
    assert (found.case, found.misconceptions) == ("small", ("b",))
    later = [out(False, "small"), out(False, misconceptions=("c",))]
    assert properties._first_failure(iter(later)).misconceptions == ("c",)


def archive(path, entries):
    told = {"format": "minedge-submission-1", "assignment": "a1", "student": "x", "sha256": {}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", json.dumps(told))
        for name, data in entries:
            file.writestr(name, data)
    return path


def refused(submit, path):
    with pytest.raises(MinedgeFormatError):
        submit.unpack(path)


def links_are_refused(submit, folder):
    entry = zipfile.ZipInfo("loss.py")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(submit, archive(folder / "s.zip", [(entry, b"/etc/passwd")]))


def bombs_are_refused(submit, folder):
    refused(submit, archive(folder / "s.zip", [("loss.py", b"\0" * (1 << 20))]))


def foreign_names_stay_in_the_archive(submit, folder):
    assert set(submit.unpack(archive(folder / "s.zip", [("../x.py", b""), ("loss.py", b"")])).files) == {"loss.py"}


def changes_are_remarked(submit, folder):
    assert submit.unpack(archive(folder / "s.zip", [("loss.py", b"x")])).remarks


def formulas_are_quoted(grade):
    assert grade._cell("=cmd()") == "'=cmd()" and grade._cell("a\nb") == "a b" and grade._cell("12") == "12"


def arrays_stay_in_their_bytes(wire):
    body = pack({"x": np.arange(4.0)})[8:]
    for bad in (body.replace(b"[4]", b"[9]"), body.replace(b", 0]", b", 8]"), body[:-1]):
        with pytest.raises(MinedgeFormatError):
            wire.unpack(bad)


def the_librarys_own_answer_is_seen(watch, folder):
    path = folder / "layers.py"
    path.write_text(
        "from minedge.ops import numpy_ops\n\n\n"
        "def rms_norm_forward(x, weight, eps):\n    return numpy_ops.rms_norm_forward(x, weight, eps)\n\n\n"
        "def other(x):\n    return numpy_ops.gelu_forward(x)\n"
    )

    def rms_norm_forward(*given):  # nobody's file
        return numpy_ops.rms_norm_forward(*given)

    module = worker._module("layers", path, "student_of_a_mutant")
    seen = watch.Watch({"layers.py": path}, {"layers.py": str(source_path(A1, LAYERS))})
    seen.imported("layers.py", module)
    with seen.call("other"):
        module.other(np.ones(2))  # what the checks put in the place of another blank is called like this
        rms_norm_forward(np.ones((1, 2)), np.ones(2), 1e-5)
    assert not seen.taken
    with seen.call("rms_norm_forward"):
        module.rms_norm_forward(np.ones((1, 2)), np.ones(2), 1e-5)
    assert seen.taken == {"layers.rms_norm_forward"}
    module.rms_norm_backward = numpy_ops.rms_norm_backward
    seen.imported("layers.py", module)
    assert seen.taken == {"layers.rms_norm_forward", "layers.rms_norm_backward"}


# check, module, old, new
MUTANTS = [
    (nothing_leaks, "cut", 'out.append(f"{indent}{blank}\\n")', 'out.append(f"{indent}{blank}\\n"); out += lines'),
    (nothing_leaks, "cut", 'task.partition(".")[0] != assignment.id', 'task.partition(".")[0] == assignment.id'),
    (docstrings_are_replaced, "cut", "lines[begin:end] = ", "lines[begin:begin] = "),
    (docstrings_are_replaced, "cut", "return _with_docstrings(text, hidden, file.name)", "return text"),
    (leaks_are_found, "cut", 're.sub(r"\\s+", "", ', 're.sub(r"\\s+", " ", '),
    (leaks_are_found, "cut", 're.sub(r"\\s(#|//).*$", "", ', 're.sub(r"\\s(#|//)@.*$", "", '),
    (the_solution_runs, "cut", "if not _MARKER.match(", "if True or _MARKER.match("),
    (differences_are_seen, "compare", "if answer.shape != expected.shape:", "if answer.size != expected.size:"),
    (differences_are_seen, "compare", 'floats != (answer.dtype.kind == "f")', "False"),
    (differences_are_seen, "compare", "np.where(np.isnan(gap), np.inf, gap)", "np.where(np.isnan(gap), 0.0, gap)"),
    (differences_are_seen, "compare", "if floats else 0.0", "if floats else 2.0"),
    (differences_are_seen, "compare", "if set(expected) != set(got):", "if set(expected) - set(got):"),
    (differences_are_seen, "compare", "if len(expected) != len(got):", "if False:"),
    (only_what_fits_is_named, "properties", "if telling and all(", "if all("),
    (only_what_fits_is_named, "properties", "if telling and all(", "if telling and any("),
    (small_cases_are_told_apart_by_larger_ones, "properties", "(both or names) if names else", "names if names else"),
    (small_cases_are_told_apart_by_larger_ones, "properties", "names else outcome.misconceptions", "names else names"),
    (links_are_refused, "submit", "if stat.S_IFMT(mode) not in (0, stat.S_IFREG):", "if False:"),
    (bombs_are_refused, "submit", "if len(data) > MAX_FILE:", "if False:"),
    (foreign_names_stay_in_the_archive, "submit", "for name in wanted if name in by_name}", "for name in by_name}"),
    (changes_are_remarked, "submit", "said.get(name) != hashlib", "said.get(name) == hashlib"),
    (formulas_are_quoted, "grade", 'in ("=", "+", "-", "@")', 'in ("+", "-", "@")'),
    (formulas_are_quoted, "grade", 'return _CONTROL.sub(" ", text)', "return (text)"),
    (the_librarys_own_answer_is_seen, "watch", "caller.f_code.co_name == code.co_name and ", ""),
    (the_librarys_own_answer_is_seen, "watch", " and caller.f_code.co_filename in self._own", ""),
    (the_librarys_own_answer_is_seen, "watch", "caller = frame.f_back", "caller = None"),
    (the_librarys_own_answer_is_seen, "watch", "sys.setprofile(self._entered)", "pass"),
    (the_librarys_own_answer_is_seen, "watch", "if home is not None and any(", "if False and any("),
    (arrays_stay_in_their_bytes, "wire", "at + count * np.dtype(dtype).itemsize > len(data)", "False"),
]  # fmt: skip


def run(check, module, folder):
    check(module, folder) if check.__code__.co_argcount == 2 else check(module)


@pytest.mark.parametrize(
    ("check", "module", "old", "new"), MUTANTS, ids=[f"{m[1]}-{m[0].__name__}-{i}" for i, m in enumerate(MUTANTS)]
)
def test_planted_bugs_are_caught(check, module, old, new, tmp_path):
    name = f"minedge.course.{module}"
    real = mutated_module(name, old, old)
    run(check, real, tmp_path)
    mutant = mutated_module(name, old, new)
    try:
        run(check, mutant, tmp_path)
    except BaseException as caught:
        if isinstance(caught, (KeyboardInterrupt, SystemExit)):
            raise
        return
    raise AssertionError(f"{check.__name__} accepts {new!r}")
