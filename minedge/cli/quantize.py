"""minedge quantize: pack weight matrices into 4, 8 or 16 bits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from minedge.cli.common import model_path
from minedge.cli.compress import compress_options, file_dtype, prepare, report_change, save
from minedge.cli.console import Console
from minedge.cli.parser import integer, one_of
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Store weight matrices in 4, 8 or 16 bits instead of 32. int4: even steps with one float16 scale per
group, as GGML's Q4_0, 4.5 bits a weight, the fastest one to generate text with. nf4: sixteen values spaced as trained
weights are, with scales in 8 bits (QLoRA's form), 4.13 bits a weight. int8: even steps as GGML's Q8_0, 8.5 bits a
weight, nearly without loss. float16 and bfloat16: each weight rounded, half the memory of float32. Matrices whose
width the group does not divide stay as they are and are named in a warning. The model that is written can be run, and
fine-tuned with an adapter on top."""
EXAMPLES = (
    "minedge quantize --out bundled-int4",
    "minedge quantize --model my-model --embeddings --scale mse --out my-int4 --data stdlib",
    "minedge quantize --model my-model --type nf4 --group-size 128 --strict --out my-nf4 --json",
    "minedge quantize --model my-model --bits 8 --embeddings --out my-int8",
)
# Type -> bits of a code, usual group size
TYPES = {"int4": (4, 32), "nf4": (4, 64), "int8": (8, 32)}
HALVES = ("float16", "bfloat16")


def add_options(parser: argparse.ArgumentParser) -> None:
    compress_options(parser)
    add = parser.add_argument
    add(
        "--type",
        type=one_of(*TYPES, *HALVES),
        metavar="T",
        help="int4, nf4, int8, float16 or bfloat16 (default: int4; with --bits 8 int8)",
    )
    add(
        "--bits",
        "--q-bits",
        type=integer(1, 32),
        metavar="N",
        help="bits of a code: 4 or 8 (default: those of --type)",
    )
    add(
        "--group-size",
        "--q-group-size",
        type=integer(1),
        metavar="N",
        help="weights that share a scale: 32, 64 or 128 (int4, default: 32); 32 to 4096 (nf4, default: 64); 32 (int8)",
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
    kind = _type(args)
    bits, usual = TYPES.get(kind, (16, 32))
    size = args.group_size or usual
    linear, pack = _ways(args, size)[kind]
    if _packs_while_reading(args):
        packed, dataset = prepare(args, pack=linear, embeddings=args.embeddings, strict=args.strict)
        model = _before(packed)
    else:
        model, dataset = prepare(args)
        packed = pack(model)
    dense = sorted(name for name, each in packed.linears.items() if kind not in str(each.to_dict()))
    save(packed, args, args.dtype or file_dtype(args.model))
    facts = {"type": kind, "bits": bits, "group_size": None if kind in HALVES else size, "dense_linears": dense}
    report_change(args, console, model, packed, dataset, **facts)
    return 0


def _ways(args: argparse.Namespace, size: int) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Type -> the linear kind, for packing while a file is read, and the verb that packs a model in memory."""
    from minedge import quant

    some = {"embeddings": args.embeddings}
    both, double = {**some, "strict": args.strict}, not args.no_double_quant
    return {
        "int4": (quant.Int4(size), lambda model: quant.int4(model, size, scale=args.scale or "max", **both)),
        "nf4": (quant.NF4(size, double), lambda model: quant.nf4(model, size, double_quant=double, **both)),
        "int8": (quant.Int8(), lambda model: quant.int8(model, **both)),
        "float16": (quant.Float16(), lambda model: quant.half(model, "float16", **some)),
        "bfloat16": (quant.BFloat16(), lambda model: quant.half(model, "bfloat16", **some)),
    }


def _packs_while_reading(args: argparse.Namespace) -> bool:
    """Whether the model can be packed as its file is read, in the memory of the result: a folder of dense matrices, and
    nothing to do that needs the dense model.
    """
    from minedge.io.hf import read_config
    from minedge.model.linears import dense_kind

    path = model_path(args.model)
    if args.data or args.scale == "mse" or not (path / "config.json").is_file():
        return False
    return all(kind == dense_kind() for kind in read_config(path)[1].values())


def _before(packed: Any) -> Any:
    """The dense model in its sizes only: arrays that take no memory, for counting."""
    from minedge.model.linears import dense_kind
    from minedge.model.shapes import param_shapes

    linears = dict.fromkeys(packed.linears, dense_kind())
    zero = np.zeros((), np.float32)
    params = {key: np.broadcast_to(zero, shape) for key, (shape, _) in param_shapes(packed.config, linears).items()}
    return packed.with_params(params, linears)


def _type(args: argparse.Namespace) -> str:
    """What --type and --bits mean together; `UsageError` for options that belong to another type."""
    kind = args.type or ("int8" if args.bits == 8 else "int4")
    if kind in HALVES:
        if args.bits not in (None, 16):
            raise UsageError(f"--bits: {kind} has 16, got {args.bits}")
        for option in ("group_size", "scale", "no_double_quant"):
            if getattr(args, option):
                name = option.replace("_", "-")
                raise UsageError(f"--{name}: belongs to the types of 4 and 8 bits; {kind} rounds each weight by itself")
        return kind
    widths = sorted({bits for bits, _ in TYPES.values()})
    if args.bits is not None and args.bits not in widths:
        raise UsageError(f"--bits: expected {' or '.join(map(str, widths))}, got {args.bits}")
    if args.bits is not None and args.bits != TYPES[kind][0]:
        raise UsageError(f"--bits: {kind} has {TYPES[kind][0]}-bit codes, got {args.bits}")
    if kind != "int4" and args.scale is not None:
        raise UsageError(f"--scale: belongs to --type int4, {kind} has one rule; got {args.scale}")
    if kind != "nf4" and args.no_double_quant:
        raise UsageError("--no-double-quant: belongs to --type nf4")
    if kind == "int8" and args.group_size not in (None, 32):
        raise UsageError(f"--group-size: expected 32, the only one of int8, got {args.group_size}")
    return kind
