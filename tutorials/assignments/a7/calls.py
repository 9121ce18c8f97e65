"""What a7 asks of the student's int4_ladder.c: compiled with the system's compiler, called through ctypes.

Every array lies between two forbidden pages, so that a byte read or written outside is a segmentation fault; what has
to be written is filled with NaN before. Speed is measured against the library's own file, compiled with the same flags
and run in turns.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).resolve().parents[3] / "kernels" / "ladder" / "int4_ladder.c"
FLAGS = ["-std=gnu11", "-O2", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-ffp-contract=off", "-pthread"]
OUTSIDE = 12345.0  # stands in rows of y that may not be touched
PARTS = ("q", "scales", "x", "xscales", "xsums")
# What speed is measured on. Short calls for the slow steps: a long one is interrupted on a busy machine every time.
ROWS, BLOCKS = {"scalar": 512, "unrolled": 512, "simd": 2048, "threads": 4096}, 64


class Arguments(ctypes.Structure):
    """struct product of the C file."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("y", *PARTS)), ("rows", ctypes.c_int64), ("blocks", ctypes.c_int64)
    ]  # fmt: skip


def setup(student, files):
    source = files["int4_ladder.c"]
    found = [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path]
    compiler = shlex.split(os.environ.get("CC", "")) or found[:1]
    if not compiler or shutil.which(compiler[0]) is None:
        raise RuntimeError("no C compiler here: install one (Debian: apt install gcc; macOS: xcode-select --install)")
    own, reference = source.with_suffix(".so"), source.with_name("reference.so")
    building = [
        (path, _started([*compiler, *FLAGS, "-fPIC", "-shared", text, "-o", path]))
        for path, text in ((own, source), (reference, REFERENCE))
        if not path.exists()
    ]
    # Where a blank of step 3 is left: is it this processor's?
    blank = b'NOT_IMPLEMENTED("a7.3' in source.read_bytes()
    seen = _started([*compiler, "-std=gnu11", "-E", source]) if blank else None
    for _, process in building:
        _finished(process)
    student.own, student.reference = (_library(path) for path in (own, reference))
    student.emulator = None
    if seen and b'not_implemented = "a7.3' in _finished(seen):
        student.emulator = _emulator(source)
        if student.emulator is not None:  # on this processor there is no step 3: step 4 shares out step 2
            without = source.with_suffix(".steps.so")
            if not without.exists():
                _finished(_started([*compiler, *FLAGS, "-DNO_SIMD", "-fPIC", "-shared", source, "-o", without]))
            student.own = _library(without)


def _started(command):
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _finished(process):
    out, error = process.communicate(timeout=60)
    if process.returncode:
        lines = [
            line
            for line in error.decode(errors="replace").splitlines()
            if "error" in line.lower() or "undefined" in line
        ]
        first = (lines or error.decode(errors="replace").splitlines() or ["the compiler said nothing"])[0]
        folder = str(Path(first.partition(":")[0]).parent)
        raise RuntimeError(f"does not compile: {first.removeprefix(folder + os.sep)}")
    return out


def _library(path):
    library = ctypes.CDLL(str(path))
    steps = {}
    for name in ("scalar", "unrolled", "simd"):
        steps[name] = getattr(library, f"product_{name}")
        steps[name].argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        steps[name].restype = None
    steps["threads"] = library.product_threads
    steps["threads"].argtypes, steps["threads"].restype = (ctypes.c_void_p, ctypes.c_int64), None
    steps["missing"] = ctypes.c_char_p.in_dll(library, "not_implemented")
    steps["supported"] = bool(library.simd_supported())
    return steps


