"""Data from files and folders, and the built-in corpus and task.

    load_data("stdlib")         the built-in corpus         load_data("notes.txt")     running text
    load_data("stdlib-task")    the built-in task           load_data("data.jsonl")    text, prompts or conversations
    load_data("folder")         train.*, valid.*, test.*    load_data("reviews.tsv")   a label, a space, the text

Formats follow the file's ending: .txt and .md are text, .jsonl is JSONL, anything else must be labelled lines;
`format=` overrides. A single file is divided 90/5/5: running text by position, records by a hash of their content
(copies stay together).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minedge.data.files import HELD_OUT, divide, numbered_lines, read_text
from minedge.data.jsonl import jsonl_parts
from minedge.data.packing import PackedData, Split, Texts, pack
from minedge.data.splits import stdlib_splits
from minedge.data.task import Example, Labelled, Task, stdlib_task
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["BUILT_IN", "FORMATS", "Dataset", "load_data"]

BUILT_IN = ("stdlib", "stdlib-task")
FORMATS = ("text", "jsonl", "labels")
_ENDINGS = {".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl"}
_ROLES = {
    word: part
    for part, words in {"train": "train training", "valid": "valid validation val dev", "test": "test"}.items()
    for word in words.split()
}
_MAX_LABELS = 100


@dataclass(frozen=True)
class Dataset:
    """What `load_data` found. Parts that are missing are None; `task` is set where the data has labels."""

    name: str
    train: Split | None
    valid: Split | None = None
    test: Split | None = None
    task: Task | None = None
    info: Mapping[str, object] = field(default_factory=dict)  # for a run's record: sizes, corpus hash, Python version

    def part(self, name: str) -> Split | None:
        """'train', 'valid' or 'test'."""
        if name not in ("train", "valid", "test"):
            raise ValueError(f"part: expected 'train', 'valid' or 'test', got {name!r}")
        return getattr(self, name)

    def pack(self, name: str, tokenizer: Tokenizer, seq_len: int) -> PackedData:
        """Batches of a part; UsageError if the data has no such part."""
        split = self.part(name)
        if split is None or len(split) == 0:
            raise UsageError(f"data {self.name!r} has no {name} part; add a {name} file beside the others")
        return pack(split, tokenizer, seq_len)


def load_data(
    spec: str | Path,
    format: str | None = None,
    label_words: Mapping[str, str] | None = None,
    template: str | None = None,
    chat_template: bool = True,
) -> Dataset:
    """Load a file, a folder or a built-in set.

    `label_words` maps labels of labelled lines to the words a model is asked for (default: the labels themselves, or
    labels.json in the folder). `chat_template` False keeps prompts and conversations away from the chat template of the
    model's tokenizer. Raises UsageError for what cannot be used, MinedgeFormatError for a damaged file.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(spec)
    if str(spec) in BUILT_IN and not path.exists():
        return _stdlib() if str(spec) == "stdlib" else _of_task(stdlib_task(), _stdlib_info())
    if path.is_dir():
        files = _folder_files(path)
        if label_words is None:
            label_words = _label_file(path / "labels.json")
    elif path.is_file():
        files = {"train": path}
    else:
        raise UsageError(f"data: no file or folder {str(spec)!r}; give a path or one of {', '.join(BUILT_IN)}")
    formats = {format or _ENDINGS.get(file.suffix.lower(), "labels") for file in files.values()}
    if len(formats) > 1:
        raise UsageError(
            f"{path}: expected parts of one format, got {', '.join(sorted(formats))}; keep one format to a folder"
        )
    found = formats.pop()
    if found == "jsonl":
        return _dataset(path.name, jsonl_parts(path.name, files, chat_template))
    return {"text": _text, "labels": _labels}[found](path.name, files, label_words, template)


def _dataset(
    name: str, parts: Mapping[str, Split], task: Task | None = None, info: Mapping[str, object] | None = None
) -> Dataset:
    return Dataset(name, parts.get("train"), parts.get("valid"), parts.get("test"), task, info or {})


def _stdlib_info() -> dict[str, object]:
    found = stdlib_splits()
    sizes = {f"{part}_bytes": found.n_bytes(part) for part in ("train", "valid", "test")}
    return {"python": found.python, "corpus_sha256": found.sha256, **sizes}


