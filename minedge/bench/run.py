"""The whole measurement: every part on every shape and number of threads, checked, with the limits beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minedge.bench.busy import Load, free_bytes, look
from minedge.bench.jobs import Job
from minedge.bench.machine import Limit, describe, limits_of
from minedge.bench.measure import Failed, Limits, Run, ask, race
from minedge.bench.parts import Entry, Part, part
from minedge.bench.shapes import Shape
from minedge.bench.weights import RANK, Store, lora_target
from minedge.errors import MinedgeError

__all__ = ["PartResult", "Report", "Settings", "bench"]

Say = Callable[[str], None]
Done = Callable[["PartResult", Mapping[int, Limit]], None]
MIN_CONTEXT = 1024  # of a shape, for decoding at a long context to mean anything


@dataclass(frozen=True)
class Settings:
    """What to measure. `backends`: of minedge, None for the default; `absent`: peers that are not installed, and why;
    `weights`: a folder to keep made weights in, None for a temporary one.
    """

    shapes: Sequence[Shape]
    parts: Sequence[str]
    threads: Sequence[int]
    backends: Sequence[str | None] = (None,)
    peers: Sequence[str] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    peer_python: str = ""
    limits: Limits = field(default_factory=Limits)
    weights: Path | None = None


@dataclass
class PartResult:
    """A part on a shape ("" where it has none) with a number of threads. `note`: why there is nothing, if so."""

    name: str
    what: str
    shape: str
    threads: int
    runs: list[Run] = field(default_factory=list)
    note: str = ""

    @property
    def ours(self) -> Run | None:
        """The run that ratios refer to: minedge on the first backend."""
        return next((run for run in self.runs if run.job.who == "minedge" and run.counts), None)


@dataclass
class Report:
    """Everything that was found."""

    machine: dict[str, Any]
    load: Load
    absent: Mapping[str, str]
    results: list[PartResult] = field(default_factory=list)
    interrupted: bool = False

    @property
    def limits(self) -> dict[int, Limit]:
        """By number of threads, from everything that was measured so far."""
        return limits_of(run for result in self.results for run in result.runs)


def bench(settings: Settings, say: Say = lambda text: None, done: Done | None = None) -> Report:
    """Measure. `say` is told what goes on, `done` each part's result as it comes, and the limits so far. Ctrl-C ends it
    with the parts that were finished.
    """
    report = Report(describe(), look(), settings.absent)
    if report.load.disturbed:
        say(report.load.warning)
    try:
        _all_parts(report, settings, say, done)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _all_parts(report: Report, settings: Settings, say: Say, done: Done | None) -> None:
    with _folder(settings.weights) as folder:
        stores = {s.name: Store(s, folder, say, settings.limits.setup) for s in settings.shapes}
        for name in settings.parts:
            what = part(name)
            for shape in settings.shapes if what.shaped else (None,):
                references: dict[str, Mapping[str, Any]] = {}  # of the c tier one serves every number of threads
                for threads in settings.threads:
                    result = PartResult(name, what.what, shape.name if shape else "", threads)
                    store = stores[shape.name] if shape else None
                    _measure(result, what, shape, store, settings, references, say)
                    report.results.append(result)
                    if done is not None:
                        done(result, report.limits)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Where weights go: a folder that stays, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    made = Path(tempfile.mkdtemp(prefix="minedge-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _measure(
    result: PartResult, what: Part, shape: Shape | None, store: Store | None, settings: Settings,
    references: dict[str, Mapping[str, Any]], say: Say,
) -> None:  # fmt: skip
    title = f"{what.name}{f' {shape.name}' if shape else ''}, threads {result.threads}"
    result.note = _unfit(what, shape)
    if result.note:
        return
    jobs, failed = _jobs(what, shape, store, result.threads, settings)
    runs = race(jobs, settings.limits, lambda text: say(f"{title}: {text}"))
    for run in runs:
        if run.job.who == "minedge" and run.outputs and not run.error:
            say(f"{title}: checking {run.job.label}")
            _check_ours(run, what, settings, references)
    ours = next((run for run in runs if run.job.who == "minedge" and run.outputs), None)
    for run in runs:
        if run.job.who != "minedge" and run.outputs and not run.error:
            if ours is None:
                run.check, run.wrong = "nothing of minedge to compare with", True
            else:
                right, run.check = what.check(run.job.who, run.outputs, ours.outputs)
                run.wrong = not right
    result.runs = [*runs, *failed]


def _check_ours(run: Run, what: Part, settings: Settings, references: dict[str, Mapping[str, Any]]) -> None:
    found: Mapping[str, Any] = {}
    if what.reference:
        key = json.dumps([run.job.files, run.outputs if what.scores else None], sort_keys=True, default=str)
        if key not in references:
            job = replace(run.job, maker=what.reference, backend=None).with_given(run.outputs)
            try:
                references[key] = ask(job, settings.limits.setup + settings.limits.part)["outputs"]
            except Failed as failure:
                run.check, run.wrong = f"the reference failed: {failure}", True
                return
        found = references[key]
    right, run.check = what.check("minedge", run.outputs, found)
    run.wrong = not right


def _unfit(what: Part, shape: Shape | None) -> str:
    """Why a part cannot be measured on a shape, if so."""
    if shape is None:
        return ""
    if what.name == "context" and shape.config.context_length < MIN_CONTEXT and not shape.config.uses_rotary:
        return f"left out: the model's context is {shape.config.context_length}"
    free = free_bytes()
    if what.needs and free is not None:
        from minedge.ledger import plan

        adapter = {"r": RANK, "target": lora_target(shape.config)} if what.needs == "lora" else None
        peak = plan(shape.config, what.needs, shape.batch_size, shape.seq_len + 1, lora=adapter).peak
        if peak > 0.9 * free:
            return f"left out: {peak / 1e9:.1f} GB predicted, {free / 1e9:.1f} GB free (a smaller --batch-size may fit)"
    return ""


def _jobs(
    what: Part, shape: Shape | None, store: Store | None, threads: int, settings: Settings
) -> tuple[list[Job], list[Run]]:
    """The competitors, and those whose weights cannot be made."""
    jobs: list[Job] = []
    failed: list[Run] = []
    for entry in what.entries:
        if entry.who != "minedge" and (entry.who not in settings.peers or entry.who in settings.absent):
            continue
        ours = entry.who == "minedge"
        for i, backend in enumerate(settings.backends if ours else (None,)):
            if entry.alone and i:
                continue
            name = f"minedge {backend}" if ours and backend and not entry.alone else entry.who
            job = Job(
                entry.who,
                f"{name}, {entry.note}" if entry.note else name,
                entry.maker,
                threads,
                backend if ours else None,
                shape.config.to_dict() if shape else {},
                _sizes(what, entry, shape),
                python="" if ours else settings.peer_python,
            )
            try:
                files = {kind: store.get(kind) for kind in entry.files} if store is not None else {}
                jobs.append(replace(job, files=files))
            except (Failed, MinedgeError) as error:
                failed.append(Run(job, error=f"its weights could not be made: {error}"))
    return jobs, failed


def _sizes(what: Part, entry: Entry, shape: Shape | None) -> dict[str, Any]:
    """The part's and the entry's numbers, cut to what the model's context holds."""
    sizes = {**what.sizes, **entry.sizes}
    if shape is None:
        return sizes
    most = shape.config.context_length
    for key, room in (("context", 64), ("length", 8)):
        if key in sizes and not (key == "context" and shape.config.uses_rotary):  # angles have no end
            sizes[key] = max(1, min(sizes[key], most - room))
    return {**sizes, "batch_size": shape.batch_size, "seq_len": shape.seq_len}
