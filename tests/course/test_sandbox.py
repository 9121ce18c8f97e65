"""A student's process: whatever the code does ends in one clear line, costs its own points, touches nothing else."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import replace

import numpy as np
import pytest

from minedge.course import load, sandbox
from minedge.course.check import check_files
from minedge.course.content import Limits
from minedge.course.cut import handout
from minedge.course.report import report
from minedge.course.sandbox import CallError, Student
from minedge.course.wire import pack, unpack
from minedge.errors import MinedgeFormatError
from tests.course.planted import solved

A1 = replace(load("a1"), limits=Limits(seconds=2.0, total_seconds=30.0, memory_mb=1500))
FORWARD = "def rms_norm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:\n"


def files(body: str = "", head: str = "") -> dict[str, bytes]:
    """a1's solution with `body` as the first lines of rms_norm_forward and `head` after the imports of layers.py."""
    found = solved(A1)
    text = found["layers.py"].decode()
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    text = text.replace(FORWARD, FORWARD + lines).replace(
        "Array = NDArray[np.floating]\n", f"Array = NDArray[np.floating]\n{head}\n"
    )
    return {**found, "layers.py": text.encode()}


def lines_of(changed: dict[str, bytes], task: str | None = "a1.1", assignment=A1):
    result = check_files(assignment, changed, 1, task)
    return result, report(result, [])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "is there an endless loop?"),
        ("import faulthandler; faulthandler._sigsegv()", "crashed the process (SIGSEGV)"),
        ("import os; os._exit(0)", "ended the process (exit code 0)"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("return np.ones(1 << 36), ()", "more memory than allowed"),
        ("raise KeyError('x' * 10000)", "KeyError: 'xxx"),
        ("class E(BaseException):\n    def __str__(self): raise E\nraise E", "its text cannot be shown"),
        ("return rms_norm_forward(x, weight, eps)", "RecursionError"),
        ("return None", "cannot unpack non-iterable NoneType"),
        ("return 'text', (0, 0, 0)", "out: expected an array (1, 2), got a str"),
        ("return object(), (0, 0, 0)", "returned a value of type object"),
        ("return np.array([1j]), (0, 0, 0)", "returned an array of dtype complex128"),
        ("return x[..., :1], (0, 0, x[..., 0])", "out: expected shape (1, 2), got (1, 1)"),
        ("return x * np.nan, (0, 0, x[..., 0])", "got nan"),
        ("x *= 2\nreturn x, (0, 0, x[..., 0])", "differ"),
        ("import socket; socket.socket()", "socket.__new__ is not allowed in an assignment"),
        ("import subprocess; subprocess.run(['true'])", "is not allowed in an assignment"),
        ("import os; os.fork()", "os.fork is not allowed in an assignment"),
        ("import os; os.kill(os.getppid(), 9)", "os.kill is not allowed in an assignment"),
        ("open('/etc/passwd').read()", "opening /etc/passwd is not allowed"),
        ("import os; open(os.path.expanduser('~') + '/../x', 'w')", "is not allowed in an assignment"),
        ("import os; os.rename('/tmp', '/tmp2')", "os.rename outside the own folder is not allowed"),
        ("import ctypes; ctypes.CDLL(None)", "ctypes.dlopen is not allowed"),
    ],
)  # fmt: skip
def test_each_is_one_clear_line_and_the_next_call_is_served(body, said):
    result, text = lines_of(files(body))
    assert 0 < result.earned < result.points, text  # the backward still works
    assert said in " ".join(text.split()), text
    assert "layers.py line" in text or "calling rms_norm_forward" in text or kind_of(result) != "raised"
    assert "Traceback" not in text


def kind_of(result):
    return next(p.outcome.kind for p in result.tasks[0].properties if not p.outcome.ok)


def test_changing_an_argument_in_place_is_named():
    _, text = lines_of(files("x[0] += 1e-12"))
    assert "changed its argument x in place" in " ".join(text.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: {**f, "layers.py": b"def broken(:\n"}, "layers.py line 1: SyntaxError"),
        (lambda f: {**f, "layers.py": b"\xff\xfe"}, "SyntaxError"),
        (lambda f: {**f, "loss.py": b"import nothing_of_this_name\n"}, "loss.py line 1: ModuleNotFoundError"),
        (lambda f: {**f, "loss.py": b"x = " + b"(" * 5000}, "SyntaxError"),
        (lambda f: {k: v for k, v in f.items() if k != "loss.py"}, "loss.py is missing"),
        (lambda f: {**f, "loss.py": b"raise SystemExit"}, "loss.py line 1: SystemExit"),
    ],
)
def test_files_that_cannot_be_imported_score_nothing_and_say_why(change, said):
    result, text = lines_of(change(solved(A1)), None)
    assert result.earned == 0
    assert said in text


