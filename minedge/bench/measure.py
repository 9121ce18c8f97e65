"""Competitors in turns: processes, alternation, time limits.

While one competitor works the others are stopped (SIGSTOP): a thread pool that waits by spinning would otherwise take
from whoever is being measured. Turns go A B C A B C ..., each about as long as all others, so that a machine that
changes its pace changes it for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minedge.bench.busy import cpu_times
from minedge.bench.jobs import Job

__all__ = ["Failed", "Limits", "Run", "Worker", "ask", "race"]

ROOT = str(Path(__file__).resolve().parents[2])
THREAD_VARIABLES = (
    "MINEDGE_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip


class Failed(Exception):  # noqa: N818 - what a competitor reports, not a fault of ours
    """A competitor that could not start, computed nothing or took too long; the message is one line."""


@dataclass(frozen=True)
class Limits:
    """rounds: turns of each competitor, at most; turn: seconds that one is to take; part: seconds for all of a part,
    preparation included; setup: seconds until a competitor is ready.
    """

    rounds: int = 7
    turn: float = 1.0
    part: float = 120.0
    setup: float = 120.0


@dataclass
class Run:
    """What one competitor did. `seconds` has one entry a turn: wall time of one unit."""

    job: Job
    settings: str = ""
    outputs: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # share of the processors that others used, per turn
    imports_bytes: int = 0
    peak_bytes: int = 0
    error: str = ""
    check: str = ""  # what its outputs were compared with, and how it came out
    wrong: bool = False

    @property
    def counts(self) -> bool:
        """Measured, and its outputs are right."""
        return bool(self.seconds) and not self.error and not self.wrong


class Worker:
    """A competitor's process. Raises `Failed` from every method when it does not answer as it should."""

    def __init__(self, job: Job, limit: float):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH", "")]))}
        env.update(dict.fromkeys(THREAD_VARIABLES, str(job.threads)))
        env.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"})
        self.job, self._stopped = job, False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        command = [job.python or sys.executable, "-m", "minedge.bench.worker"]
        try:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
                encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            self._stderr.close()
            raise Failed(f"{command[0]} does not start: {error.strerror}") from None
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.ready = self._ask(job.to_dict(), limit)
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _ask(self, message: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        limit = max(0.1, limit)
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise Failed(f"no answer within the {limit:.0f} s that were left of its time (--time-limit)") from None
        except OSError:
            line = ""
        if not line:
            raise Failed(f"its process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.wait(5)
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return (lines or ["it said nothing"])[-1] + f" (exit code {self._process.returncode})"

    def turn(self, units: int, limit: float) -> dict[str, Any]:
        """Let it work; the answer has "others", the share of all processors that was not used by it."""
        self.resume()
        before, begun = cpu_times(), time.perf_counter()
        answer = self._ask({"units": units}, limit)
        after, elapsed = cpu_times(), time.perf_counter() - begun
        self.pause()
        answer["others"] = -1.0
        if before is not None and after is not None and after[2] > before[2] and elapsed > 0.2:  # ticks are 0.01 s
            used = (after[0] - before[0] + after[1] - before[1]) / (after[2] - before[2])
            answer["others"] = max(0.0, used - answer["process_cpu_seconds"] / (elapsed * (os.cpu_count() or 1)))
        return answer

    def pause(self) -> None:
        """Stop it until `resume`."""
        self._signal("SIGSTOP", True)

    def resume(self) -> None:
        """Let it go on."""
        self._signal("SIGCONT", False)

    def _signal(self, name: str, stopped: bool) -> None:
        if hasattr(signal, name) and self._stopped != stopped and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))
            self._stopped = stopped

    def close(self) -> None:
        """End the process, kindly where it listens."""
        self.resume()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


def ask(job: Job, limit: float) -> dict[str, Any]:
    """What a competitor has to say once it is ready; no turns. Raises `Failed`."""
    worker = Worker(job, limit)
    worker.close()
    return worker.ready


def race(jobs: Sequence[Job], limits: Limits, say: Callable[[str], None] = lambda text: None) -> list[Run]:
    """Run competitors against each other. The first one's outputs are given to the later ones (`job.given`).

    One that fails keeps its `error` and the others go on. Fewer rounds than asked for are made when time runs out.
    """
    deadline = time.monotonic() + limits.part
    runs, workers = [Run(job) for job in jobs], {}
    left = lambda most=float("inf"): min(most, deadline - time.monotonic())  # noqa: E731 - read at each use
    try:
        for i, run in enumerate(runs):
            say(f"preparing {run.job.label}")
            given = next((r.outputs for r in runs if r.outputs), {})
            try:
                if left() <= 0:
                    raise Failed(f"not started: the time limit of {limits.part:.0f} s is over (--time-limit)")
                worker = Worker(run.job.with_given(given), left(limits.setup))
                worker.pause()
                _take_over(run, worker.ready)
                workers[i] = worker
            except Failed as failure:
                run.error = str(failure)
        units = dict.fromkeys(workers, 1)
        for i in list(workers):  # the first turn warms up: caches, pages, compilation; it decides how long a turn is
            say(f"warming up {runs[i].job.label}")
            for _ in range(2):
                answer = _turn(workers, runs, i, units[i], left())
                if answer is None or answer["seconds"] > limits.turn / 2:
                    break
                units[i] = max(1, min(10**6, round(limits.turn / max(answer["seconds"] / units[i], 1e-6))))
        for n in range(limits.rounds):
            slowest = max(
                (max(r.seconds[-1:], default=0.0) * units[i] for i, r in enumerate(runs) if i in workers), default=0.0
            )
            if not workers or left() < slowest * len(workers):
                break
            for i in list(workers):
                say(f"round {n + 1}/{limits.rounds}: {runs[i].job.label}")
                answer = _turn(workers, runs, i, units[i], left(60 + limits.part))
                if answer is not None:
                    runs[i].seconds.append(answer["seconds"] / answer["units"])
                    runs[i].cpu_seconds.append(answer["cpu_seconds"] / answer["units"])
                    runs[i].peak_bytes = answer["peak_bytes"]
                    if answer["others"] >= 0:
                        runs[i].others.append(answer["others"])
    finally:
        for worker in workers.values():
            worker.close()
    for run in runs:
        if not run.seconds and not run.error:
            run.error = f"no turn ended within the time limit of {limits.part:.0f} s (--time-limit)"
    return runs


def _take_over(run: Run, ready: dict[str, Any]) -> None:
    run.settings, run.outputs, run.facts = ready["settings"], ready["outputs"], ready["facts"]
    run.imports_bytes = ready["imports_bytes"]


def _turn(workers: dict[int, Worker], runs: list[Run], i: int, units: int, limit: float) -> dict[str, Any] | None:
    """A turn of competitor i; one that fails leaves the race."""
    try:
        return workers[i].turn(units, limit)
    except Failed as failure:
        runs[i].error = str(failure)
        workers.pop(i).close()
        return None
