"""JSONL: records {"text"}, {"prompt", "completion"} or {"messages": [{"role", "content"}, ...]}; one kind to a set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minedge.data.conversations import Conversations
from minedge.data.files import divide, numbered_lines
from minedge.data.packing import Pairs, Split, Texts
from minedge.errors import MinedgeFormatError

__all__ = ["jsonl_parts"]

_KINDS = ("text", "messages", "prompt")  # the key that says of which kind a record is
_WANTED = 'strings "text" or "prompt" and "completion", or a list "messages"'


def jsonl_parts(name: str, files: Mapping[str, Path], chat_template: bool) -> dict[str, Split]:
    """Splits by part. A single file is divided 90/5/5. MinedgeFormatError names file and line."""
    kinds: dict[str, Path] = {}
    records: dict[str, list[tuple[str, ...]]] = {}
    for part, file in files.items():
        kind, records[part] = _records(file)
        kinds[kind] = file
    if len(kinds) > 1:
        got = ", another ".join(f'"{kind}"' for kind in sorted(kinds))
        raise MinedgeFormatError(f"{name}: one file holds {got} records; keep one kind")
    if set(records) == {"train"}:
        records = divide(records["train"])
    return {part: _split(kind, found, chat_template) for part, found in records.items()}


def _split(kind: str, found: list[tuple[str, ...]], chat_template: bool) -> Split:
    if kind == "text":
        return Texts(tuple(record[0] for record in found))
    if kind == "prompt":
        return Pairs(tuple((record[0], record[1]) for record in found), chat_template)
    return Conversations(tuple(json.loads(record[0]) for record in found), chat_template)


def _records(file: Path) -> tuple[str, list[tuple[str, ...]]]:
    """The kind, and of every line (text,), (prompt, completion) or (messages as JSON,)."""
    found: list[tuple[str, ...]] = []
    first = ""
    for number, line in numbered_lines(file):
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MinedgeFormatError(f"{where}: expected one JSON object, got invalid JSON ({error})") from None
        if not isinstance(record, dict):
            raise MinedgeFormatError(f"{where}: expected {_WANTED}, got {type(record).__name__}")
        kind = next((key for key in _KINDS if key in record), None)
        values = None
        if kind == "messages":
            _check_messages(record[kind], where)
            values = (json.dumps(record[kind], ensure_ascii=False),)
        elif kind is not None:
            keys = ("text",) if kind == "text" else ("prompt", "completion")
            if all(isinstance(record.get(key), str) for key in keys):
                values = tuple(record[key] for key in keys)
                if not values[-1].strip():
                    raise MinedgeFormatError(f'{where}: "{keys[-1]}" is empty')
        if kind is None or values is None:
            got = ", ".join(sorted(record)) or "nothing"
            raise MinedgeFormatError(f"{where}: expected {_WANTED}, got {got}")
        first = first or kind
        if kind != first:
            raise MinedgeFormatError(f'{where}: "{first}" and "{kind}" records are mixed; keep one kind')
        found.append(values)
    return first, found


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise MinedgeFormatError(f'{where}: "messages": expected a list of messages, got {str(messages)[:60]!r}')
    for i, message in enumerate(messages):
        strings = isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))
        if not strings:
            raise MinedgeFormatError(
                f'{where}: message {i}: expected strings "role" and "content", got {str(message)[:60]!r}'
            )
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise MinedgeFormatError(f'{where}: expected a message of the role "assistant" to learn from, got none')