def test_an_endless_import_ends(monkeypatch):
    monkeypatch.setattr(sandbox, "_START_SECONDS", 1.0)
    begun = time.monotonic()
    result, text = lines_of({**solved(A1), "loss.py": b"while True: pass"}, None)
    assert time.monotonic() - begun < 10
    assert result.earned == 0 and "endless loop" in text


def test_many_endless_loops_end_soon():
    """The second and later ones get less time; calls that did not end are not asked again."""
    names = ("rms_norm_forward", "rms_norm_backward", "layer_norm_forward", "layer_norm_backward", "gelu_backward")
    text = solved(A1)["layers.py"].decode() + "".join(f"\n\ndef {n}(*_, **__):\n    while True: pass\n" for n in names)
    begun = time.monotonic()
    result, told = lines_of({**solved(A1), "layers.py": text.encode()}, None, replace(A1, limits=Limits(seconds=0.5)))
    assert time.monotonic() - begun < 15
    assert result.earned > 50, told
    assert told.count("endless loop") >= 5


def test_missing_functions_and_changed_signatures_are_named():
    text = solved(A1)["layers.py"].decode()
    _, told = lines_of({**solved(A1), "layers.py": text.replace("def rms_norm_forward(", "def rmsnorm(").encode()})
    assert "layers.py: no rms_norm_forward; keep the names that the handout has" in told
    changed = text.replace(FORWARD, "def rms_norm_forward(x, eps):\n    weight = 1\n")
    result, told = lines_of({**solved(A1), "layers.py": changed.encode()})
    assert "TypeError: rms_norm_forward() takes 2 positional arguments but 3 were given" in told
    assert "the handout has rms_norm_forward(x, weight, eps), this file rms_norm_forward(x, eps)" in told
    assert result.earned < result.points


def test_taking_the_solution_from_the_library_is_noted():
    _, told = lines_of(files("from minedge.ops import numpy_ops\nreturn numpy_ops.rms_norm_forward(x, weight, eps)"))
    assert "note: imports minedge.ops.numpy_ops, where the solution stands" in told
    assert "note: layers.rms_norm_forward: the library's own answered, the solution" in told


HIDDEN_WAYS = {
    "importlib": "import importlib\nops = importlib.import_module('minedge.ops.numpy_ops')\nreturn ops.NAME(*given)",
    "__import__": "ops = __import__('minedge.ops.numpy_ops', fromlist=['x'])\nreturn getattr(ops, 'NAME')(*given)",
    "the table of ops": "from minedge.ops import get\ndef f(*a): return get('numpy').NAME(*a)\nreturn f(*given)",
    "another tier": "from minedge.ops import get\nreturn get('c').NAME(*given)",
    "exec": "space = {}\nexec('import minedge.ops.numpy_ops as o', space)\nreturn space['o'].NAME(*given)",
}


@pytest.mark.parametrize("way", HIDDEN_WAYS)
def test_taking_it_by_a_way_that_no_import_shows_is_noted(way):
    body = "given = x, weight, eps\n" + HIDDEN_WAYS[way].replace("NAME", "rms_norm_forward")
    _, told = lines_of(files(body))
    assert "note: layers.rms_norm_forward: the library's own answered, the solution" in told


def test_a_name_that_is_the_librarys_own_function_is_noted():
    changed = files(head="import importlib")
    text = changed["layers.py"] + b"\nlayer = importlib.import_module('minedge.ops.numpy_ops')\n"
    result, told = lines_of({**changed, "layers.py": text + b"rms_norm_backward = layer.rms_norm_backward\n"})
    assert result.complete
    assert result.notes == ("layers.rms_norm_backward: the library's own answered, the solution",), told


def test_a_half_done_task_says_what_is_wrong_first_and_what_is_blank_last():
    text = handout(A1, A1.files[0])
    begin = text.index('    raise NotImplementedError("a1.1')
    text = text[:begin] + "    return x, (x, weight, x[..., 0])\n" + text[text.index("\n", begin) + 1 :]
    result, told = lines_of({**solved(A1), "layers.py": text.encode()}, None)
    assert "a1.1  rms_norm_forward: " in told
    assert told.rstrip().endswith("not done yet: a1.1 (rms_norm_backward), a1.2, a1.3, a1.4, a1.5")
    assert told.count("not done yet") == 1 and "NotImplementedError" not in told
    assert result.earned < result.points


