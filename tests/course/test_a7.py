"""The kernel ladder: equal to the package's own kernels; and what becomes of a file that does not compile, crashes,
hangs, or is written for another processor.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from minedge.course import load
from minedge.course.cut import handout, solution
from minedge.course.sandbox import Student
from minedge.ops import c_ops
from tests.course.planted import verdict

A7 = load("a7")
FILE = A7.files[0]
SOLVED = solution(A7, FILE)
BLANK = handout(A7, FILE)
ISAS = [name for name, supported in c_ops.isas() if supported]
SCALAR = "    /* BEGIN SOLUTION a7.1 */"


def student(text: str) -> Student:
    return Student({FILE.name: text.encode()}, A7.folder / "calls.py", A7.limits)


def with_first_step(body: str) -> str:
    """The solution with another step 1."""
    begin = SOLVED.index("    for (int64_t o = begin; o < end; o++) {")
    return SOLVED[:begin] + body + "\n" + SOLVED[SOLVED.index("}\n\n/* Step 2") :]


def by_step(result) -> dict[str, object]:
    return {p.name: p.outcome for task in result.tasks for p in task.properties}


@pytest.mark.parametrize("isa", ISAS)
def test_every_step_gives_the_bits_of_the_packages_kernels(isa):
    """Integers in -127..127 with 127 in each block have scale 1 in int8; with weight scales that are powers of two all
    sums are exact, so both have to give the same bits; with one block, the integer sums themselves.
    """
    rng = np.random.default_rng(5)
    ops = c_ops.load(isa)
    with student(SOLVED) as ladder:
        for rows, blocks in ((1, 1), (7, 1), (9, 4), (33, 8)):
            q = rng.integers(0, 256, (rows, blocks * 16)).astype(np.uint8)
            scales = (2.0 ** rng.integers(-3, 3, (rows, blocks))).astype(np.float16)
            x = rng.integers(-127, 128, (blocks, 32)).astype(np.int8)
            x[:, 7] = 127
            want = ops["int4_int8_linear"](x.reshape(1, -1).astype(np.float32), q, scales, 32)[0]
            partial = ops["int4_int8_partials"](x.reshape(1, -1), q)[0]
            case = {
                "q": q.reshape(rows, blocks, 16), "scales": scales.astype(np.float32), "x": x,
                "xscales": np.ones(blocks, np.float32),
            }  # fmt: skip
            for step in ("scalar", "unrolled", "simd"):
                got = ladder.call("product", step=step, **case, begin=0, end=rows)["y"]
                assert got.tobytes() == want.tobytes(), (step, rows, blocks)
                if blocks == 1:
                    ones = {**case, "scales": np.ones((rows, 1), np.float32)}
                    got = ladder.call("product", step=step, **ones, begin=0, end=rows)["y"]
                    assert np.array_equal(got, partial[:, 0])
            for count in (1, 3, 64):
                assert ladder.call("threads", **case, count=count)["y"].tobytes() == want.tobytes()


def test_a_syntax_error_names_file_and_line():
    result = verdict(A7, {FILE.name: SOLVED.replace("float sum = 0;", "float sum = 0", 1).encode()})
    line = 1 + SOLVED[: SOLVED.index("float sum = 0;")].count("\n")
    assert result.earned == 0 and "error" in result.problem
    assert any(f"{FILE.name}:{n}:" in result.problem for n in (line, line + 1)), result.problem


def test_a_missing_function_is_said():
    result = verdict(A7, {FILE.name: SOLVED.replace("void product_threads(", "void product_theads(").encode()})
    assert result.earned == 0 and "product_threads" in result.problem


def test_a_crash_costs_its_own_parts_and_is_called_a_crash():
    files = {FILE.name: with_first_step("    *(volatile int *)0 = (int)(begin + end + p->rows);").encode()}
    outcomes = by_step(verdict(A7, files))
    assert outcomes["scalar: exact"].kind == "crash" and "SIGSEGV" in outcomes["scalar: exact"].detail
    assert outcomes["scalar: exact"].misconceptions == ("outside_the_arrays",)
    assert outcomes["simd: speed"].ok or outcomes["simd: speed"].kind == "crash"  # its tail goes through step 1


def test_an_endless_loop_ends():
    quick = replace(A7, limits=replace(A7.limits, seconds=1.5))
    files = {FILE.name: with_first_step("    for (volatile int on = 1; on;) (void)p, (void)begin, (void)end;").encode()}
    outcomes = by_step(verdict(quick, files))
    assert outcomes["scalar: exact"].kind == "timeout"


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in verdict(A7, {FILE.name: SOLVED.encode()}).problem


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")), reason="needs an emulator of ARM"
)
def test_the_other_processors_step_is_accepted_for_correctness():
    blank = BLANK.index('    NOT_IMPLEMENTED("a7.3')
    begin = SOLVED.index("    const __m256i nibble")
    end = SOLVED.index("}\n#elif", begin)
    text = SOLVED[:begin] + BLANK[blank : BLANK.index("\n", blank) + 1] + SOLVED[end:]
    for file, ok in ((text, True), (text.replace("vshrq_n_u8(bytes, 4)", "vshrq_n_u8(bytes, 3)"), False)):
        outcomes = by_step(verdict(A7, {FILE.name: file.encode()}))
        assert outcomes["simd: exact"].ok is ok and outcomes["simd: any scales"].ok is ok
        assert not outcomes["simd: speed"].ok and outcomes["unrolled: speed"].ok
        assert outcomes["threads"].ok and outcomes["threads: any scales"].ok and not outcomes["threads: speed"].ok
    assert "emulation" in by_step(verdict(A7, {FILE.name: text.encode()}))["simd: speed"].detail
