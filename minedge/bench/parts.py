"""What can be measured: the parts, each with its competitors and its check."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from minedge.config import did_you_mean
from minedge.errors import UsageError

__all__ = ["PART_NAMES", "Entry", "Part", "parse_parts", "part"]

Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One competitor of a part, before backends and threads multiply it.

    who    "minedge" or a peer
    note   what the label adds to the name, such as "F16"
    maker  "module:function"
    files  kinds of weights it reads (weights.py)
    sizes  numbers on top of the part's
    alone  of minedge: on the first backend only (a component of another entry's work)
    """

    who: str
    maker: str
    files: tuple[str, ...] = ()
    note: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of work. `what` says in one line what a figure is; `check` compares outputs: (right, how it came out).

    reference  maker of what the first competitor is checked against; "" where its factory checks itself
    check      (outputs, the reference's outputs) for "minedge", (outputs, minedge's outputs) for peers
    shaped     False: the same for every shape
    scores     the reference depends on the outputs: it scores them
    needs      method of `minedge.plan` that predicts its memory, "" where that is not the question
    """

    name: str
    what: str
    entries: tuple[Entry, ...]
    check: Callable[[str, Outputs, Outputs], tuple[bool, str]]
    reference: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    shaped: bool = True
    needs: str = ""
    scores: bool = False


# Part -> the module that defines it, in the order in which they run.
_HOMES: Mapping[str, str] = MappingProxyType({
    "machine": "minedge.bench.machine",
    "matvec": "minedge.bench.tasks_product",
    "matmul": "minedge.bench.tasks_product",
    "decode": "minedge.bench.tasks_text",
    "context": "minedge.bench.tasks_context",
    "prefill": "minedge.bench.tasks_text",
    "start": "minedge.bench.tasks_text",
    "train": "minedge.bench.tasks_train",
    "lora": "minedge.bench.tasks_train",
    "mezo": "minedge.bench.tasks_mezo",
    "mezo-lora": "minedge.bench.tasks_mezo",
    "quantize": "minedge.bench.tasks_quantize",
    "sparse": "minedge.bench.tasks_sparse",
    "sparse-cached": "minedge.bench.tasks_sparse",
    "sparse-rows": "minedge.bench.tasks_sparse",
})  # fmt: skip
PART_NAMES = tuple(_HOMES)


def part(name: str) -> Part:
    """The part of that name."""
    found: Part = importlib.import_module(_HOMES[name]).PARTS[name]
    return found


def parse_parts(text: str) -> tuple[str, ...]:
    """'decode,prefill' -> names in running order. Raises `UsageError` for one that does not exist, with the nearest."""
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    for word in wanted:
        if word not in _HOMES:
            near = did_you_mean(word, list(PART_NAMES))
            raise UsageError(f"--only: expected parts out of {', '.join(PART_NAMES)}, got {word!r}{near}")
    if not wanted:
        raise UsageError(f"--only: expected parts out of {', '.join(PART_NAMES)}, got nothing")
    return tuple(name for name in PART_NAMES if name in wanted)
