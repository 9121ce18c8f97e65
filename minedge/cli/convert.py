"""minedge convert: from one file format to another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minedge.cli.common import (
    check_apart,
    check_file,
    check_output,
    disk_bytes,
    find,
    load_model,
    model_facts,
    model_path,
)
from minedge.cli.console import Console
from minedge.cli.parser import one_of
from minedge.cli.text import size
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Read a model in any format minedge knows (a Hugging Face or minedge folder, a .gguf file, a llama2.c
.bin with its tokenizer beside it, a hub id in the local cache) and write it in another. hf is a folder that
transformers opens, all matrices dense; minedge is a folder that keeps 4-bit and pruned matrices as they are; gguf is a
file for llama.cpp, with the tokenizer in it."""
EXAMPLES = (
    "minedge convert bundled bundled-f16.gguf --to gguf --type f16",
    "minedge convert my-int4 my-int4.gguf --type q4_0 --verify",
    "minedge convert smollm2-q8_0.gguf smollm2 --to hf --type f16",
    "minedge convert stories260K.bin stories --to minedge --json",
)
TYPES = {"gguf": ("keep", "f32", "f16", "q8_0", "q4_0"), "hf": ("f32", "f16"), "minedge": ("keep", "f32", "f16")}
_PLACES = {"gguf": "a GGUF file", "hf": "a folder for transformers", "minedge": "a minedge folder"}
# The arguments have no names of their own on the command line.
CALLED = {"model": "SRC", "--model": "SRC", "out": "DST", "--out": "DST"}
FILE_ENDINGS = (".bin", ".gguf", ".safetensors")
_FOLDER_DTYPES = {"keep": None, "f32": "float32", "f16": "float16"}


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="'bundled', a folder, a .gguf file, a llama2.c .bin, or a hub id")
    add("out", metavar="DST", help="the folder or .gguf file to write")
    add("--to", type=one_of(*TYPES), metavar="FORMAT", help="gguf, hf or minedge (default: gguf where DST ends so)")
    add(
        "--type", type=one_of("keep", "f32", "f16", "q8_0", "q4_0"), metavar="T",
        help="of the matrices: f32, f16; for gguf also q8_0, q4_0; keep leaves packed ones packed and the rest f32"
        " (default: keep, for hf f32)",
    )  # fmt: skip
    add("--verify", action="store_true", help="load the result and print the largest difference of a logit")
    add("--overwrite", action="store_true", help="replace what is at DST")


def run(args: argparse.Namespace, console: Console) -> int:
    import minedge
    from minedge.cli.fuse import logit_difference

    to = args.to or ("gguf" if args.out.endswith(".gguf") else "minedge")
    dtype = args.type or TYPES[to][0]
    if dtype not in TYPES[to]:
        raise UsageError(
            f"--type: {_PLACES[to]} (--to {to}) takes {', '.join(TYPES[to])}, got {dtype!r}; "
            f"--to {' or '.join(place for place in TYPES if dtype in TYPES[place])} takes that"
            + ("; minedge quantize packs matrices into 4 or 8 bits" if dtype[0] == "q" else "")
        )
    args.model = args.source
    out = Path(args.out).expanduser()
    if to != "gguf" and out.suffix.lower() in FILE_ENDINGS:
        hint = "; --to gguf writes a file" if out.suffix.lower() == ".gguf" else ""
        raise UsageError(f"DST: {_PLACES[to]} (--to {to}) is a folder, got the name of a file, {args.out!r}{hint}")
    if to != "gguf":
        check_output(out, args.overwrite)
    source = model_path(args.source, adapter=False)
    check_apart(out, find(args.source), source)
    if to == "gguf":
        check_file("DST", out, "gguf", args.overwrite)
    before_bytes = disk_bytes(source)
    model = load_model(args)
    if to == "gguf":
        model.save_gguf(out, dtype, overwrite=args.overwrite)
    else:
        (_dense(model) if to == "hf" else model).save(out, _FOLDER_DTYPES[dtype], overwrite=args.overwrite)
    report: dict[str, Any] = {
        "out": str(out),
        "format": to,
        "type": dtype,
        "disk_bytes_before": before_bytes,
        "disk_bytes_after": disk_bytes(out),
        "tokenizer": model.tokenizer is not None,
        "model": model_facts(model),
    }
    before, after = size(report["disk_bytes_before"]), size(report["disk_bytes_after"])
    console.out(f"{model.config.architecture}, {model.n_params():,} parameters: {before} -> {after}, saved {out}")
    if args.verify:
        report["largest_logit_difference"], scale = logit_difference(model, minedge.load(out, backend=args.backend))
        console.out(f"largest logit difference {report['largest_logit_difference']:.3g} (largest logit {scale:.3g})")
    console.result(report)
    return 0


def _dense(model: Any) -> Any:
    """The same model with every matrix as one float32 array: what other libraries open."""
    from minedge.model.linears import Dense
    from minedge.model.shapes import linear_shapes

    params, linears = dict(model.params), dict(model.linears)
    for name, shape in linear_shapes(model.config).items():
        for key in model.linears[name].shapes(name, *shape):
            del params[key]
        params[f"{name}.weight"] = model.linears[name].dense(model.params, name, model.ops)
        linears[name] = Dense()
    return model.with_params(params, linears, frozenset(params))
