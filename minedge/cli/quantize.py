"""minedge quantize: pack weight matrices into 4 bits."""

from __future__ import annotations

import argparse

from minedge.cli.common import need_tokenizer
from minedge.cli.compress import compress_options, file_dtype, prepare, report_change, save
from minedge.cli.console import Console
from minedge.cli.parser import integer, one_of
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Store weight matrices in 4 bits instead of 32. int4: even steps with one float16 scale per group, as
GGML's Q4_0, 4.5 bits a weight, the faster one to generate text with. nf4: sixteen values spaced as trained weights
are, with scales in 8 bits (QLoRA's form), 4.13 bits a weight. Matrices whose width the group does not divide stay as
they are and are named in a warning. The model that is written can be run, and fine-tuned with an adapter on top."""
EXAMPLES = (
    "minedge quantize --out bundled-int4",
    "minedge quantize --model my-model --embeddings --scale mse --out my-int4 --data stdlib",
    "minedge quantize --model my-model --group-size 64 --strict --out my-int4 --json",
    "minedge quantize --model my-model --type nf4 --out my-nf4",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    compress_options(parser)
    add = parser.add_argument
    add("--type", type=one_of("int4", "nf4"), default="int4", metavar="T", help="int4 or nf4 (default: int4)")
    add(
        "--bits",
        "--q-bits",
        type=integer(1, 32),
        default=4,
        metavar="N",
        help="bits a weight; only 4 for now (default: 4)",
    )
    add(
        "--group-size",
        "--q-group-size",
        type=integer(1),
        metavar="N",
        help="weights that share a scale: 32, 64 or 128 (int4, default: 32); 32 to 4096 (nf4, default: 64)",
    )
    add("--no-double-quant", action="store_true", help="nf4: keep its scales in 32 bits")
    add("--embeddings", action="store_true", help="also the embedding, and a head tied to it")
    add(
        "--scale",
        type=one_of("max", "mse"),
        metavar="HOW",
        help="int4: max (GGML's rule) or mse (searched, slower) (default: max)",
    )
    add("--strict", action="store_true", help="fail where a width is not a multiple of the group size")


def run(args: argparse.Namespace, console: Console) -> int:
    import minedge

    if args.bits != 4:
        raise UsageError(f"--bits: expected 4, the only width there is for now, got {args.bits}")
    if args.type == "nf4" and args.scale is not None:
        raise UsageError(f"--scale: belongs to --type int4, nf4 has one rule; got {args.scale}")
    if args.type == "int4" and args.no_double_quant:
        raise UsageError("--no-double-quant: belongs to --type nf4")
    model, dataset = prepare(args)
    if dataset is not None:
        need_tokenizer(model)
    size = args.group_size or {"int4": 32, "nf4": 64}[args.type]
    shared = {"embeddings": args.embeddings, "strict": args.strict}
    if args.type == "nf4":
        packed = minedge.quant.nf4(model, size, double_quant=not args.no_double_quant, **shared)
    else:
        packed = minedge.quant.int4(model, size, scale=args.scale or "max", **shared)
    dense = sorted(name for name, kind in packed.linears.items() if args.type not in str(kind.to_dict()))
    save(packed, args, args.dtype or file_dtype(args.model))
    facts = {"type": args.type, "bits": 4, "group_size": size, "dense_linears": dense}
    report_change(args, console, model, packed, dataset, **facts)
    return 0
