"""What quantize, prune and fuse share: writing the new model and saying what changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minedge.cli.common import (
    adapter_folder,
    check_apart,
    check_output,
    disk_bytes,
    find,
    load_model,
    model_facts,
    model_path,
    need_tokenizer,
)
from minedge.cli.console import Console
from minedge.cli.data import data_options, held_out_part, load_dataset, max_length, measure_text
from minedge.cli.parser import integer, model_options, one_of, output_options
from minedge.cli.text import size

__all__ = ["compress_options", "file_dtype", "report_change", "save"]


def compress_options(parser: argparse.ArgumentParser) -> None:
    """--model, --out, --overwrite, --dtype, and --data for the loss before and after."""
    model_options(parser)
    output_options(parser, "folder for the new model", True, "--save-path")
    parser.add_argument(
        "--dtype", type=one_of("float16", "float32"), metavar="T",
        help="float16 or float32, for what stays dense (default: as the model's own file)",
    )  # fmt: skip
    data_options(parser, required=False, what="measure the loss before and after on this")
    parser.add_argument(
        "--test-batches", type=integer(-1), default=0, metavar="N", help="batches of 8 rows at most; 0 or -1 for all"
    )


def file_dtype(name: str) -> str | None:
    """'float16' where the model's own file holds that, so that its untouched weights are written as they came."""
    from minedge.io.jsonfile import read_json

    file = model_path(name) / "config.json"
    if not file.is_file():  # a GGUF or llama2.c file
        return None
    data = read_json(file)
    return "float16" if data.get("dtype", data.get("torch_dtype")) == "float16" else None


def prepare(args: argparse.Namespace, *sources: Path, **more: Any) -> tuple[Any, Any]:
    """Everything that can be wrong with the options, before any work: (model, data or None). `sources` is what is read
    beside the model and its adapter, `more` is for `minedge.load`.
    """
    check_output(args.out, args.overwrite)
    adapter = [adapter_folder(args.adapter_path)] if getattr(args, "adapter_path", None) else []
    check_apart(args.out, find(args.model), model_path(args.model), *adapter, *sources)
    args.source_bytes = disk_bytes(model_path(args.model))  # before anything is written
    model = load_model(args, **more)
    if not hasattr(args, "data"):
        return model, None
    max_length(args, model)
    dataset = load_dataset(args) if args.data else None
    if dataset is not None:
        need_tokenizer(model)
    return model, dataset


def save(model: Any, args: argparse.Namespace, dtype: str | None) -> Path:
    """Write the model to --out, whole or not at all."""
    out = Path(args.out).expanduser()
    model.save(out, dtype=dtype, overwrite=args.overwrite)
    return out


def report_change(
    args: argparse.Namespace, console: Console, before: Any, after: Any, dataset: Any, **extra: Any
) -> dict[str, Any]:
    """Print and return bytes and losses before and after; `after` is on disk at --out already."""
    report: dict[str, Any] = {"out": str(args.out), "model": model_facts(after), **extra}
    rows: list[list[str]] = []

    def row(name: str, key: str, old: float, new: float, show: Any) -> None:
        report[f"{key}_before"], report[f"{key}_after"] = old, new
        rows.append([name, show(old), show(new), f"{new / old:.3f}" if old else "-"])

    row("on disk", "disk_bytes", args.source_bytes, disk_bytes(Path(args.out).expanduser()), size)
    old_bytes, new_bytes = before.nbytes(), after.nbytes()
    row("resident", "resident_bytes", old_bytes["total"], new_bytes["total"], size)
    row("  linear weights", "linear_bytes", old_bytes["linear"], new_bytes["linear"], size)
    row("  embedding", "embedding_bytes", old_bytes["embedding"], new_bytes["embedding"], size)
    if dataset is not None:
        part, length = held_out_part(dataset, None), max_length(args, before)
        batches = max(0, args.test_batches)
        console.status(f"measuring the loss on {dataset.name}, {part} part")
        losses = [measure_text(model, dataset, part, length, 8, batches)["loss"] for model in (before, after)]
        row(f"loss ({dataset.name} {part})", "loss", losses[0], losses[1], "{:.4f}".format)
    console.table(["", "before", "after", "ratio"], rows)
    console.out(f"saved {args.out}; try: minedge generate --model {args.out} --prompt 'The'")
    console.result(report)
    return report