def _stdlib() -> Dataset:
    parts = {part: Texts(stdlib_splits().texts(part)) for part in ("train", "valid", "test")}
    return _dataset("stdlib", parts, info=_stdlib_info())


def _of_task(task: Task, info: Mapping[str, object] | None = None) -> Dataset:
    parts = {part: Labelled(task, part) for part in ("train", "valid", "test") if task.examples(part)}
    return _dataset(task.name, parts, task, info)


def _folder_files(folder: Path) -> dict[str, Path]:
    """Role -> file. The role is a word of the file's name: train.jsonl, valid.txt, stsa.binary.dev."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        roles = {_ROLES[word] for word in file.name.lower().split(".") if word in _ROLES}
        if len(roles) != 1 or not file.is_file() or file.name.startswith("."):
            continue
        role = roles.pop()
        if role in files:
            raise UsageError(f"{folder}: expected one {role} file, got {files[role].name} and {file.name}")
        files[role] = file
    if "train" not in files and "test" not in files:
        raise UsageError(
            f"{folder}: expected train, valid and test files (train.jsonl or train.txt ...), found none of them"
        )
    return files


def _text(name: str, files: Mapping[str, Path], label_words: object, template: object) -> Dataset:
    texts = {part: read_text(file) for part, file in files.items()}
    if set(texts) == {"train"}:
        texts = _cut(texts["train"])
    return _dataset(name, {part: Texts((text,)) for part, text in texts.items()})


def _cut(text: str) -> dict[str, str]:
    """The last tenth of running text, cut at line ends, for validation and test; a text without enough lines stays
    whole.
    """
    lines = text.splitlines(keepends=True)
    starts, at = [], 0
    for line in lines:
        starts.append(at)
        at += len(line)
    cuts = [
        next((s for s in starts if s >= share * len(text)), len(text)) for share in (1 - 2 * HELD_OUT, 1 - HELD_OUT)
    ]
    parts = {"train": text[: cuts[0]], "valid": text[cuts[0] : cuts[1]], "test": text[cuts[1] :]}
    return parts if all(part.strip() for part in parts.values()) else {"train": text}


def _label_file(file: Path) -> dict[str, str] | None:
    if not file.is_file():
        return None
    try:
        words = json.loads(read_text(file))
    except ValueError as error:
        raise MinedgeFormatError(f"{file}: expected JSON, got {error}") from None
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise MinedgeFormatError(f'{file}: expected {{"label": "word", ...}}')
    return words


def _labels(
    name: str, files: Mapping[str, Path], label_words: Mapping[str, str] | None, template: str | None
) -> Dataset:
    records = {part: _label_records(file) for part, file in files.items()}
    labels = sorted({label for found in records.values() for label, _ in found})
    if len(labels) > _MAX_LABELS:
        raise UsageError(
            f"{name}: expected lines of a label, a space and the text, got {len(labels)} different first words; "
            "for other data use .txt or .jsonl files or say --format"
        )
    for part, found in records.items():
        only = {label for label, _ in found}
        if part == "train" and len(only) < 2:
            raise UsageError(f"{files[part]}: expected at least two labels, got only {only.pop()!r}")
    if label_words is not None and (missing := [label for label in labels if label not in label_words]):
        raise UsageError(f"label_words: expected a word for every label of {name}, got none for {', '.join(missing)}")
    if set(records) == {"train"}:
        records = divide(records["train"])
    parts = {
        part: tuple(Example(text, labels.index(label)) for label, text in found) for part, found in records.items()
    }
    words = tuple(label_words[label] for label in labels) if label_words is not None else tuple(labels)
    return _of_task(Task(name, tuple(labels), words, template or "{text}\nLabel: {label}", parts))


def _label_records(file: Path) -> list[tuple[str, str]]:
    found = []
    for number, line in numbered_lines(file):
        label, _, text = line.strip().replace("\t", " ", 1).partition(" ")
        if not text.strip():
            raise MinedgeFormatError(
                f"{file}, line {number}: expected a label, a space and the text, got {line.strip()[:40]!r}"
            )
        found.append((label, text.strip()))
    return found
