"""minedge quantize: pack weight matrices into 4 bits."""

from __future__ import annotations

import argparse

from minedge.cli.common import need_tokenizer
from minedge.cli.compress import compress_options, file_dtype, prepare, report_change, save
from minedge.cli.console import Console
from minedge.cli.parser import integer, one_of
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Store weight matrices as 4-bit codes with one float16 scale per group (GGML's Q4_0 rule), about 4.5
bits a weight instead of 32. Matrices whose width the group does not divide stay as they are and are named in a warning.
The model that is written can be run, and fine-tuned with an adapter on top."""
EXAMPLES = (
    "minedge quantize --out bundled-int4",
    "minedge quantize --model my-model --embeddings --scale mse --out my-int4 --data stdlib",
    "minedge quantize --model my-model --group-size 64 --strict --out my-int4 --json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    compress_options(parser)
    add = parser.add_argument
    add(
        "--bits",
        "--q-bits",
        type=integer(1, 32),
        default=4,
        metavar="N",
        help="bits a weight; only 4 for now (default: 4)",
    )
    add("--group-size", "--q-group-size", type=integer(1), default=32, metavar="N", help="32, 64 or 128 (default: 32)")
    add("--embeddings", action="store_true", help="also the embedding, and a head tied to it")
    add(
        "--scale",
        type=one_of("max", "mse"),
        default="max",
        metavar="HOW",
        help="max (GGML's rule) or mse (searched, slower)",
    )
    add("--strict", action="store_true", help="fail where a width is not a multiple of the group size")


def run(args: argparse.Namespace, console: Console) -> int:
    import minedge

    if args.bits != 4:
        raise UsageError(f"--bits: expected 4, the only width there is for now, got {args.bits}")
    model, dataset = prepare(args)
    if dataset is not None:
        need_tokenizer(model)
    packed = minedge.quant.int4(
        model, group_size=args.group_size, embeddings=args.embeddings, scale=args.scale, strict=args.strict
    )
    dense = sorted(name for name, kind in packed.linears.items() if "int4" not in str(kind.to_dict()))
    save(packed, args, args.dtype or file_dtype(args.model))
    report_change(args, console, model, packed, dataset, bits=4, group_size=args.group_size, dense_linears=dense)
    return 0
