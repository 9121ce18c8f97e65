"""The protocol: what a competitor says and does, and what happens to one that does not."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from minedge.bench import measure
from minedge.bench.measure import Failed, Limits, Worker, ask, race
from minedge.bench.stats import Spread, ratios, spread
from tests.bench.conftest import job

QUICK = Limits(rounds=3, turn=0.02, part=60, setup=60)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_spread_is_the_median_and_the_quartiles():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]).relative == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_a_rate_turns_the_slow_quartile_into_the_low_one():
    assert Spread(2.0, 1.0, 4.0, 3).per(8) == Spread(4.0, 2.0, 8.0, 3)


def test_ratios_are_taken_round_by_round():
    """A machine that halves its pace after the first round changes no ratio; the ratio of means would be off."""
    assert ratios([2.0, 4.0, 4.0], [1.0, 2.0, 2.0]) == Spread(2.0, 2.0, 2.0, 3)
    assert ratios([3.0, 9.0], [1.0]).n == 1


def test_turns_alternate_and_the_first_ones_do_not_count(tmp_path):
    order = tmp_path / "order"
    runs = race([job(name="A", order=str(order)), job("torch", name="B", order=str(order))], QUICK)
    assert [len(run.seconds) for run in runs] == [3, 3]
    assert order.read_text().endswith("ABABAB")
    assert len(order.read_text()) > 6  # the warm-up


def test_only_what_the_clock_saw_counts():
    (run,) = race([job(seconds=0.03, unmeasured=0.2)], QUICK)
    assert all(0.03 <= s < 0.2 for s in run.seconds)


def test_the_first_ones_outputs_are_given_to_the_later_ones():
    first, second = race([job(number=5), job("torch")], QUICK)
    assert first.outputs["given"] == {}
    assert second.outputs["given"]["number"] == 5


def test_memory_is_the_works_and_not_the_imports():
    (run,) = race([job(imports_mb=64, work_mb=100)], QUICK)
    mega = 1 << 20
    assert run.imports_bytes > 64 * mega
    assert 95 * mega < run.peak_bytes - run.imports_bytes < 130 * mega


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"fails": True}, "ValueError: this toy fails"),
        ({"dies": True}, "its process ended"),
        ({"breaks": True}, "RuntimeError: broken in a turn"),
    ],
)
def test_one_that_fails_says_why_and_the_others_go_on(sizes, said):
    bad, good = race([job(**sizes), job("torch")], QUICK)
    assert said in bad.error and "\n" not in bad.error
    assert not bad.counts
    assert good.counts and len(good.seconds) == 3


def test_one_that_hangs_is_given_up():
    with pytest.raises(Failed, match="no answer within"):
        Worker(job(hangs=True), limit=1.5)


def test_a_part_ends_at_its_time_limit():
    runs = race([job(seconds=0.5)], Limits(rounds=1000, turn=0.5, part=4.0, setup=60))
    assert 0 < len(runs[0].seconds) < 8 or "time limit" in runs[0].error


def test_an_unknown_interpreter_is_a_failure_not_a_crash():
    from dataclasses import replace

    (run,) = race([replace(job(), python=str(ROOT / "no-such-python"))], QUICK)
    assert "no-such-python" in run.error


def test_the_others_are_stopped_meanwhile():
    """State T in /proc/PID/stat: stopped by a signal."""
    if not hasattr(signal, "SIGSTOP") or not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    worker = Worker(job(), limit=60)
    state = lambda: Path(f"/proc/{worker._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]  # noqa: E731
    worker.pause()
    try:
        for _ in range(100):
            if state() == "T":
                break
            __import__("time").sleep(0.02)
        assert state() == "T"
        assert worker.turn(1, 30)["seconds"] > 0
    finally:
        worker.close()
    assert worker._process.returncode is not None


def test_a_competitor_is_kept_on_as_many_cpus_as_it_has_threads(tmp_path):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("needs sched_getaffinity")
    probe = "import json, os; from minedge.bench.worker import pin; pin(1); print(len(os.sched_getaffinity(0)))"
    done = __import__("subprocess").run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_asking_returns_what_is_ready():
    assert ask(job(number=3), 60)["outputs"]["number"] == 3


def test_threads_are_set_before_the_process_starts(monkeypatch):
    seen = {}
    real = measure.subprocess.Popen
    monkeypatch.setattr(measure.subprocess, "Popen", lambda *a, **k: seen.update(k["env"]) or real(*a, **k))
    Worker(job(threads=1), 60).close()
    assert {seen[name] for name in measure.THREAD_VARIABLES} == {"1"}
