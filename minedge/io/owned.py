"""What minedge writes, into a folder or as a single file: what overwriting may replace, and what loading reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minedge.errors import MinedgeError
from minedge.io.jsonfile import read_json

__all__ = ["folder_kind", "read_by_loading", "why_file_kept", "why_kept"]

_TOKENIZER = (
    r"tokenizer(_config)?\.json|chat_template\.(jinja|json)|special_tokens_map\.json|added_tokens\.json|vocab\.json"
    r"|merges\.txt|tokenizer\.model"
)
_WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
# Kind of folder -> what tells it: a file and keys of it, one of which it has.
_MARKERS = {
    "model": ("config.json", ("model_type",)),
    "adapter": ("adapter_config.json", ("peft_type",)),
    "checkpoint": ("manifest.json", ("files",)),
    "run": ("run.json", ("n_trainable",)),
    "tour": ("tour.json", ("finished",)),
}
_FILES = {
    "model": rf"config\.json|generation_config\.json|{_TOKENIZER}|{_WEIGHTS}|seen\.npy|figures\.json|loss\.svg",
    "adapter": r"adapter_config\.json|adapter_model\.safetensors",
    "checkpoint": r"manifest\.json|state\.json|arrays\.safetensors",
    "run": r"run\.json|metrics\.jsonl|loss\.svg|mezo\.log",
    "tour": r"tour\.json",
}
_FOLDERS = {
    "run": ((r"model", "model"), (r"adapter", "adapter"), (r"step-\d{8,}", "checkpoint")),
    "tour": ((r"[a-z0-9]+-model", "model"), (r"lora-adapter", "adapter"), (r"mezo", "run")),
}
# Kind of single file -> what it begins with, the ending of a name that says as much, and what another one is told.
_STARTS = {
    "gguf": (b"GGUF", ".gguf", "is no GGUF file"),
    "plot": (b"<svg ", "", "was not written by minedge bench"),
    "table": (b"| work |", "", "was not written by minedge bench"),
    "report": (b'{\n  "machine": {', "", "was not written by minedge bench"),
}
_LEFT = re.compile(r"\.lock|\..+\.(tmp|old)-\w+-\d+-\d+-[0-9a-f]+")  # a run's lock, what a killed process left


def folder_kind(path: Path) -> str | None:
    """The kind of folder that the contents of its files say it is."""
    return next((kind for kind, (name, keys) in _MARKERS.items() if _has_key(path / name, keys)), None)


def _has_key(file: Path, keys: tuple[str, ...]) -> bool:
    try:
        found: dict[str, Any] = read_json(file, constants=True)
    except (OSError, MinedgeError):
        return False
    return any(key in found for key in keys)


def why_kept(path: Path) -> str | None:
    """Why overwriting must not replace what is at `path`; None where it may: a folder that holds a model, an adapter, a
    checkpoint, a run or a tour and nothing that minedge does not write there, or nothing at all.
    """
    if path.is_symlink() or not path.is_dir():
        return "is not a folder"
    kind = folder_kind(path)
    if kind is None and not all(_LEFT.fullmatch(entry.name) for entry in path.iterdir()):
        return "holds no model, adapter or run of minedge"
    unknown = [str(file.relative_to(path)) for file in _unknown(path, kind)]
    if not unknown:
        return None
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return f"also holds {', '.join(unknown[:3])}{more}, not written by minedge"


def why_file_kept(path: Path, kind: str) -> str | None:
    """Why overwriting must not replace the file at `path`; None where it may: the file is empty, or begins or is named
    as one of that `kind`.
    """
    start, ending, reason = _STARTS[kind]
    if ending and path.suffix == ending:
        return None
    with path.open("rb") as file:
        return None if file.read(len(start)) in (start, b"") else reason


def _unknown(path: Path, kind: str | None) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if _LEFT.fullmatch(entry.name):
            continue
        if entry.is_symlink() or not entry.is_dir():
            if kind is None or not re.fullmatch(_FILES[kind], entry.name):
                yield entry
            continue
        inner = next((to for name, to in _FOLDERS.get(kind or "", ()) if re.fullmatch(name, entry.name)), None)
        if inner is None or (folder_kind(entry) != inner and any(entry.iterdir())):
            yield entry
        else:
            yield from _unknown(entry, inner)


def read_by_loading(path: Path) -> list[Path]:
    """The files of a model's or an adapter's folder that loading reads; of any other folder all."""
    inside = [p for p in path.iterdir() if p.is_file()]
    if (path / "config.json").is_file():
        weights = r"model\.safetensors" if (path / "model.safetensors").is_file() else rf"{_WEIGHTS}|.*\.safetensors"
        names = rf"config\.json|generation_config\.json|tokenizer(_config)?\.json|chat_template\.jinja|{weights}"
        return [p for p in inside if re.fullmatch(names, p.name)]
    if (path / "adapter_config.json").is_file():
        return [p for p in inside if re.fullmatch(_FILES["adapter"], p.name)]
    ggufs = [p for p in inside if p.suffix == ".gguf"]
    return ggufs if len(ggufs) == 1 else [p for p in path.rglob("*") if p.is_file()]
