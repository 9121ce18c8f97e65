"""minedge prune: set the smallest weights to zero and store what is left."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any

from minedge.cli.compress import compress_options, file_dtype, prepare, report_change, save
from minedge.cli.console import Console
from minedge.cli.parser import fraction, one_of
from minedge.cli.text import size
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Remove the weights of smallest magnitude: exactly round(sparsity * n) of n, per matrix or over the
whole model, or n of every m neighbours. The file keeps a bit mask and the weights that are left, so it really is
smaller; in memory the matrices stay dense. The mask survives fine-tuning, which wins back much of the loss. With
--pack they stay packed in memory too, which takes less of it and generates text faster where the model is larger than
the caches (`minedge bench --only sparse`), and are trained through an adapter only; a model that is pruned already is
packed as it is unless --sparsity, --nm, --scope or --target asks to prune it further."""
EXAMPLES = (
    "minedge prune --sparsity 0.5 --out bundled-half",
    "minedge prune --sparsity 0.5 --scope global --out half --data stdlib",
    "minedge prune --nm 2:4 --out two-of-four",
    "minedge prune --nm 2:4 --pack float16 --out two-of-four-packed",
    "minedge prune --model recovered --pack --out recovered-packed",
    "minedge train --model bundled-half --data stdlib --method full --iters 200 --out recovered",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    compress_options(parser)
    add = parser.add_argument
    add(
        "--sparsity",
        type=fraction(high_open=True),
        metavar="S",
        help="share of weights to remove, in [0, 1) (default: 0.5)",
    )
    add(
        "--scope",
        type=one_of("layer", "global"),
        metavar="HOW",
        help="layer: each matrix alike; global: the smallest anywhere",
    )
    add("--nm", type=_pattern, metavar="N:M", help="keep the N largest of every M neighbours, such as 2:4")
    add(
        "--pack",
        nargs="?",
        const="float32",
        type=one_of("float32", "float16"),
        metavar="T",
        help="keep the weights that are left packed in memory, as float32 or float16 (default with --pack: float32)",
    )
    add(
        "--target",
        metavar="NAMES",
        help="matrices to prune, such as q_proj,up_proj (default: all but embedding and head)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    import minedge

    if args.nm and (args.sparsity is not None or args.scope):
        raise UsageError("--nm: sets the sparsity and the scope itself; leave out --sparsity and --scope")
    model, dataset = prepare(args)
    names = args.target.split(",") if args.target else None
    asked = args.nm or args.sparsity is not None or args.scope or args.target
    if args.pack and not asked and _facts(model):
        pruned = model  # pruned before, and trained since: only to be packed
    elif args.nm:
        pruned = minedge.prune.nm(model, args.nm[0], args.nm[1], names=names)
    else:
        sparsity = 0.5 if args.sparsity is None else args.sparsity
        pruned = minedge.prune.magnitude(model, sparsity=sparsity, scope=args.scope or "layer", names=names)
    if args.pack:
        pruned = minedge.sparse.pack(pruned, args.pack)
    dtype = args.dtype or file_dtype(args.model)
    save(pruned, args, dtype)
    facts = _facts(pruned).values()
    weights, kept = sum(f["weights"] for f in facts), sum(f["kept"] for f in facts)
    width = 2 if dtype == "float16" else 4
    dense, stored = weights * width, kept * (2 if args.pack == "float16" else width) + _mask_bytes(facts)
    console.out(
        f"kept {kept:,} of {weights:,} weights in {len(facts)} matrices; "
        f"in the file {size(stored)} instead of {size(dense)}"
    )
    extra = {"weights": weights, "kept": kept, "sparsity": 1 - kept / weights if weights else 0.0}
    extra |= {"pruned_dense_bytes": dense, "pruned_stored_bytes": stored}
    report_change(args, console, model, pruned, dataset, **extra)
    return 0


def _facts(model: Any) -> dict[str, dict[str, Any]]:
    """Of every pruned matrix, packed or not, what the two reports say."""
    import minedge

    return {**minedge.prune.report(model), **minedge.sparse.report(model)}


def _mask_bytes(facts: Iterable[dict[str, Any]]) -> int:
    return sum((f["weights"] + 7) // 8 for f in facts)


def _pattern(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"expected N:M with 0 < N < M, such as 2:4, got {text!r}")
    return int(match[1]), int(match[2])
