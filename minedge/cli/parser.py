"""The option parser: argparse with one-line errors that name the nearest option; the types and options verbs share."""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from minedge.config import did_you_mean
from minedge.errors import UsageError

__all__ = [
    "Parser", "argument_of", "fraction", "in_options", "integer", "model_options", "one_of", "output_options", "real",
    "size_map",
]  # fmt: skip

BACKENDS = ("numpy", "numba", "c", "c:scalar", "c:avx2", "c:avx512", "c:neon")


class Parser(argparse.ArgumentParser):
    """A verb's parser. Every mistake raises `UsageError`; abbreviations are not guessed."""

    def __init__(self, verb: str, description: str, examples: Sequence[str]):
        lines = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=f"minedge {verb}",
            description=textwrap.fill(" ".join(description.split()), 100),
            epilog=f"examples:\n{lines}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=104),
            allow_abbrev=False,
        )
        group = self.add_argument_group("everywhere")
        group.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else")
        group.add_argument("--quiet", action="store_true", help="no plan, no progress; only the result")
        group.add_argument("--debug", action="store_true", help="show the traceback of an error")
        group.add_argument(
            "--backend", type=one_of(*BACKENDS), metavar="NAME",
            help=f"one of {', '.join(BACKENDS)} (default: the fastest available)",
        )  # fmt: skip
        group.add_argument(
            "--threads", type=integer(1, 256), metavar="N", help="threads to use (default: the CPUs at hand)"
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """`parse_args`, but an unknown option is named before anything else is found missing."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for word in argv:
            if word == "--":
                break
            option = word.partition("=")[0]
            if re.fullmatch(r"--[A-Za-z][\w-]*", option) and option not in self._option_string_actions:
                self.error(f"unknown option {option!r}{did_you_mean(option, known)}")
        args, rest = self.parse_known_args(list(argv))
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return args


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Type of an option: a whole number in [low, high]."""

    def convert(text: str) -> int:
        limits = f"of {low} or more" if high is None else f"from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}, got {text!r}")
        return value

    return convert


def real(low: float = 0.0, above: bool = False) -> Callable[[str], float]:
    """Type of an option: a finite number >= low, or > low with `above`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (above and value == low):
            raise argparse.ArgumentTypeError(f"expected a number {'>' if above else '>='} {low:g}, got {text!r}")
        return value

    return convert


def fraction(low_open: bool = False, high_open: bool = False) -> Callable[[str], float]:
    """Type of an option: a number in [0, 1], with open ends as asked."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (value > 0 if low_open else value >= 0) and (value < 1 if high_open else value <= 1)
        if not inside:
            interval = f"{'(' if low_open else '['}0, 1{')' if high_open else ']'}"
            raise argparse.ArgumentTypeError(f"expected a number in {interval}, got {text!r}")
        return value

    return convert


def one_of(*names: str) -> Callable[[str], str]:
    """Type of an option: one of `names`; a near miss is named."""

    def convert(text: str) -> str:
        if text not in names:
            near = did_you_mean(text, list(names))
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}{near}")
        return text

    return convert


def size_map(text: str) -> dict[str, Any]:
    """Type of an option: 'n_layer=4,n_embd=128' -> {'n_layer': 4, 'n_embd': 128}. Other values stay as text."""
    out: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"expected name=value pairs separated by commas, got {item!r}")
        out[key.strip()] = _value(value.strip())
    return out


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# Arguments of the API that no option of the same name stands for -> the option that does.
_OPTIONS = {
    "adapter": "--adapter-path", "block_size": "--group-size", "dtype": "--type", "eval_batches": "--val-batches",
    "int8": "--int8-activations", "lora": "--lora-rank, --lora-alpha, --lora-target", "loss_mask": "--data",
    "lr": "--learning-rate", "m": "--nm", "max_len": "--max-seq-length", "n": "--nm", "n_draft": "--num-draft-tokens",
    "names": "--target", "pattern": "--nm", "prompt cache": "--prompt-cache", "r": "--lora-rank",
    "seq_len": "--max-seq-length", "target": "--lora-target", "temperature": "--temp",
}  # fmt: skip


def argument_of(text: str) -> str:
    """The argument that a message begins with, as in `r: expected ...` or `group_size 64 does not ...`, or ""."""
    found = re.match(r"(-*[A-Za-z][\w -]*?)(:| \d)", text)
    return found[1] if found else ""


def in_options(text: str, parser: argparse.ArgumentParser, called: Mapping[str, str]) -> str:
    """A message of the API with the argument that it begins with as the user types it: `group_size: expected ...` as
    `--group-size: expected ...`. `called` is what only this verb calls so: {"model": "SRC"}.
    """
    name, known = argument_of(text), parser._option_string_actions
    if not name:
        return text
    options = (f"--{name.replace('_', '-')}", _OPTIONS.get(name, ""))
    option = called.get(name) or next((o for o in options if o.partition(",")[0] in known), name)
    return option + text[len(name) :]


def model_options(parser: argparse.ArgumentParser, default: str | None = "bundled", adapter: bool = True) -> None:
    """--model and --adapter-path."""
    parser.add_argument(
        "--model", "-m", default=default, required=default is None, metavar="NAME_OR_DIR",
        help="'bundled', a model folder, a .gguf or llama2.c file, a cached hub id"
        + (f" (default: {default})" if default else ""),
    )  # fmt: skip
    if adapter:
        parser.add_argument("--adapter-path", metavar="DIR", help="LoRA adapter to put on the model")


def output_options(parser: argparse.ArgumentParser, what: str, required: bool = True, *aliases: str) -> None:
    """--out and --overwrite."""
    parser.add_argument("--out", "-o", *aliases, dest="out", required=required, metavar="DIR", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
