"""minedge fuse: merge LoRA adapters into their model."""

from __future__ import annotations

import argparse
import math
from typing import Any

from minedge.cli.common import adapter_folder, disk_bytes, model_facts
from minedge.cli.compress import prepare, save
from minedge.cli.console import Console
from minedge.cli.parser import model_options, one_of, output_options
from minedge.cli.text import size
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Add a LoRA adapter's update to the weights it adapts and write the result as an ordinary model, which
runs without the adapter's extra products. Several adapters are added up, each with its weight. Over int4, nf4 or pruned
weights some of the update is lost; a warning says how much, and --verify what that does to the logits."""
EXAMPLES = (
    "minedge fuse --adapter-path my-run/adapter --out fused",
    "minedge fuse --model my-int4 --adapter-path my-run/adapter --out fused --verify",
    "minedge fuse --adapter-path a=run1/adapter --adapter-path b=run2/adapter --weights a=0.7,b=0.3 --out both",
    "minedge fuse --adapter-path my-run/adapter --out fused --dtype float16 --json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser, adapter=False)
    output_options(parser, "folder for the merged model", True, "--save-path")
    add = parser.add_argument
    add(
        "--adapter-path",
        action="append",
        metavar="[NAME=]DIR",
        help="LoRA adapter to put on the model; given again, one more, each under a name of its own",
    )
    add("--weights", metavar="NAME=W,...", help="merge only these adapters, each times its number (default: all, 1)")
    add(
        "--dtype",
        type=one_of("float16", "float32"),
        metavar="T",
        help="float16 or float32 in the file (default: float32)",
    )
    add("--verify", action="store_true", help="load the result and print the largest difference of a logit")


def run(args: argparse.Namespace, console: Console) -> int:
    import minedge

    weights = _weights(args.weights)
    paths, args.adapter_path = args.adapter_path or [], None
    model, _ = prepare(args, *(adapter_folder(given.rpartition("=")[2]) for given in paths))
    for given in paths:
        name, _, path = given.rpartition("=")
        model = minedge.lora.load_adapter(model, adapter_folder(path), adapter=name or "default")
    if not any(kind.is_adapter for kind in model.linears.values()):
        raise UsageError(
            "--adapter-path: expected an adapter to merge, the model has none; minedge train --method lora makes one"
        )
    merged = minedge.lora.merge(model, weights)
    out = save(merged, args, args.dtype)
    adapted = len(minedge.lora.merge_costs(model, weights)) if args.verify else _merged(model, merged)
    report: dict[str, Any] = {
        "out": str(out),
        "merged_arrays": len(model.params) - len(merged.params),
        "merged_matrices": adapted,
        "weights": weights,
        "disk_bytes": disk_bytes(out),
        "model": model_facts(merged),
    }
    console.out(f"merged {adapted} adapted matrices; saved {out}, {size(report['disk_bytes'])}")
    if args.verify:
        report.update(_verified(model, minedge.load(out, backend=args.backend), weights, console))
    console.result(report)
    return 0


def _merged(model: Any, merged: Any) -> int:
    """Matrices that carry fewer adapters than before."""
    return sum(kind != merged.linears[name] for name, kind in model.linears.items())


def _weights(text: str | None) -> dict[str, float] | None:
    """'a=0.7,b=0.3' -> {"a": 0.7, "b": 0.3}."""
    if text is None:
        return None
    out: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            out[name.strip()] = float(number)
        except ValueError:
            raise UsageError(f"--weights: expected NAME=NUMBER,..., such as a=0.7,b=0.3, got {text!r}") from None
    return out


def _verified(model: Any, saved: Any, weights: dict[str, float] | None, console: Console) -> dict[str, Any]:
    """Merged against unmerged: logits, and where the weights had to be rounded again, what that costs."""
    import minedge
    from minedge.model.linears import core

    difference, largest, same, positions = _compared(minedge.lora.beside(model, weights), saved)
    report: dict[str, Any] = {
        "largest_logit_difference": difference,
        "largest_logit": largest,
        "same_next_token": same / positions,
    }
    console.out(
        f"largest logit difference {difference:.3g} (largest logit {largest:.3g}); "
        f"same next token at {same} of {positions} random positions"
    )
    costs = minedge.lora.merge_costs(model, weights)
    lossy = {name: cost for name, cost in costs.items() if core(model.linears[name]).kind != "dense"}
    if lossy:
        worst = max(lossy, key=lambda name: lossy[name].lost)
        error, change = (math.hypot(*(getattr(cost, part) for cost in lossy.values())) for part in ("error", "change"))
        kinds = sorted({core(model.linears[name]).kind for name in lossy})
        lost, in_a_weight = error / change if change else 0.0, max(cost.largest for cost in lossy.values())
        report["requantizing"] = {
            "kinds": kinds,
            "lost": lost,
            "largest_weight_error": in_a_weight,
            "worst": {"name": worst, "lost": lossy[worst].lost},
        }
        console.out(
            f"putting the sum into {', '.join(kinds)} again loses {lost:.0%} of the adapters' change, at most "
            f"{lossy[worst].lost:.0%} ({worst}) and {in_a_weight:.2g} in a weight"
        )
    return report


def logit_difference(a: Any, b: Any, rows: int = 4) -> tuple[float, float]:
    """Largest difference of a logit of two models on fixed random tokens, and the largest logit beside it."""
    return _compared(a, b, rows)[:2]


def _compared(a: Any, b: Any, rows: int = 4) -> tuple[float, float, int, int]:
    """Of two models on fixed random tokens: largest difference of a logit, the largest logit, at how many positions
    both find the same next token likeliest, and at how many they were asked.
    """
    import numpy as np

    length = min(64, a.config.context_length)
    tokens = np.random.default_rng(0).integers(0, a.config.vocab_size, (rows, length))
    x, y = a.logits(tokens), b.logits(tokens)
    same = int((x.argmax(-1) == y.argmax(-1)).sum())
    return float(np.abs(x - y).max()), float(np.abs(x).max()), same, rows * length
