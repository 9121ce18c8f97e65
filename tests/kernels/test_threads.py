"""The number of threads changes no bit; the pool survives forks and several callers; the environment is checked."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest

from minedge.ops import c_ops
from tests.kernels.cases import CASES, ISAS, bits_of, outputs
from tests.python import PYTHON

F = np.float32


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=F)


def pruned(out: int, width: int, dtype: type = np.float32) -> tuple:
    """A packed pruned weight: bits, values, starts."""
    weight = f(out, width, seed=6)
    keep = weight > 0.2
    starts = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
    return np.packbits(keep, bitorder="little"), weight[keep].astype(dtype), starts


def _codes(S: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values of an int8 cache, and their scales."""
    codes = np.random.default_rng(S).integers(-127, 128, (2, S, 3, 32), dtype=np.int8)
    return codes, np.abs(f(2, S, 3)) / 50


def big(name: str) -> tuple:
    """Arguments large enough for the pool to split the work."""
    rng = np.random.default_rng(3)
    shapes = {
        "attention_forward": lambda: (f(2, 100, 6, 32), f(2, 110, 3, 32), f(2, 110, 3, 32)),
        "attention_backward": lambda: (f(2, 100, 6, 32), (f(2, 100, 6, 32), f(2, 110, 3, 32), f(2, 110, 3, 32),
                                                         f(2, 100, 6, 32), np.abs(f(2, 6, 100)) + 5)),
        "cached_attention": lambda: (f(2, 30, 6, 32), f(2, 610, 3, 32), f(2, 610, 3, 32)),
        "cached_attention_int8": lambda: (f(2, 30, 6, 32), *_codes(610), *_codes(610)),
        "embedding_forward": lambda: (rng.integers(0, 50, (20, 40)), f(50, 130)),
        "embedding_backward": lambda: (f(20, 40, 130), (rng.integers(0, 50, (20, 40)), (50, 130))),
        "rotary_forward": lambda: (f(2, 90, 4, 64), f(90, 32), f(90, 32)),
        "rotary_backward": lambda: (f(2, 90, 4, 64), (f(90, 32), f(90, 32))),
        "bias_forward": lambda: (f(700, 130), f(130)),
        "rms_norm_forward": lambda: (f(700, 130), f(130), 1e-5),
        "layer_norm_forward": lambda: (f(700, 130), f(130), f(130), 1e-5),
        "rms_norm_backward": lambda: (f(700, 130), (f(700, 130), f(130), np.abs(f(700)))),
        "layer_norm_backward": lambda: (f(700, 130), (f(700, 130), f(130), f(700), np.abs(f(700)))),
        "bias_backward": lambda: (f(700, 130), ()),
        "cross_entropy_forward": lambda: (f(300, 130), rng.integers(0, 130, 300), np.abs(f(300))),
        "cross_entropy_backward": lambda: (0.5, (f(300, 130), rng.integers(0, 130, 300), np.abs(f(300)), f(300))),
        "linear_forward": lambda: (f(200, 400), f(130, 400)),
        "linear_backward": lambda: (f(200, 130), (f(200, 400), f(130, 400))),
        "linear_both": lambda: (f(2, 200, 450), f(230, 450), 1e-3, 5, 1, 2, 3),
        "int4_linear_forward": lambda: (f(200, 256), *big("int4_dequantize")),
        "int4_linear_backward": lambda: (f(200, 300), big("int4_dequantize")),
        "int4_dequantize": lambda: (rng.integers(0, 256, (300, 128), dtype=np.uint8), f(300, 8).astype(np.float16), 32),
        "q8_int8_linear": lambda: (f(21, 256), *big("q8_dequantize")),
        "q8_dequantize": lambda: (rng.integers(-127, 128, (301, 256), dtype=np.int8), f(301, 8).astype(np.float16)),
        "half_linear_forward": lambda: (f(21, 255), f(301, 255).astype(np.float16)),
        "half_linear_backward": lambda: (f(21, 301), (f(301, 255).astype(np.float16),)),
        "half_widen": lambda: (f(301, 255).astype(np.float16),),
        "sparse_linear_forward": lambda: (f(21, 256), *pruned(301, 256)),
        "sparse_linear_backward": lambda: (f(21, 301), pruned(301, 256)),
        "int4_int8_linear": lambda: (f(21, 256), rng.integers(0, 256, (300, 128), dtype=np.uint8),
                                     f(300, 8).astype(np.float16), 32),
        "int4_int8_partials": lambda: (rng.integers(-128, 128, (7, 256), dtype=np.int8),
                                       rng.integers(0, 256, (300, 128), dtype=np.uint8)),
        "int4_quantize": lambda: (f(300, 256), 32),
        "int8_quantize": lambda: (f(300, 256),),
        "nf4_quantize": lambda: (f(300, 256), 32),
        "nf4_dequantize": lambda: (rng.integers(0, 256, (300, 128), dtype=np.uint8), np.abs(f(300, 8)), 32),
        "nf4_linear_forward": lambda: (f(200, 256), *big("nf4_dequantize")),
        "nf4_linear_backward": lambda: (f(200, 300), big("nf4_dequantize")),
    }  # fmt: skip
    return shapes[name]() if name in shapes else CASES[name](rng, 100_000)