def _emulator(source):
    """The NEON step as an emulated program, where the tools for that are there and it is not a blank as well."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if platform.machine() == "aarch64" or not compiler or not emulator:
        return None
    seen = _started([compiler, "-std=gnu11", "-E", source])
    if b'not_implemented = "a7.3' in _finished(seen):
        return None
    program = source.with_suffix(".arm")
    if not program.exists():
        driver = Path(__file__).with_name("driver.c")
        _finished(_started([compiler, *FLAGS, "-static", f'-DSTUDENT="{source}"', driver, "-o", program]))
    return subprocess.Popen([emulator, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


# --- arrays between forbidden pages -----------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _guarded(array, at_end):
    """A copy whose first or last byte has a forbidden neighbour."""
    page = mmap.PAGESIZE
    inside = (array.nbytes // page + 1) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for where in (base, base + page + inside):
        if _libc.mprotect(where, page, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, np.uint8, array.nbytes, page + (inside - array.nbytes if at_end else 0))
    copy = copy.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _prepared(arrays, begin, end, at_end):
    y = np.full(len(arrays["q"]), OUTSIDE, np.float32)
    y[begin:end] = np.nan
    arrays = {**arrays, "xsums": arrays["x"].sum(1, dtype=np.int32)}
    placed = {name: _guarded(array, at_end) for name, array in {"y": y, **arrays}.items()}
    rows, blocks = arrays["scales"].shape
    return placed, Arguments(*(placed[name].ctypes.data for name in ("y", *PARTS)), rows, blocks)


def _run(library, step, arguments, *rest):
    library["missing"].value = None
    library[step](ctypes.byref(arguments), *rest)
    if library["missing"].value is not None:
        raise NotImplementedError(library["missing"].value.decode(errors="replace"))


def _asked(emulator, placed, begin, end, at_end):
    """The same call in the emulated program."""
    rows, blocks = placed["scales"].shape
    head = np.array([rows, blocks, begin, end, at_end], np.int64)
    emulator.stdin.write(head.tobytes() + b"".join(placed[name].tobytes() for name in (*PARTS, "y")))
    emulator.stdin.flush()
    answer = emulator.stdout.read(1 + placed["y"].nbytes)
    if len(answer) != 1 + placed["y"].nbytes:
        raise OSError(f"the emulated program ended with code {emulator.wait()}: it read or wrote outside its arrays")
    placed["y"][...] = np.frombuffer(answer, np.float32, offset=1)


# --- calls ------------------------------------------------------------------------------------------------------------


def product(student, step, q, scales, x, xscales, begin, end):
    """Rows begin..end-1 by one step, twice: arrays that end at a forbidden page, and arrays that begin at one."""
    found = []
    for at_end in (True, False):
        placed, arguments = _prepared({"q": q, "scales": scales, "x": x, "xscales": xscales}, begin, end, at_end)
        if step == "simd" and student.emulator is not None:
            _asked(student.emulator, placed, begin, end, at_end)
        elif step == "simd" and not student.own["supported"]:
            raise OSError(
                "this processor lacks AVX2 and FMA (or is no x86-64 or ARM64); use another machine for step 3"
            )
        else:
            _run(student.own, step, arguments, begin, end)
        found.append(placed["y"].copy())
    return {"y": found[0], "y_at_start": found[1]}


def threads(student, q, scales, x, xscales, count):
    placed, arguments = _prepared({"q": q, "scales": scales, "x": x, "xscales": xscales}, 0, len(q), True)
    _run(student.own, "threads", arguments, count)
    return {"y": placed["y"].copy()}


def speed(student, step, seconds):
    """Best times of the student's step and of the reference's, measured in turns."""
    if (step in ("simd", "threads") and student.emulator is not None) or _is_emulated():
        return {"measured": False}
    rng, rows = np.random.default_rng(0), ROWS[step]
    # Processor time leaves out what other programs take; for several threads only the clock on the wall will do.
    clock = time.perf_counter if step == "threads" else time.thread_time
    arrays = {
        "q": rng.integers(0, 256, (rows, BLOCKS, 16)).astype(np.uint8),
        "scales": rng.standard_normal((rows, BLOCKS)).astype(np.float32),
        "x": rng.integers(-127, 128, (BLOCKS, 32)).astype(np.int8),
        "xscales": rng.random(BLOCKS).astype(np.float32),
    }
    placed, arguments = _prepared(arrays, 0, rows, True)
    width = max(2, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2))
    rest = (width,) if step == "threads" else (0, rows)
    best = {"own": np.inf, "reference": np.inf}
    began, turns = time.perf_counter(), 0
    while turns < 6 or (time.perf_counter() - began < seconds and turns < 400):
        for who in ("own", "reference") if turns % 2 else ("reference", "own"):
            start = clock()
            _run(getattr(student, who), step, arguments, *rest)
            best[who] = min(best[who], clock() - start)
        turns += 1
        if time.perf_counter() - began > 6 * seconds:
            break
    nbytes = placed["q"].nbytes + placed["scales"].nbytes
    return {"measured": True, **best, "bytes": nbytes, "threads": width if step == "threads" else 1}


def _is_emulated():
    """An ARM process on an x86 kernel: emulators of programs show the machine's own /proc/cpuinfo."""
    with contextlib.suppress(OSError):
        return platform.machine() == "aarch64" and "vendor_id" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False
