"""Train, validation and test parts of the built-in corpus that never share a passage, on any Python version.

A module belongs to one part for ever: the part follows from a hash of its path alone, so new modules move nothing. Then
a validation or test passage that repeats something of training (an exact copy, a shared run of 40 characters, or more
than half of its 5-word shingles) is dropped from evaluation, and a validation passage that repeats something of test
likewise.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minedge.data.corpus import Passage, normalized, passages
from minedge.data.overlap import SeenFilter, overlapping

__all__ = ["Splits", "evaluation_passages", "module_unit", "part_of", "split_passages", "stdlib_splits"]

PARTS = ("train", "valid", "test")
# Drawn shares; evaluation loses some of its text to the checks above, so the parts end near 85/5/10.
_VALID, _TEST = 0.05, 0.11
# Modules differ a hundredfold in size, so few draws are balanced. Of 30,000 salts this one gives the best sizes and the
# most even labels on Python 3.10 to 3.13; it was chosen by counting, before any model was trained.
_SALT = "minedge-1418"


@dataclass(frozen=True)
class Splits:
    """The three parts and what was left out of them."""

    train: tuple[Passage, ...]
    valid: tuple[Passage, ...]
    test: tuple[Passage, ...]
    dropped: dict[str, int]  # passages: exact duplicates, and those taken out of valid and test
    python: str

    def passages(self, part: str) -> tuple[Passage, ...]:
        """The passages of 'train', 'valid' or 'test'."""
        if part not in PARTS:
            raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
        return getattr(self, part)

    def texts(self, part: str) -> tuple[str, ...]:
        """Only the texts of a part."""
        return tuple(p.text for p in self.passages(part))

    def n_bytes(self, part: str) -> int:
        """UTF-8 bytes of a part's texts."""
        return sum(len(text.encode()) for text in self.texts(part))

    @property
    def sha256(self) -> str:
        """Hash of all texts, part by part, in order: two corpora with this hash are the same."""
        digest = hashlib.sha256()
        for part in PARTS:
            digest.update(part.encode() + b"\0")
            for text in self.texts(part):
                digest.update(text.encode() + b"\0")
        return digest.hexdigest()


def module_unit(module: str) -> str:
    """The name a module is split by: private parts removed, so that code moved behind a front stays where it was.

    >>> module_unit("pathlib._local"), module_unit("_pydecimal"), module_unit("email.mime.text")
    ('pathlib', 'decimal', 'email.mime.text')
    """
    first, *rest = module.split(".")
    if first.startswith("_py"):
        first = first[3:] or first
    return ".".join([first.lstrip("_") or first, *(part for part in rest if not part.startswith("_"))])


def part_of(module: str, salt: str = _SALT) -> str:
    """'train', 'valid' or 'test', from the module's path alone."""
    digest = hashlib.sha256(f"{salt}:{module_unit(module)}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if u < _TEST else "valid" if u < _TEST + _VALID else "train"


def split_passages(found: Sequence[Passage], salt: str = _SALT) -> Splits:
    """Split passages by module and take out of evaluation whatever repeats training text."""
    parts: dict[str, list[Passage]] = {part: [] for part in PARTS}
    for passage in found:
        parts[part_of(passage.module, salt)].append(passage)
    # Of exact copies one stays: training's before test's before validation's, and the first in order within a part.
    seen: set[str] = set()
    copies = 0
    for part in ("train", "test", "valid"):
        kept = []
        for passage in parts[part]:
            form = normalized(passage.text)
            if form in seen:
                copies += 1
            else:
                seen.add(form)
                kept.append(passage)
        parts[part] = kept
    texts = [p.text for p in parts["train"]]
    test = _without(parts["test"], overlapping([p.text for p in parts["test"]], texts))
    texts += [p.text for p in test]
    valid = _without(parts["valid"], overlapping([p.text for p in parts["valid"]], texts))
    dropped = {"copies": copies, "valid": len(parts["valid"]) - len(valid), "test": len(parts["test"]) - len(test)}
    return Splits(tuple(parts["train"]), valid, test, dropped, platform.python_version())


def _without(found: Sequence[Passage], out: np.ndarray) -> tuple[Passage, ...]:
    return tuple(p for p, gone in zip(found, out, strict=True) if not gone)


@functools.lru_cache(maxsize=1)
def stdlib_splits() -> Splits:
    """The running interpreter's corpus, split. Takes a few seconds the first time."""
    return split_passages(passages())


def evaluation_passages(part: str = "test", seen: SeenFilter | None = None) -> tuple[Passage, ...]:
    """Passages of 'valid' or 'test', without those that `seen` (a model's training split on another Python) has met."""
    if part not in ("valid", "test"):
        raise ValueError(f"part: expected 'valid' or 'test', got {part!r}")
    found = stdlib_splits().passages(part)
    return found if seen is None else _without(found, seen.seen([p.text for p in found]))