@pytest.fixture
def restore_threads():
    before = c_ops.threads()
    yield
    c_ops.set_threads(before)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_thread_count_changes_no_bit(name, isa, restore_threads):
    ops, seen = c_ops.load(isa), set()
    for n in (1, 2, 3, 4, 7, 8):
        c_ops.set_threads(n)
        seen.add(bits_of(outputs(name, ops, big(name))))
    assert len(seen) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_batch_size_changes_no_bit(isa):
    """A row alone is the same row in company, for each op that works row by row."""
    ops = c_ops.load(isa)
    x, w, b = f(40, 96), f(96), f(96, seed=1)
    q, s = ops["int4_quantize"](f(33, 96, seed=2), 32)
    q128, s128 = ops["int4_quantize"](f(33, 384, seed=2), 128)
    codes = np.random.default_rng(5).integers(-128, 128, (33, 96), dtype=np.int8)
    keys = f(1, 440, 2, 16, seed=5)
    codes8, scales8 = np.round(30 * keys).clip(-127, 127).astype(np.int8), np.abs(f(1, 440, 2)) / 50
    for one in (
        lambda a: ops["linear_forward"](a, f(50, 96, seed=4))[0],
        lambda a: ops["linear_both"](np.stack([a, a]), f(50, 96, seed=4), 1e-3, 5, 1, 2, 3)[1],
        lambda a: ops["linear_backward"](a, (f(len(a), 50), f(96, 50, seed=4)), False)[0],
        lambda a: ops["rms_norm_forward"](a, w, 1e-5)[0],
        lambda a: ops["layer_norm_forward"](a, w, b, 1e-5)[0],
        lambda a: ops["int4_int8_linear"](a, q, s, 32),
        lambda a: ops["int4_int8_linear"](np.tile(a, 4), q128, s128, 128),
        lambda a: ops["q8_int8_linear"](a, codes, s),
        lambda a: ops["half_linear_forward"](a, f(33, 96, seed=2).astype(np.float16))[0],
        lambda a: ops["half_linear_forward"](a[:, :95], np.resize(q, (33, 95)).astype(np.uint16) << 7)[0],
        lambda a: ops["sparse_linear_forward"](a, *pruned(33, 96))[0],
        lambda a: ops["sparse_linear_forward"](a, *pruned(33, 96, np.float16))[0],
        lambda a: ops["swiglu_forward"](a, a)[0],
        lambda a: ops["gelu_forward"](a)[0],
        lambda a: ops["cached_attention_int8"](
            a.reshape(1, -1, 6, 16), *(x[:, : 400 + len(a)] for x in (codes8, scales8) * 2)
        )[0],
        lambda a: ops["cached_attention"](a.reshape(1, -1, 6, 16), keys[:, : 400 + len(a)], keys[:, : 400 + len(a)])[0],
    ):
        whole = one(x)
        for n in (1, 2, 3, 5, 7, 8, 9, 13, 16, 23, 24):
            assert one(x[:n]).tobytes() == whole[:n].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_shapes_beyond_one_tile_change_no_bit(isa, restore_threads):
    """So wide and so many rows that the kernels cut both x and the weight into parts; odd remainders everywhere."""
    ops, rng = c_ops.load(isa), np.random.default_rng(8)
    x, w = f(99, 4096), f(45, 4096, seed=1)
    q, s = ops["int4_quantize"](w, 64)
    codes, scales = rng.integers(-128, 128, w.shape, dtype=np.int8), f(45, 128).astype(np.float16)
    c_ops.set_threads(2)
    for one in (
        lambda a: ops["int4_int8_linear"](a, q, s, 64),
        lambda a: ops["q8_int8_linear"](a, codes, scales),
        lambda a: ops["half_linear_forward"](a, w.astype(np.float16))[0],
        lambda a: ops["sparse_linear_forward"](a, *pruned(45, 4096))[0],
    ):
        whole = one(x)
        for row in (0, 8, 50, 79, 80, 87, 96, 98):
            assert one(x[row : row + 1]).tobytes() == whole[row].tobytes()


