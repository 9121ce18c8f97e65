"""Where the tensors of a model folder are: one safetensors file or shards, and names that may not lead out of the
folder.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from minedge.config import Config
from minedge.errors import MinedgeFormatError
from minedge.io.jsonfile import read_json
from minedge.io.safetensors import SafetensorsFile, TensorInfo

__all__ = ["Stored", "member", "open_weights"]

# Constants that older checkpoints carry along: causal masks and rotary frequencies, which are computed, not learned.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


class Stored(NamedTuple):
    """Where a tensor of a model folder is."""

    file: SafetensorsFile
    name: str  # in the file
    info: TensorInfo


def member(folder: Path, name: str) -> Path:
    """The path of a file of this folder; MinedgeFormatError if the name or a symbolic link leads out of it.

    The Hugging Face cache is made of links, from snapshots/<revision>/ to blobs/ beside snapshots/: those are allowed.
    """
    path = folder / name
    if os.path.basename(name) != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise MinedgeFormatError(f"{folder}: {name!r} is not the name of a file in this folder")
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    cache_blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if root not in real.parents and cache_blobs not in real.parents:
        raise MinedgeFormatError(f"{path}: a symbolic link that leads out of the model's folder")
    return path


def open_weights(folder: Path, config: Config, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Tensor name, as minedge has it -> where it is stored."""
    single, index = member(folder, "model.safetensors"), member(folder, "model.safetensors.index.json")
    found: dict[str, Stored] = {}
    if os.path.exists(single):
        file = stack.enter_context(SafetensorsFile(single))
        found = {name: Stored(file, name, info) for name, info in file.header.tensors.items()}
    elif os.path.exists(index):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise MinedgeFormatError(f"{index}: weight_map: expected an object from tensor names to file names")
        for shard in sorted(set(weight_map.values())):
            file = stack.enter_context(SafetensorsFile(member(folder, shard)))
            for name, info in file.header.tensors.items():
                if weight_map.get(name) != shard:
                    place = weight_map.get(name, "nowhere")
                    raise MinedgeFormatError(f"{file.path}: tensor {name!r}: the index says it is in {place}")
                found[name] = Stored(file, name, info)
        missing = sorted(weight_map.keys() - found.keys())
        if missing:
            raise MinedgeFormatError(f"{index}: tensor {missing[0]!r} is not in {weight_map[missing[0]]}")
    elif any(folder.glob("pytorch_model*.bin")):
        raise MinedgeFormatError(
            f"{folder}: only pytorch_model.bin here, a pickle, which can run any code and is never read; convert it "
            "where transformers is installed: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    else:
        raise MinedgeFormatError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
    return {name: stored for name, stored in _with_prefix(found, config).items() if not name.endswith(_BUFFERS)}


def _with_prefix(found: dict[str, Stored], config: Config) -> dict[str, Stored]:
    """Names with the architecture's prefix: GPT-2's own checkpoint says "h.0.ln_1", not "transformer.h.0.ln_1"."""
    prefix = config.arch.embed.split(".")[0] + "."
    if any(name.startswith(prefix) for name in found):
        return found
    head = config.arch.head + "."
    return {name if name.startswith(head) else prefix + name: stored for name, stored in found.items()}