def test_printing_costs_nothing_and_is_shown_in_part():
    body = "import os\nprint('found it', 'y' * 5000000)\nos.write(1, b'raw'); os.write(2, b'raw')"
    result, told = lines_of(files(body, head="print('at import')"))
    assert result.complete, told
    assert result.printed.startswith("at import\n") and "found it" in result.printed
    assert len(result.printed) <= 2000


def test_patching_numpy_and_the_harness_changes_only_the_own_answers():
    head = (
        "import sys\nnp.allclose = np.array_equal = lambda *a, **k: True\nnp.abs = lambda x: 0 * np.asarray(x)\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('minedge.course'):\n"
        "        for key in list(vars(module)):\n"
        "            if key in ('difference', '_same', 'check_files', 'Outcome'):\n"
        "                setattr(module, key, lambda *a, **k: '')\n"
    )
    result, told = lines_of(files("return 0 * x, (0, 0, x[..., 0])", head))
    assert result.earned < result.points, told
    assert np.allclose([1.0], [2.0]) is False


def test_garbage_in_the_answers_pipe_is_not_believed():
    body = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 4096)\n    except OSError: pass"
    result, told = lines_of(files(body))
    assert result.earned < result.points
    assert "bytes, at most" in told or "no readable answer" in told or "cut off" in told


def test_no_secrets_and_no_other_files_reach_the_process(monkeypatch):
    monkeypatch.setenv("COURSE_TOKEN", "very-secret")
    body = "import os\nraise ValueError(sorted(os.environ.items()) + [os.getcwd(), os.listdir('.')])"
    _, told = lines_of(files(body))
    assert "ValueError" in told and "very-secret" not in told
    calls = A1.folder / "calls.py"
    reading = files("import os\nraise ValueError(os.environ.get('COURSE_TOKEN'), os.environ['HOME'] == os.getcwd())")
    with Student(reading, calls, A1.limits) as student:
        with pytest.raises(CallError, match=r"\(None, True\)"):
            student.call("rms_norm_forward", x=np.ones((1, 2)), weight=np.ones(2), eps=0.1)
        folder = student._folder
        assert folder.exists()
    assert not folder.exists()


def test_nothing_is_left_running():
    body = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nreturn x, (0, 0, x[..., 0])"
    )
    with Student(files(body), A1.folder / "calls.py", replace(A1.limits, processes=4096)) as student:
        student.call("rms_norm_forward", x=np.ones((1, 2)), weight=np.ones(2), eps=0.1)
        pid = student._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "value",
    [None, True, -3, 2.5, "text", [1, [2.0, "x"]], {"a": {"b": [None]}}, np.arange(6.0).reshape(2, 3), np.float32(2),
     {"x": np.zeros((0, 3), np.int8), "y": [np.array(True), np.ones(2, np.float16)]}],
)  # fmt: skip
def test_values_come_through_the_wire_as_they_are(value):
    def same(a, b):
        if isinstance(a, np.ndarray):
            return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b

    assert same(value, unpack(pack(value)[8:]))


def test_a_message_that_pack_did_not_write_is_a_format_error():
    whole = pack({"x": np.arange(12.0).reshape(3, 4), "y": "text"})[8:]
    for cut in range(len(whole)):
        with pytest.raises(MinedgeFormatError):
            unpack(whole[:cut])
    for old, new in ((b"[3, 4]", b"[3, 9]"), (b'"float64"', b'"object0"'), (b"[3, 4]", b"[-3,4]"), (b", 0]", b", 9]")):
        assert old in whole
        with pytest.raises(MinedgeFormatError):
            unpack(whole.replace(old, new))
    assert unpack(pack({"x": np.zeros((0, 3))})[8:])["x"].shape == (0, 3)
    many = '{"v": {"$array": ["int8", [' + ", ".join(["9" * 80] * 5000) + "], 0]}}"
    with pytest.raises(MinedgeFormatError, match="does not fit its bytes"):
        unpack(struct.pack("<I", len(many)) + many.encode())
    with pytest.raises(TypeError, match="a value of type set"):
        pack({1, 2})
