"""Text out of files that people made: UTF-8, lines by number, and one file divided into parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["HELD_OUT", "divide", "numbered_lines", "read_text"]

HELD_OUT = 0.05  # share of a single file that is for validation, and again for test
_Record = TypeVar("_Record", bound="tuple[str, ...]")


def read_text(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MinedgeFormatError(
            f"{file}: expected UTF-8 text, byte {error.start} is not; convert it with iconv"
        ) from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise UsageError(f"{file}: expected data, the file is empty")
    return text.replace("\r\n", "\n")


def numbered_lines(file: Path) -> list[tuple[int, str]]:
    """(line number, line) of the lines that hold something. Only a newline ends a line: JSON may hold other
    separators.
    """
    return [(number, line) for number, line in enumerate(read_text(file).split("\n"), 1) if line.strip()]


def divide(records: Sequence[_Record]) -> dict[str, list[_Record]]:
    """90/5/5 by a hash of the content, so that copies of a record stay in one part; too few records stay whole."""
    parts: dict[str, list[_Record]] = {"train": [], "valid": [], "test": []}
    for record in records:
        digest = hashlib.sha256(json.dumps(record).encode()).digest()
        u = int.from_bytes(digest[:8], "big") / 2**64
        parts["test" if u < HELD_OUT else "valid" if u < 2 * HELD_OUT else "train"].append(record)
    return parts if all(parts.values()) else {"train": list(records)}
