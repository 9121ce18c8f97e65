"""The numba tier's own threads: they change no bit, survive a fork, and serve several callers at once."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest

import minedge.ops
from minedge.errors import UsageError


@pytest.fixture
def runtime():
    from minedge.ops.numba_ops import runtime

    before = runtime.threads()
    yield runtime
    runtime.set_threads(before)


def _everything() -> bytes:
    """Bytes of one training step's worth of ops, large enough to be split."""
    ops = minedge.ops.get("numba")
    rng = np.random.default_rng(0)
    f = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, dout = f(700, 320), f(700, 320)
    parts = []
    for name, args in (
        ("rms_norm", (x, f(320), 1e-5)),
        ("layer_norm", (x, f(320), f(320), 1e-5)),
        ("bias", (x, f(320))),
        ("swiglu", (x, f(700, 320))),
        ("gelu", (x,)),
        ("embedding", (rng.integers(0, 50, 700), f(50, 320))),
    ):
        out, cache = getattr(ops, f"{name}_forward")(*args)
        grads = getattr(ops, f"{name}_backward")(dout, cache)
        parts += [out, *(grads if isinstance(grads, tuple) else (grads,))]
    q = f(2, 70, 6, 16)
    out, cache = ops.attention_forward(q, q[:, :, :3].copy(), q[:, :, 3:].copy())
    parts += [out, *ops.attention_backward(q, cache)]
    loss, cache = ops.cross_entropy_forward(x, rng.integers(0, 320, 700), np.ones(700, np.float32))
    parts += [np.array(loss), ops.cross_entropy_backward(1.0, cache), np.array(ops.sum_squares(x))]
    parts += [ops.normal(1, 2, 3, 4, 5, 100_003), ops.perturb(x, 1e-3, 1, 2, 3, 4)]
    packed, scales = ops.int4_quantize(x, 32)
    parts += [
        packed,
        scales,
        ops.int4_dequantize(packed, scales, 32),
        ops.int4_int8_linear(dout[:9], packed, scales, 32),
    ]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def test_number_of_threads_changes_no_bit(runtime):
    runtime.set_threads(1)
    want = _everything()
    for n in (2, 3, 7):
        runtime.set_threads(n)
        assert _everything() == want, f"{n} threads give other bits than one"


def test_several_callers_at_once(runtime):
    runtime.set_threads(3)
    want, results = _everything(), []
    callers = [threading.Thread(target=lambda: results.append(_everything() == want)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert results == [True] * 4


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_child_made_by_fork_after_a_parallel_call_does_not_hang():
    """In a fresh process, because pytest's own threads make forking here a gamble."""
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_numba_threads as t\n"
        "from minedge.ops.numba_ops import runtime\n"
        "runtime.set_threads(3); want = t._everything(); pid = os.fork()\n"
        "if pid == 0: os._exit(0 if t._everything() == want else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    folder = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], check=True, timeout=120)


def test_row_results_do_not_depend_on_the_batch(runtime):
    """The kernels sum each row in one order: alone or among others, a row has the same bits."""
    ops = minedge.ops.get("numba")
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((40, 96)).astype(np.float32), rng.standard_normal((50, 96)).astype(np.float32)
    packed, scales = ops.int4_quantize(weight, 32)
    for call in (
        lambda rows: ops.rms_norm_forward(rows, weight[0], 1e-5)[0],
        lambda rows: ops.int4_int8_linear(rows, packed, scales, 32),
    ):
        whole = call(x)
        for i in (0, 7, 39):
            assert call(x[i : i + 1]).tobytes() == whole[i].tobytes()


def test_width_comes_from_the_environment_and_nonsense_is_refused(runtime, monkeypatch):
    for text, want in (("3", 3), ("1", 1)):
        monkeypatch.setenv("MINEDGE_THREADS", text)
        monkeypatch.setattr(runtime, "_threads", None)
        assert runtime.threads() == want
    for text in ("0", "two", "1e3", "-1", "257"):
        monkeypatch.setenv("MINEDGE_THREADS", text)
        monkeypatch.setattr(runtime, "_threads", None)
        with pytest.raises(UsageError, match="MINEDGE_THREADS"):
            runtime.threads()
