"""One competitor's process: reads its job, does its part in turns, says how long each took.

The protocol is a line of JSON each way, over stdin and stdout:

    job (see jobs.py)            ->  {"ready": true, "settings": ..., "outputs": ..., "imports_bytes": ..., ...}
    {"units": n}                 ->  {"seconds": ..., "cpu_seconds": ..., "peak_bytes": ..., ...}
    end of input                     the process ends
    an exception at any point    ->  {"error": "one line"}, and the process ends

Nothing but the protocol reaches the parent's end of stdout: what native libraries print goes to stderr. Memory is the
process's peak since everything was loaded, and what it held when only libraries were, so the difference is the work's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["Clock", "Subject", "main"]


class Clock:
    """Adds up wall and processor time of the blocks that count."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        begun, cpu = time.perf_counter(), cpu_seconds()
        yield
        self.seconds += time.perf_counter() - begun
        self.cpu_seconds += cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Processor time of this process and of the processes that it waited for."""
    children = os.times()[2:4] if hasattr(os, "times") else (0.0, 0.0)  # in ticks of 0.01 s
    return time.process_time() + sum(children)


class Subject:
    """What a competitor's factory returns: ready to work.

    settings  one line on how it is set up (dtype, packing, threads)
    outputs   what it computed from the shared inputs, JSON-able; the check compares these
    facts     other figures to report, such as "weight_bytes", the weights it reads per token
    """

    settings: str = ""
    outputs: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None

    def run(self, units: int, clock: Clock) -> None:
        """Do the work `units` times; only what happens inside `with clock.running()` counts."""
        raise NotImplementedError

    def peak_bytes(self) -> int:
        """The peak of the process that works, since everything was loaded."""
        from minedge import ledger

        return ledger.peak_bytes()


def pin(threads: int) -> None:
    """Keep this process on `threads` of its CPUs, the last ones: the first often serves interrupts."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[-threads:])


def main() -> int:
    """Serve one parent on stdin and stdout."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        job = json.loads(sys.stdin.readline())
        _serve(job, say)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        import traceback

        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return 1
    return 0


def _serve(job: dict[str, Any], say: Any) -> None:
    pin(job["threads"])
    from minedge import ledger as memory

    module, _, name = job["maker"].partition(":")
    home = importlib.import_module(module)
    home.imports(job)  # everything that `name` will import, so that its memory is not counted as the work's
    memory.give_back()
    imports_bytes = memory.resident_bytes()
    begun = time.perf_counter()
    subject = getattr(home, name)(job)
    loaded = time.perf_counter() - begun
    memory.give_back()
    memory.reset_peak()
    said = {"settings": subject.settings, "outputs": subject.outputs or {}, "facts": subject.facts or {}}
    say({"ready": True, **said, "imports_bytes": imports_bytes, "loaded_seconds": loaded})
    for line in sys.stdin:
        clock, units, cpu = Clock(), json.loads(line)["units"], cpu_seconds()
        subject.run(units, clock)
        say({
            "seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "units": units,
            "process_cpu_seconds": cpu_seconds() - cpu, "peak_bytes": subject.peak_bytes(),
        })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