def test_a_forked_child_can_use_the_pool(restore_threads):
    c_ops.set_threads(4)
    ops, args = c_ops.load(), big("swiglu_forward")
    want = bits_of(outputs("swiglu_forward", ops, args))
    for _ in range(5):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(20):
                    status = 0 if bits_of(outputs("swiglu_forward", ops, args)) == want else 3
            finally:
                os._exit(status)
        deadline = time.monotonic() + 60
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("the child hangs")
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(status) == 0
        assert bits_of(outputs("swiglu_forward", ops, args)) == want  # and the parent goes on


def test_callers_on_several_threads(restore_threads):
    c_ops.set_threads(3)
    ops, args = c_ops.load(), big("rms_norm_backward")
    want = bits_of(outputs("rms_norm_backward", ops, args))
    wrong: list[int] = []

    def work() -> None:
        for _ in range(50):
            if bits_of(outputs("rms_norm_backward", ops, args)) != want:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert not wrong and not any(worker.is_alive() for worker in workers)


def test_expected_instruction_sets():
    """CI names what its machine must offer: MINEDGE_EXPECT_ISAS=scalar,avx2. The extension must be there anyway."""
    assert c_ops.available(), c_ops.why_not()
    usable = [name for name, supported in c_ops.isas() if supported]
    expected = os.environ.get("MINEDGE_EXPECT_ISAS")
    assert usable == expected.split(",") if expected else "scalar" in usable


def _python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PYTHON, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_environment_variables():
    show = "from minedge.ops import c_ops; print(c_ops.isa(), c_ops.threads())"
    assert _python(show, MINEDGE_ISA="scalar", MINEDGE_THREADS="3").stdout.split() == ["scalar", "3"]
    assert _python(show, MINEDGE_THREADS="").stdout.split()[1] == str(len(os.sched_getaffinity(0)))
    for bad in (
        {"MINEDGE_ISA": "avx9"},
        {"MINEDGE_THREADS": "0"},
        {"MINEDGE_THREADS": "two"},
        {"MINEDGE_THREADS": "1e3"},
    ):
        done = _python(show, **bad)
        assert done.returncode != 0 and "expected" in done.stderr and next(iter(bad)) in done.stderr, bad


def test_importable_without_the_extension():
    code = (
        "import sys; sys.modules['minedge._kernels'] = None\n"
        "from minedge.ops import c_ops\n"
        "print(c_ops.available(), bool(c_ops.why_not()), c_ops.isas(), c_ops.threads(), hasattr(c_ops, 'normal'))"
    )
    assert _python(code).stdout.split() == ["False", "True", "[]", "1", "False"]
