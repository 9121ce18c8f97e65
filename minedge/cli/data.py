"""--data and its relatives, and how a model is measured on what they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minedge.cli.common import model_path, need_tokenizer
from minedge.cli.parser import integer, one_of
from minedge.errors import UsageError

__all__ = ["data_options", "held_out_part", "load_dataset", "max_length", "measure_text", "plain_text"]


def data_options(parser: argparse.ArgumentParser, required: bool, what: str) -> None:
    """--data and what says how to read it."""
    add = parser.add_argument
    add("--data", required=required, metavar="DATA", help=f"{what}: stdlib, stdlib-task, a file or a folder")
    add(
        "--format",
        type=one_of("text", "jsonl", "labels"),
        metavar="F",
        help="text, jsonl or labels (default: by the name)",
    )
    add("--template", metavar="TEXT", help=r"of labelled data, such as '{text}\nLabel: {label}'")
    add(
        "--label-words",
        type=_words,
        metavar="WORDS",
        help="words that stand for the labels, such as '0=terrible,1=great' (default: labels.json in the folder, else "
        "the labels)",
    )
    add(
        "--no-chat-template",
        action="store_true",
        help="prompts and conversations as plain text, also where the model has a chat template",
    )
    add(
        "--max-seq-length",
        type=integer(2),
        metavar="N",
        help="tokens a row (default: the model's context, at most 256)",
    )


def _words(text: str) -> dict[str, str]:
    """Type of an option: '0=terrible,1=great' -> {'0': 'terrible', '1': 'great'}."""
    found: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        label, equals, word = (part.strip() for part in item.partition("="))
        if not (label and equals and word) or label in found:
            raise argparse.ArgumentTypeError(f"expected label=word pairs separated by commas, each once, got {item!r}")
        found[label] = word
    return found


def load_dataset(args: argparse.Namespace) -> Any:
    """What --data names. Of the built-in sets, valid and test lose what --model was trained on on another Python."""
    from minedge.data.loaders import BUILT_IN, load_data
    from minedge.data.seen import without_seen

    template = args.template.replace("\\n", "\n") if args.template else None
    chat_template = not getattr(args, "no_chat_template", False)
    words = getattr(args, "label_words", None)
    dataset = load_data(
        args.data, format=args.format, label_words=words, template=template, chat_template=chat_template
    )
    if words and (dataset.task is None or dataset.name in BUILT_IN):
        raise UsageError(
            f"--label-words: belongs to labelled lines (a label, a space, the text), got {args.data!r}"
            + plain_text(args)
        )
    return without_seen(dataset, model_path(args.model))


def plain_text(args: argparse.Namespace) -> str:
    """The end of an error about labels, where --data names a file that is plain text by its ending."""
    ending = Path(args.data).suffix.lower()
    if args.format is not None or ending not in (".txt", ".md", ".rst"):
        return ""
    return f"; a {ending} file is read as plain text, add --format labels if its lines begin with labels"


def max_length(args: argparse.Namespace, model: Any) -> int:
    """Tokens a row, checked against the context."""
    context = model.config.context_length
    if args.max_seq_length is None:
        return min(context, 256)
    if args.max_seq_length > context:
        raise UsageError(
            f"--max-seq-length: expected at most {context}, the model's context, got {args.max_seq_length}"
        )
    return args.max_seq_length


def measure_text(model: Any, dataset: Any, part: str, length: int, batch_size: int, batches: int = 0) -> dict[str, Any]:
    """Loss in nats a token with its standard error, perplexity, bits per byte."""
    from minedge.finetune.evaluate import evaluate_text

    found = evaluate_text(model, dataset.pack(part, need_tokenizer(model), length), batch_size, batches)
    return {
        "loss": found.loss,
        "loss_se": found.loss_se,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "bits_per_byte_se": found.bits_per_byte / found.loss * found.loss_se if found.loss else None,
        "tokens": found.n_tokens,
        "bytes": found.n_bytes,
    }


def held_out_part(dataset: Any, wanted: str | None) -> str:
    """The part to measure on: the one asked for, else the last of test, valid, train that the data has."""
    if wanted is not None:
        return wanted
    return next((part for part in ("test", "valid") if dataset.part(part)), "train")
