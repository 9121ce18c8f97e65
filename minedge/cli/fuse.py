"""minedge fuse: merge a LoRA adapter into its model."""

from __future__ import annotations

import argparse
from typing import Any

from minedge.cli.common import check_output, disk_bytes, load_model, model_facts
from minedge.cli.compress import save
from minedge.cli.console import Console
from minedge.cli.parser import model_options, one_of, output_options
from minedge.cli.text import size
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Add a LoRA adapter's update to the weights it adapts and write the result as an ordinary model, which
runs without the adapter's extra products. Over int4 or pruned weights some of the update is lost; a warning says how
much."""
EXAMPLES = (
    "minedge fuse --adapter-path my-run/adapter --out fused",
    "minedge fuse --model my-int4 --adapter-path my-run/adapter --out fused --verify",
    "minedge fuse --adapter-path my-run/adapter --out fused --dtype float16 --json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    output_options(parser, "folder for the merged model", True, "--save-path")
    add = parser.add_argument
    add(
        "--dtype",
        type=one_of("float16", "float32"),
        metavar="T",
        help="float16 or float32 in the file (default: float32)",
    )
    add("--verify", action="store_true", help="load the result and print the largest difference of a logit")


def run(args: argparse.Namespace, console: Console) -> int:
    import minedge

    check_output(args.out, args.overwrite)
    model = load_model(args)
    if not any(".lora_A." in name for name in model.params):
        raise UsageError(
            "--adapter-path: expected an adapter to merge, the model has none; minedge train --method lora makes one"
        )
    merged = minedge.lora.merge(model)
    out = save(merged, args, args.dtype)
    adapters = len(model.params) - len(merged.params)
    report: dict[str, Any] = {
        "out": str(out),
        "merged_arrays": adapters,
        "disk_bytes": disk_bytes(out),
        "model": model_facts(merged),
    }
    console.out(f"merged {adapters // 2} adapted matrices; saved {out}, {size(report['disk_bytes'])}")
    if args.verify:
        report["largest_logit_difference"], scale = logit_difference(model, minedge.load(out, backend=args.backend))
        console.out(f"largest logit difference {report['largest_logit_difference']:.3g} (largest logit {scale:.3g})")
    console.result(report)
    return 0


def logit_difference(a: Any, b: Any, rows: int = 4) -> tuple[float, float]:
    """Largest difference of a logit of two models on fixed random tokens, and the largest logit beside it."""
    import numpy as np

    length = min(64, a.config.context_length)
    tokens = np.random.default_rng(0).integers(0, a.config.vocab_size, (rows, length))
    x, y = a.logits(tokens), b.logits(tokens)
    return float(np.abs(x - y).max()), float(np.abs(x).max())
