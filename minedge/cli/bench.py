"""minedge bench: what this machine does, by itself and beside other libraries."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from minedge.cli.common import check_file
from minedge.cli.console import Console
from minedge.cli.parser import integer, real
from minedge.cli.text import json_value
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "OWN_THREADS", "add_options", "run"]

DESCRIPTION = """Measure this machine (read bandwidth, float32 and int8 products) and what minedge does on it: decoding,
prefill, training, LoRA, MeZO, quantization, on random weights of a model's shape that are made on the spot. With --vs,
other libraries that are installed do the same work, in turns with minedge, each in a process of its own. Figures are
medians; ± is half the distance of the quartiles; a ratio is the median of the ratios round by round. Outputs are
compared with the NumPy specification in the same run, and a figure whose outputs are wrong does not count. Memory is
the process's peak less what its imports took. Ctrl-C ends it with what was measured by then."""
EXAMPLES = (
    "minedge bench --quick",
    "minedge bench --shape smollm2-135m --only machine,decode,prefill --vs llama.cpp --threads 1,2 --json",
    "minedge bench --shape nanogpt-char --only train --vs torch --peer-python other-venv/bin/python",
    "minedge bench --vs all --markdown table.md --svg roofline.svg --weights ~/bench-weights",
)
OWN_THREADS = True  # --threads is a list here, for the measured processes, not for this one


def add_options(parser: argparse.ArgumentParser) -> None:
    from minedge.bench.parts import PART_NAMES
    from minedge.bench.peers import PEERS
    from minedge.bench.shapes import SHAPES

    for action in parser._actions:
        if "--threads" in action.option_strings:
            action.type, action.metavar = _thread_counts, "N,..."
            action.help = "numbers of threads, each measured on as many CPUs (default: all CPUs)"
        if "--backend" in action.option_strings:
            action.type, action.metavar = None, "NAME,..."
            action.help = "of minedge; several are measured against each other, such as c,c:scalar,numba,numpy"
    add = parser.add_argument
    add(
        "--shape", default="smollm2-135m", metavar="NAME,...",
        help=f"{', '.join(SHAPES)}, or a config.json (default: smollm2-135m)",
    )  # fmt: skip
    add("--only", metavar="PARTS", help=f"out of {', '.join(PART_NAMES)} (default: all)")
    add("--vs", metavar="PEERS", help=f"all, or out of {', '.join(PEERS)}; they must be installed")
    add("--peer-python", default="", metavar="FILE", help="the interpreter that has the peers (default: this one)")
    add("--batch-size", type=integer(1), metavar="N", help="rows in training parts (default: the shape's)")
    add("--max-seq-length", type=integer(2), metavar="N", help="tokens a row in training parts (default: the shape's)")
    add("--rounds", type=integer(1, 1000), metavar="N", help="turns of each competitor (default: 7; with --quick 3)")
    add("--turn", type=real(above=True), metavar="S", help="seconds that a turn takes (default: 1; with --quick 0.3)")
    add(
        "--time-limit", type=real(above=True), metavar="S",
        help="seconds for one part, preparation included (default: 180; with --quick 60)",
    )  # fmt: skip
    add("--quick", action="store_true", help="a first look: few and short turns")
    add("--weights", metavar="DIR", help="keep the random weights here for the next time (default: a temporary folder)")
    add("--svg", metavar="FILE", help="write a roofline plot")
    add("--markdown", metavar="FILE", help="write the figures as a Markdown table")
    add("--report", metavar="FILE", help="also write the document of --json to a file")
    add("--overwrite", action="store_true", help="replace what an earlier call wrote to these files")


def run(args: argparse.Namespace, console: Console) -> int:
    from minedge.bench import report as reports
    from minedge.bench.markdown import markdown_table
    from minedge.bench.roofline import roofline_svg
    from minedge.bench.run import bench
    from minedge.io.atomic import atomic_write

    settings = _settings(args)
    for name, why in settings.absent.items():
        console.note(f"{name}: {why}")

    def done(result: Any, limits: Any) -> None:
        console.note()
        _show(result, limits, console)

    report = bench(settings, console.status, done)
    console.out()
    for line in [*reports.derived(report), *reports.headline(report)]:
        console.out(line)
    if report.interrupted:
        console.out("interrupted: the parts above were finished, others are missing")
    for name, why in settings.absent.items():
        console.out(f"{name}: {why}")
    document = json_value(reports.to_json(report))
    if args.svg:
        atomic_write(Path(args.svg).expanduser(), roofline_svg(report).encode())
        console.note(f"roofline plot: {args.svg}")
    if args.markdown:
        atomic_write(Path(args.markdown).expanduser(), markdown_table(report).encode())
        console.note(f"table: {args.markdown}")
    if args.report:
        atomic_write(Path(args.report).expanduser(), json.dumps(document, indent=2, allow_nan=False).encode())
        console.note(f"report: {args.report}")
    console.result(document)
    if report.interrupted:
        return 130
    ours = [run for result in report.results for run in result.runs if run.job.who == "minedge"]
    return 1 if any(run.wrong or run.error for run in ours) else 0


def _show(result: Any, limits: Any, console: Console) -> None:
    from minedge.bench import report as reports

    title = f"{result.name}{f' {result.shape}' if result.shape else ''}: {result.what}"
    if result.runs:
        console.table(reports.HEADERS, reports.rows_of(result, limits), title=title)
    else:
        console.out(title)
    for line in reports.lines_of(result):
        console.out(f"  {line}")


def _settings(args: argparse.Namespace) -> Any:
    from minedge import ops
    from minedge.bench import peers
    from minedge.bench.measure import Limits
    from minedge.bench.parts import PART_NAMES, parse_parts
    from minedge.bench.run import Settings
    from minedge.bench.shapes import find_shape

    shapes = [find_shape(name, args.batch_size, args.max_seq_length) for name in args.shape.split(",") if name]
    if not shapes:
        raise UsageError("--shape: expected a name or a config.json, got nothing")
    parts = parse_parts(args.only) if args.only is not None else PART_NAMES
    backends: list[str | None] = list(args.backend.split(",")) if args.backend else [None]
    for name in backends:
        ops.get(name)  # an unknown or unavailable one is refused before anything runs
    wanted = peers.parse_peers(args.vs) if args.vs is not None else ()
    absent = peers.missing(wanted, args.peer_python) if wanted else {}
    peers.require(wanted, absent, args.vs is not None and args.vs.strip() == "all")
    part = args.time_limit or (60.0 if args.quick else 180.0)
    limits = Limits(args.rounds or (3 if args.quick else 7), args.turn or (0.3 if args.quick else 1.0), part, part)
    threads = args.threads or [_cpus()]
    if max(threads) > _cpus():
        raise UsageError(f"--threads: expected at most {_cpus()}, the CPUs this process may use, got {max(threads)}")
    weights = Path(args.weights).expanduser() if args.weights else None
    outputs = (("--svg", args.svg, "plot"), ("--markdown", args.markdown, "table"), ("--report", args.report, "report"))
    for option, file, kind in outputs:  # before anything is measured
        if file:
            path = Path(file).expanduser()
            if not path.parent.is_dir():
                raise UsageError(f"{option}: the folder of {str(path)!r} does not exist; make it first")
            check_file(option, path, kind, args.overwrite)
    return Settings(
        shapes, parts, threads, backends, wanted, absent, args.peer_python, limits, weights
    )  # fmt: skip


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _thread_counts(text: str) -> list[int]:
    """Type of --threads: '1,2' -> [1, 2]."""
    return [integer(1, 256)(word) for word in text.split(",")]
