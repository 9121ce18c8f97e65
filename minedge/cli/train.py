"""minedge train: fine-tune a model, or train one from scratch."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minedge.cli.common import (
    adapter_folder,
    check_apart,
    check_output,
    find,
    load_model,
    lora_target,
    model_path,
    need_tokenizer,
)  # fmt: skip
from minedge.cli.console import Console
from minedge.cli.data import data_options, load_dataset, max_length
from minedge.cli.parser import Parser, fraction, integer, model_options, one_of, output_options, real, size_map
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "expand", "run"]

DESCRIPTION = """Fine-tune a model with full gradients (AdamW), a LoRA adapter, or MeZO (forward passes only); with
--init, train a new one from scratch, tokenizer included. The plan comes first, then progress, then what was saved. The
best state by validation loss is the result. Ctrl-C saves; the same command with --resume auto goes on bit for bit."""
EXAMPLES = (
    "minedge train --data stdlib-task --method lora --iters 200 --out runs/lora",
    "minedge train --data stdlib-task --method mezo --lora-rank 8 --learning-rate 1e-3 --out runs/mezo",
    "minedge train --data stdlib --init small --vocab-size 1536 --iters 3000 --out runs/scratch",
    "minedge train --config run.json --resume auto",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    data_options(parser, required=True, what="what to train on")
    output_options(parser, "folder for checkpoints, metrics.jsonl, loss.svg and the result")
    add = parser.add_argument
    add(
        "--config",
        "-c",
        metavar="FILE",
        help="JSON or TOML file with any of these options by name; the command line wins",
    )
    add(
        "--resume",
        default="never",
        metavar="HOW",
        help="never, auto (go on in --out if there is a run), or a run or checkpoint",
    )
    add("--seed", type=integer(0), metavar="N", help="of batches, adapter, perturbations and new weights (default: 0)")

    group = parser.add_argument_group("method")
    add = group.add_argument
    add(
        "--method",
        "--fine-tune-type",
        type=one_of("full", "lora", "mezo"),
        metavar="M",
        help="full, lora or mezo (default: lora; full with --init)",
    )
    add(
        "--lora-rank",
        type=integer(0),
        metavar="R",
        help="rank of the adapter (default: 8); with mezo, perturb an adapter only",
    )
    add("--lora-alpha", type=real(above=True), metavar="A", help="its scale is A / R (default: 16)")
    add("--use-rslora", action="store_true", help="scale A / sqrt(R) instead: for large ranks")
    add("--use-dora", action="store_true", help="also train the length of each row (DoRA)")
    add(
        "--lora-target",
        metavar="NAMES",
        help="matrices that get one, such as q_proj,v_proj, or all (default: queries and values)",
    )
    add("--num-layers", type=integer(-1), metavar="N", help="only the last N layers; -1 for all (default: all)")
    add("--eps", type=real(above=True), metavar="E", help="mezo: size of the perturbation (default: 1e-3)")
    add("--n-samples", type=integer(1), metavar="N", help="mezo: perturbations a step (default: 1)")
    add(
        "--int8-activations",
        action="store_true",
        default=None,
        help="mezo over int4 or int8 weights: integer products, faster and less exact; take --eps 1e-2",
    )

    group = parser.add_argument_group("steps")
    add = group.add_argument
    add("--iters", type=integer(1), metavar="N", help="optimizer steps (default: 1000)")
    add("--batch-size", type=integer(1), metavar="N", help="rows at once (default: 16)")
    add("--grad-accum", "--grad-accumulation-steps", type=integer(1), metavar="N", help="batches a step (default: 1)")
    add(
        "--grad-checkpoint",
        action="store_true",
        default=None,
        help="make activations again in backward instead of keeping them: the same result in less memory, slower",
    )
    add(
        "--learning-rate",
        "--lr",
        type=real(),
        metavar="LR",
        help="the highest (default: full 3e-4, lora 1e-3; mezo 1e-6, adapters 1e-4, below 100M weights 10 times that)",
    )
    add(
        "--schedule",
        type=one_of("cosine", "linear", "constant"),
        metavar="S",
        help="cosine, linear or constant (default: cosine; mezo: constant)",
    )
    add("--warmup", type=integer(0), metavar="N", help="steps of rising rate (default: 0)")
    add("--final-ratio", type=fraction(), metavar="F", help="last rate / highest rate (default: 0.1)")
    add("--weight-decay", type=real(), metavar="W", help="on matrices (default: 0.1 for full, else 0)")
    add("--clip", type=real(), metavar="C", help="largest norm of the gradient; 0 for none (default: 1)")

    group = parser.add_argument_group("checkpoints and validation")
    add = group.add_argument
    add(
        "--eval-every",
        "--steps-per-eval",
        type=integer(0),
        metavar="N",
        help="steps between validations; 0 for none (default: 100)",
    )
    add("--val-batches", type=integer(-1), metavar="N", help="batches of one; 0 or -1 for all (default: all)")
    add(
        "--patience",
        type=integer(0),
        metavar="N",
        help="stop after N validations without a better one; 0 for never (default: 0)",
    )
    add("--save-every", type=integer(0), metavar="N", help="steps between checkpoints (default: 500)")
    add(
        "--steps-per-report",
        type=integer(1),
        metavar="N",
        help="without a terminal, a line each N steps (default: 20 lines in all)",
    )

    group = parser.add_argument_group("from scratch")
    add = group.add_argument
    add("--init", metavar="SHAPE", help="tiny, small, base, or a config.json")
    add("--init-shape", type=size_map, metavar="SIZES", help="n_layer=4,n_embd=128,... on top of --init or alone")
    add(
        "--vocab-size",
        type=integer(257),
        metavar="N",
        help="tokens of the new tokenizer (default: 1536, or as many as the text gives)",
    )


def expand(parser: Parser, words: list[str]) -> list[str]:
    """The words with the options of --config in front, so that what is on the command line comes later and wins."""
    from minedge.cli.config_file import read_options

    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            file = value if equals else words[i + 1] if i + 1 < len(words) else ""
            return [*read_options(parser, file), *words] if file else words
    return words


# Our option -> field of TrainConfig, where the command line's name is another.
_FIELDS = {
    "iters": "iters", "batch_size": "batch_size", "grad_accum": "grad_accum", "grad_checkpoint": "grad_checkpoint",
    "learning_rate": "learning_rate", "schedule": "schedule", "warmup": "warmup", "final_ratio": "final_ratio",
    "weight_decay": "weight_decay", "clip": "clip", "int8_activations": "int8",
    "eps": "eps", "n_samples": "n_samples", "seed": "seed", "eval_every": "eval_every",
    "val_batches": "eval_batches", "patience": "patience", "save_every": "save_every",
}  # fmt: skip


def run(args: argparse.Namespace, console: Console) -> int:
    from minedge.cli.train_report import Report
    from minedge.finetune.prepare import packed_parts, start_model

    resume = None if args.resume == "never" else args.resume
    if resume not in (None, "auto") and not Path(resume).expanduser().exists():
        raise UsageError(
            f"--resume: expected auto, never, a run's folder or a checkpoint in it, {resume!r} does not exist"
        )
    if resume != "auto":  # a run to go on with may be there; everything else is refused before any work
        check_output(args.out, args.overwrite)
        check_apart(args.out, *_sources(args))
    elif args.overwrite:
        raise UsageError("--overwrite: it would delete the run that --resume auto goes on with; leave one of them out")
    dataset = load_dataset(args)
    model = _model(args, dataset)
    need_tokenizer(model)
    length = max_length(args, model)
    config = train_config(args, model, length)
    if config.method == "full" and args.num_layers not in (None, -1):
        model = replace(model, trainable_names=_last_layers(model, args.num_layers, model.trainable_names))

    model = start_model(model, config)
    # Packed before the run, so that the memory measured in it is the method's.
    packed_train, packed_valid, info = packed_parts(dataset, model.tokenizer, length)
    data = SimpleNamespace(train=packed_train, valid=packed_valid, info=info)

    import minedge

    report = Report(args, console, model, dataset, config)
    report.plan()
    with _replacing(Path(args.out).expanduser(), args.overwrite), report:
        tuned = minedge.train(model, data, out=args.out, resume=resume, on_event=report.event, config=config)
    report.finish(tuned)
    return 0


def _sources(args: argparse.Namespace) -> list[Path]:
    """The folders and files that the run reads, as far as they have a name on disk."""
    model = [] if args.init or args.init_shape else [find(args.model), model_path(args.model)]
    adapter = [adapter_folder(args.adapter_path)] if args.adapter_path else []
    return [*model, *adapter, *([Path(args.resume).expanduser()] if args.resume not in (None, "never") else [])]


def _model(args: argparse.Namespace, dataset: Any) -> Any:
    if not (args.init or args.init_shape):
        if args.vocab_size:
            raise UsageError("--vocab-size: belongs to --init or --init-shape; a model that exists has its tokenizer")
        return load_model(args)
    from minedge.cli.init_model import new_model, shape_of

    if args.model != "bundled":
        raise UsageError(f"--init: makes a new model, got --model {args.model} too; leave one of them out")
    if args.method in ("lora", "mezo") or args.adapter_path:
        raise UsageError("--init: a new model has nothing to adapt; train it with --method full")
    shape = shape_of(args.init, args.init_shape)
    name = Path(args.out).name
    return new_model(shape, dataset, args.vocab_size, args.seed or 0, args.backend, name)


def train_config(args: argparse.Namespace, model: Any, length: int) -> Any:
    """The run's settings: options that were given, the trainer's defaults for the others."""
    from minedge.finetune.train_config import TrainConfig

    method = args.method or ("full" if args.init or args.init_shape else "lora")
    given = {field: getattr(args, option) for option, field in _FIELDS.items() if getattr(args, option) is not None}
    given["eval_batches"] = max(0, given.get("eval_batches", 0))
    lora = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "target": args.lora_target}
    lora.update({key: True for key in ("use_rslora", "use_dora") if getattr(args, key)})
    lora = {key: value for key, value in lora.items() if value is not None}
    if lora.get("r") == 0:
        raise UsageError("--lora-rank: expected 1 or more, got 0; an adapter of rank 0 has nothing to train")
    if method == "full" and lora:
        raise UsageError(
            "--lora-rank, --lora-alpha, --lora-target, --use-rslora, --use-dora: belong to --method lora or mezo, "
            "got --method full"
        )
    if isinstance(lora.get("target"), str):
        lora["target"] = lora["target"].split(",")
    if method == "lora" or lora:
        lora.setdefault("target", lora_target(model.config))
    if args.num_layers not in (None, -1) and (method == "lora" or lora):
        lora["target"] = _in_last_layers(model, args.num_layers, lora["target"])
    return TrainConfig.of({**given, "method": method, "seq_len": length, "lora": lora or None}).for_model(model)


def _last_layers(model: Any, n: int, names: Any) -> frozenset[str]:
    prefixes = tuple(
        model.config.arch.layer.format(i=i) + "." for i in range(max(0, model.config.n_layer - n), model.config.n_layer)
    )
    return frozenset(name for name in names if name.startswith(prefixes))


def _in_last_layers(model: Any, n: int, targets: list[str]) -> list[str]:
    """Full names of the targets in the last n layers."""
    from minedge.compress.compositions import select

    found = sorted(_last_layers(model, n, select(model.config, targets, "--lora-target")))
    if not found:
        raise UsageError(f"--num-layers: expected 1 to {model.config.n_layer}, got {n}, which leaves nothing to train")
    return found


@contextmanager
def _replacing(out: Path, overwrite: bool) -> Iterator[None]:
    """With --overwrite, keep the old folder aside until the new run has saved something; else put it back."""
    if not overwrite or not out.exists():
        yield
        return
    from minedge.io.checkpoint import lock_run

    with lock_run(out):  # refused while another process trains in it
        aside = out.with_name(f".{out.name}.replaced-{os.getpid()}")
        os.rename(out, aside)
    try:
        yield
    finally:
        if any(out.glob("step-*/manifest.json")):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            shutil.rmtree(out, ignore_errors=True)
            os.rename(aside, out)
