"""minedge plan: how much memory each method will take, before anything is started."""

from __future__ import annotations

import argparse
from typing import Any

from minedge.bench.busy import free_bytes
from minedge.cli.common import load_model, lora_target
from minedge.cli.console import Console
from minedge.cli.parser import integer, model_options, one_of, size_map
from minedge.cli.text import count, size
from minedge.config import Config
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Predict the peak memory of each method at a batch size and row length, part by part, from the model's
shapes alone. The interpreter and its libraries come on top, some 60 to 120 MB. With --init the model need not exist."""
EXAMPLES = (
    "minedge plan",
    "minedge plan --model my-model --batch-size 4 --max-seq-length 512",
    "minedge plan --method mezo --lora-rank 8 --json",
    "minedge plan --init-shape n_layer=24,n_embd=1024,n_head=16,context_length=1024 --vocab-size 32000",
)
METHODS = ("inference", "generate", "full", "lora", "mezo")


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    add = parser.add_argument
    add(
        "--method",
        "--fine-tune-type",
        type=one_of("all", *METHODS),
        default="all",
        metavar="M",
        help=f"all, {', '.join(METHODS)}",
    )
    add("--batch-size", type=integer(1), default=16, metavar="N", help="rows at once (default: 16)")
    add(
        "--max-seq-length",
        type=integer(2),
        metavar="N",
        help="tokens a row (default: the model's context, at most 256)",
    )
    add(
        "--grad-accum",
        "--grad-accumulation-steps",
        type=integer(1),
        default=1,
        metavar="N",
        help="batches a step (default: 1)",
    )
    add("--grad-checkpoint", action="store_true", help="activations made again in backward instead of kept")
    add(
        "--lora-rank",
        type=integer(1),
        metavar="R",
        help="rank of the adapter; with it, mezo perturbs the adapter alone",
    )
    add("--lora-target", metavar="NAMES", help="matrices that get one (default: queries and values)")
    add("--init", metavar="SHAPE", help="tiny, small, base, or a config.json: a model that does not exist yet")
    add("--init-shape", type=size_map, metavar="SIZES", help="n_layer=4,n_embd=128,... on top of --init or alone")
    add("--vocab-size", type=integer(1), default=1536, metavar="N", help="of that model (default: 1536)")


def run(args: argparse.Namespace, console: Console) -> int:
    from minedge.ledger import plan

    subject, context, name = _subject(args)
    length = args.max_seq_length or min(context, 256)
    if length > context:
        raise UsageError(f"--max-seq-length: expected at most {context}, the model's context, got {length}")
    config = subject if isinstance(subject, Config) else subject.config
    lora: dict[str, Any] = {"target": args.lora_target.split(",") if args.lora_target else lora_target(config)}
    if args.lora_rank:
        lora["r"] = args.lora_rank
    plans = {}
    for method in METHODS if args.method == "all" else (args.method,):
        given = lora if method == "lora" or (method == "mezo" and args.lora_rank) else None
        if args.method == "all" and method == "full" and subject is not config and not subject.trainable_names:
            continue  # nothing to train without an adapter
        rows = 1 if method == "generate" else args.batch_size  # text is generated one row at a time
        plans[method] = plan(
            subject,
            method,
            rows,
            length,
            lora=given,
            grad_accum=args.grad_accum,
            grad_checkpoint=args.grad_checkpoint,
            backend=args.backend,
        )
    parts = list(dict.fromkeys(part for p in plans.values() for part in p.parts))
    rows_out = [["trained parameters", *(count(p.n_trainable) for p in plans.values())]]
    rows_out += [[part, *(size(p.parts.get(part, 0)) for p in plans.values())] for part in parts]
    rows_out.append(["peak", *(size(p.peak) for p in plans.values())])
    backend = next(iter(plans.values())).backend
    console.note(f"{name}, batch {args.batch_size} x {length} tokens (generate: 1 x {length}), backend {backend}")
    console.table(["", *plans], rows_out)
    free = free_bytes()
    if free:
        console.out(f"this machine has {size(free)} free; the interpreter takes 60 to 120 MB on top of a peak")
    document = {method: p.to_dict() for method, p in plans.items()}
    console.result(
        {"model": name, "batch_size": args.batch_size, "seq_len": length, "free_bytes": free, "methods": document}
    )
    return 0


def _subject(args: argparse.Namespace) -> tuple[Any, int, str]:
    """(model or config, its context, its name)."""
    if args.init or args.init_shape:
        from minedge.cli.init_model import shape_of

        config = Config(vocab_size=args.vocab_size, **shape_of(args.init, args.init_shape))
        return config, config.context_length, args.init or "a new model"
    model = load_model(args)
    return model, model.config.context_length, model.name
