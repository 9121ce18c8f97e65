"""What `minedge.load` may be given, and which reader opens it: folders, .gguf and llama2.c files, hub ids.

A hub id ("HuggingFaceTB/SmolLM2-135M") is looked up in the local Hugging Face cache only; nothing is ever downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from minedge.config import Config
from minedge.errors import MinedgeFormatError
from minedge.io import gguf, hf, llama2c
from minedge.io.hf_weights import member
from minedge.model.linears import LinearKind

__all__ = ["hub_cache", "in_hub_cache", "read_any"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,255}")


def hub_cache() -> Path:
    """Where the Hugging Face libraries keep what they downloaded: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface."""
    direct = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if direct:
        return Path(direct).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def in_hub_cache(name: str) -> Path | None:
    """The folder of a hub id's snapshot in the local cache, or None where it is not there.

    The revision is the one refs/main names. Raises MinedgeFormatError where that file names something else.
    """
    if _HUB_ID.fullmatch(name) is None or ".." in name or "--" in name:
        return None
    folder = hub_cache() / ("models--" + name.replace("/", "--"))
    ref = folder / "refs" / "main"
    try:
        with ref.open("rb") as file:
            revision = file.read(1024).decode("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MinedgeFormatError(f"{ref}: cannot be read: {error}") from None
    if _REVISION.fullmatch(revision) is None or ".." in revision:
        raise MinedgeFormatError(f"{ref}: expected a revision's name, got {revision[:80]!r}")
    snapshot = folder / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def read_any(
    path: Path, with_tokenizer: bool = True, repack: hf.Repack | None = None
) -> tuple[Config, dict[str, np.ndarray], dict[str, LinearKind], Any, frozenset[str] | None]:
    """Config, params, linears, tokenizer (None where it is not wanted), and the trainable names a folder was written
    with (None: the usual ones). `repack`: as `hf.read_model` takes it; other sources are read whole.
    """
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1 or (path / "config.json").exists():
            return *hf.read_model(path, with_tokenizer, repack), hf.read_trainable_names(path)
        path = member(path, files[0].name)  # a folder, or a snapshot, that holds one GGUF file and no config.json
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise MinedgeFormatError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".gguf" or start == b"GGUF":
        return *gguf.read_model(path, with_tokenizer), None
    if path.suffix == ".bin":
        return *llama2c.read_model(path, with_tokenizer=with_tokenizer), None
    raise MinedgeFormatError(
        f"{path}: expected a model directory with config.json and model.safetensors, a .gguf file or a llama2.c .bin, "
        f"got a file that starts with {start!r}"
    )
