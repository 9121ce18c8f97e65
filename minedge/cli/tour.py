"""minedge tour: the whole chain on real text, measured as it goes."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from minedge.cli.common import check_replaced
from minedge.cli.console import Console
from minedge.cli.parser import integer, output_options
from minedge.cli.text import count, duration, size
from minedge.errors import UsageError
from minedge.io.owned import folder_kind

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Watch a small language model being fine-tuned with LoRA and with MeZO (forward passes only), pruned,
quantized to int4 and generating text, all on this machine's CPU, with every figure measured as it goes. Takes about
three minutes on two cores.
Data is the text of Python's own standard library; nothing is downloaded."""
EXAMPLES = (
    "minedge tour",
    "minedge tour --seed 1 --out my-tour",
    "minedge tour --json > tour.json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    output_options(
        parser, "folder for the models, adapters and logs it makes (default: a new folder minedge-tour)", False
    )
    parser.add_argument(
        "--seed", type=integer(0), default=0, metavar="N", help="of batches, adapters, perturbations (default: 0)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    from minedge.api import load
    from minedge.cli.tour_stages import Tour, quiet_warnings, usable_backends

    began = time.monotonic()
    out = _fresh(Path(args.out), args.overwrite) if args.out else _free("minedge-tour")
    out.mkdir(parents=True)
    (out / "tour.json").write_text('{"finished": false}\n', encoding="utf-8")  # marks the folder as a tour's
    base = load("bundled", backend=args.backend)
    machine = _machine(base.ops.spec)
    console.note(
        f"minedge tour on {machine['cpu']}, {machine['cores']} cores, kernels: {machine['backend']}; seed {args.seed}"
    )
    with quiet_warnings():
        tour = Tour(base, out, args.seed, console.note, console.progress, usable_backends())
        tour.run()
    seconds = time.monotonic() - began
    document = {
        "finished": True,
        "stages": [s.to_dict() for s in tour.stages],
        "baselines": tour.baselines,
        "machine": machine,
        "seed": args.seed,
        "peak_bytes": tour.highest_peak,
        "seconds": seconds,
        "out": str(out),
    }
    (out / "tour.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.result(document)
    _show(console, tour, seconds, out)
    return 0


def _show(console: Console, tour: Any, seconds: float, out: Path) -> None:
    by_name = {s.stage: s for s in tour.stages}
    console.out()
    console.table(
        ["stage", "trained", "accuracy", "vs base", "label loss", "vs base", "loss"],
        [
            ["majority class", "", f"{tour.baselines['majority']:.1%}", "", "", "", ""],
            ["bag of words", "", f"{tour.baselines['bag_of_words']:.1%}", "", "", "", ""],
            *(
                [
                    s.title,
                    f"{count(s.trained_params)} ({s.trained_share:.1%})" if s.trained_params else "",
                    f"{s.accuracy:.1%}",
                    _change(s.accuracy_change, s.accuracy_change_se, percent=True),
                    f"{s.label_loss:.3f}",
                    _change(s.label_loss_change, s.label_loss_change_se),
                    f"{s.loss:.3f}",
                ]
                for s in tour.stages
            ),
        ],
        title=f"What it learned: {tour.stages[0].n_test} test examples of 8 classes; ± is one paired standard error",
    )
    console.table(
        ["stage", "on disk", "resident", "peak predicted", "measured", *(f"tokens/s {b}" for b in tour.backends)],
        [
            [
                s.title,
                size(s.disk_bytes),
                size(s.resident_bytes),
                size(s.predicted_peak_bytes) if s.predicted_peak_bytes else "",
                size(s.peak_bytes) if s.peak_bytes is not None else "",
                *(f"{s.tokens_per_s_by_backend[b]:,.0f}" for b in tour.backends),
            ]
            for s in tour.stages
        ],
        title="What it costs",
    )
    int4, pruned = by_name["int4"].notes, by_name["prune"].notes
    console.out(
        f"int4: linear weights take {int4['linear_ratio']:.3f} of their float32 bytes; with the embedding in int4 too "
        f"the loss is {int4['loss_with_int4_embeddings']:.3f} and the model takes "
        f"{size(int4['resident_bytes_with_int4_embeddings'])} in memory"
    )
    ratio = by_name["prune"].disk_bytes / by_name["base"].disk_bytes
    console.out(
        f"pruned: {pruned['kept']:,} of {pruned['pruned_weights']:,} weights kept; those tensors take "
        f"{pruned['stored_ratio']:.3f} of their dense float16 bytes, the whole file {ratio:.3f}"
    )
    console.out(f"\nthe same prompt, before and after ({tour.stages[0].text!r} is the base model's)")
    for s in tour.stages[1:]:
        console.out(f"  {s.title}: {s.text!r}")
    console.out(
        f"\n{duration(seconds)} in all, peak memory {size(tour.highest_peak)}; models, adapter, log, tour.json: {out}"
    )
    console.out(
        f"next: minedge chat --model {out / 'int4-model'}    minedge train --data YOUR.txt --method lora --out mine"
    )


def _change(difference: float | None, se: float | None, percent: bool = False) -> str:
    if difference is None or se is None:
        return ""
    if percent:
        return f"{difference:+.1%} ± {se:.1%}"
    return f"{difference:+.3f} ± {se:.3f}" if math.isfinite(se) else f"{difference:+.3f}"


def _free(name: str) -> Path:
    """`name`, or the first of name-2, name-3, ... that does not exist."""
    path, n = Path(name), 1
    while path.exists():
        n += 1
        path = Path(f"{name}-{n}")
    return path


def _fresh(path: Path, overwrite: bool) -> Path:
    """A folder that does not exist, or with `overwrite` an earlier tour's, which is removed."""
    if path.exists() and overwrite and folder_kind(path) == "tour":
        check_replaced(path)
        shutil.rmtree(path)
    if path.exists():
        what = "holds no earlier tour, so --overwrite does not replace it" if overwrite else "exists already"
        raise UsageError(
            f"--out: {str(path)!r} {what}; choose another name" + ("" if overwrite else ", or --overwrite")
        )
    return path


def _machine(backend: str) -> dict[str, Any]:
    from minedge.cli.doctor import examine

    facts = examine()["machine"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": facts.get("processor") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": cores,
        "python": platform.python_version(),
        "backend": backend,
        "date": time.strftime("%Y-%m-%d"),
    }
