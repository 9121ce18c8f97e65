"""Small JSON files out of untrusted hands: bounded in size and depth, no duplicate keys, one kind of error."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from minedge.errors import MinedgeFormatError

__all__ = ["dump_json", "open_regular", "parse_json", "read_json"]

_MAX_BYTES = 16 << 20  # an index of a 400B-parameter model has 0.1 MB
_MAX_DEPTH = 32
# What a character that begins a value costs in memory as Python objects at most, for the moment of parsing too; the
# whole may take four times the file, and what real files of these sizes take.
_COSTS = {b"{": 240, b"[": 72, b",": 40, b'"': 28, b":": 200}
_FREE = 4 << 20


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> tuple[Any, int]:
    """Open a regular file for unbuffered binary reading, with its size; anything else is a MinedgeFormatError.

    A named pipe or a device would block or never end, so they are refused (O_NONBLOCK keeps the opening itself from
    waiting).
    """
    path = os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise MinedgeFormatError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise MinedgeFormatError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise MinedgeFormatError(f"{path}: not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        os.close(descriptor)
        raise MinedgeFormatError(
            f"{path}: {status.st_size} bytes, expected at most {max_bytes} for a file of this kind"
        )
    return os.fdopen(descriptor, "rb", buffering=0), status.st_size


def _check_depth(data: bytes, where: str, max_depth: int) -> None:
    """Refuse deep nesting before the recursive parser of the standard library sees it."""
    depth, in_string, escaped_at = 0, False, -1
    for match in re.finditer(rb'["\\\[\]{}]', data):
        char, at = match.group(), match.start()
        if in_string:
            if at == escaped_at:
                continue
            if char == b"\\":
                escaped_at = at + 1
            elif char == b'"':
                in_string = False
        elif char == b'"':
            in_string = True
        elif char in b"[{":
            depth += 1
            if depth > max_depth:
                raise MinedgeFormatError(f"{where}: nested deeper than {max_depth} levels at byte {at}")
        elif char in b"]}":
            depth -= 1


def _check_cost(data: bytes, where: str) -> None:
    """Refuse a text that would become objects of far more bytes than its own: values of one or two characters."""
    text = len(data) if data.isascii() else 9 * len(data)  # 4 bytes a character, twice
    cost = text + sum(data.count(char) * each for char, each in _COSTS.items())
    if cost > 4 * len(data) + _FREE:
        raise MinedgeFormatError(f"{where}: too many values for a file of {len(data)} bytes, or text beyond ASCII")


def parse_json(data: bytes, where: str, constants: bool = False, max_depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """Parse a JSON object; MinedgeFormatError naming `where` if it is not one. `constants` allows NaN and Infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise MinedgeFormatError(f"{where}: key {key!r} occurs twice")
            result[key] = value
        return result

    def constant(text: str) -> float:
        if constants:
            return float(text.replace("Infinity", "inf"))
        raise MinedgeFormatError(f"{where}: {text} is not JSON")

    _check_depth(data, where, max_depth)
    _check_cost(data, where)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except MinedgeFormatError:
        raise
    except (ValueError, RecursionError) as error:  # includes UnicodeDecodeError and numbers of thousands of digits
        raise MinedgeFormatError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise MinedgeFormatError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json(path: str | os.PathLike[str], constants: bool = False, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `max_bytes`; MinedgeFormatError if it is missing, too large or not
    one.
    """
    file, size = open_regular(path, max_bytes)
    with file:
        try:
            data = file.read(size + 1)
        except OSError as error:
            raise MinedgeFormatError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from error
    return parse_json(data or b"", os.fspath(path), constants)


def dump_json(value: dict[str, Any], path: Path | None = None) -> bytes:
    """Encode with two spaces of indentation and a final newline; also write it to `path` if given."""
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    if path is not None:
        path.write_bytes(data)
    return data
