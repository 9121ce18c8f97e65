"""minedge eval: how well a model predicts a text, or answers a task with labels."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from minedge.cli.common import load_model, model_facts
from minedge.cli.console import Console
from minedge.cli.data import data_options, held_out_part, load_dataset, max_length, measure_text, plain_text
from minedge.cli.parser import integer, model_options, one_of
from minedge.errors import UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Measure a model on data it was not trained on: loss in nats a token, perplexity and bits per byte on
text (bits per byte compare across tokenizers); on labelled data accuracy and the loss of the true label's word. Every
figure comes with its standard error."""
EXAMPLES = (
    "minedge eval --data stdlib",
    "minedge eval --data stdlib-task --adapter-path my-adapter",
    "minedge eval --model my-model --data notes.txt --split train --json",
    "minedge eval --data reviews.tsv --template '{text} It was {label}' --label-words 0=terrible,1=great",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    model_options(parser)
    data_options(parser, required=True, what="what to measure on")
    add = parser.add_argument
    add("--task", action="store_true", help="insist on labels: fail where the data has none")
    add(
        "--split",
        type=one_of("train", "valid", "test"),
        metavar="PART",
        help="train, valid or test (default: test if there is one)",
    )
    add("--batch-size", type=integer(1), default=8, metavar="N", help="rows at once (default: 8)")
    add(
        "--test-batches", type=integer(-1), default=0, metavar="N", help="batches at most; 0 or -1 for all (default: 0)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    model = load_model(args)
    length = max_length(args, model)
    dataset = load_dataset(args)
    part = held_out_part(dataset, args.split)
    if args.task and dataset.task is None:
        raise UsageError(
            f"--task: {args.data!r} has no labels; give labelled lines (label, a space, the text) or stdlib-task"
            + plain_text(args)
        )
    began, batches = time.monotonic(), max(0, args.test_batches)
    report: dict[str, Any] = {"data": dataset.name, "part": part, "model": model_facts(model)}
    if dataset.task is None:
        report.update(measure_text(model, dataset, part, length, args.batch_size, batches))
        rows = [
            ["loss (nats a token)", report["loss"], report["loss_se"]],
            ["perplexity", report["perplexity"], report["perplexity"] * report["loss_se"]],
            ["bits per byte", report["bits_per_byte"], report["bits_per_byte_se"]],
        ]
        what = f"{report['tokens']:,} tokens"
    else:
        report.update(measure_task(model, dataset.task, part, length, args.batch_size, batches))
        rows = [
            ["accuracy", report["accuracy"], report["accuracy_se"]],
            ["label loss (nats)", report["label_loss"], report["label_loss_se"]],
            ["majority class", report["majority_accuracy"], None],
        ]
        what = f"{report['examples']:,} examples, {report['labels']} labels"
    report["seconds"] = time.monotonic() - began
    console.table(["", "value", "standard error"], [[name, *map(_figure, values)] for name, *values in rows])
    console.note(
        f"{dataset.name}, {part} part: {what}, rows of {length} tokens, {report['seconds']:.1f} s on {model.ops.spec}"
    )
    console.result(report)
    return 0


def measure_task(model: Any, task: Any, part: str, length: int, batch_size: int, batches: int = 0) -> dict[str, Any]:
    """Accuracy and label loss, and what always answering the most frequent label would reach."""
    from minedge.finetune.evaluate import evaluate_task

    examples = task.examples(part)
    examples = examples[: batches * batch_size] if batches else examples
    found = evaluate_task(model, task, examples, length, batch_size)
    counts = [sum(e.label == label for e in examples) for label in range(len(task.labels))]
    return {
        "accuracy": found.accuracy,
        "accuracy_se": found.accuracy_se,
        "label_loss": found.label_loss,
        "label_loss_se": found.label_loss_se,
        "majority_accuracy": max(counts) / len(examples),
        "chance_loss": math.log(len(task.labels)),
        "examples": found.n,
        "labels": len(task.labels),
    }


def _figure(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
