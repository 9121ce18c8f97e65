"""The data of a8: lines that a device might log, made by a seed, and which part of the system each is about.

Each line has words of its own topic, a few of other topics, and filler. No line exists before it is drawn.
"""

from __future__ import annotations

import numpy as np

__all__ = ["LABELS", "TEMPLATE", "canaries", "draw"]

LABELS = ("file", "thread", "number", "server")
TEMPLATE = "{text}\nTopic: {label}"
TOPICS = (
    "path open read write close directory copy remove disk stream buffer seek archive name size link",
    "lock wait queue start join process event signal worker task pool timer block run release spawn",
    "float round sum digit decimal value count range sign divide random mean power zero integer limit",
    "socket request host port address reply connect client mail header url response session query proxy login",
)
FILLER = (
    "the a of to is in with after before while again still not found done failed set new old first last this was "
    "has from into at by on for it device unit check"
)
CANARIES = 48


def draw(seed: int, count: int) -> tuple[list[str], list[int]]:
    """`count` lines and their labels, the same for the same seed."""
    rng = np.random.default_rng([8, seed])
    topics, filler = [words.split() for words in TOPICS], FILLER.split()
    lines, labels = [], rng.integers(4, size=count).tolist()
    for label in labels:
        of_topic = [label, label, label, *rng.integers(4, size=2).tolist()]
        words = [topics[t][i] for t, i in zip(of_topic, rng.integers(16, size=5).tolist(), strict=True)]
        words += [filler[i] for i in rng.integers(len(filler), size=5).tolist()]
        lines.append(" ".join(words[i] for i in rng.permutation(10).tolist()))
    return lines, labels


def canaries() -> tuple[list[str], list[int]]:
    """Lines of every test set whose labels are wrong: who answers as the labels say has seen them."""
    lines, labels = draw(1 << 32, CANARIES)
    shifts = np.random.default_rng(8).integers(1, 4, CANARIES)
    return lines, [(label + int(shift)) % 4 for label, shift in zip(labels, shifts, strict=True)]
