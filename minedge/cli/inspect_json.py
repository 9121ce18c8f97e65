"""What single JSON files of a model or adapter folder hold, for minedge inspect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from minedge.cli.common import disk_bytes
from minedge.errors import MinedgeFormatError

__all__ = ["adapter_config", "any_json", "model_config", "shard_index", "tokenizer"]


def tokenizer(path: Path) -> dict[str, Any]:
    """tokenizer.json, or llama2.c's tokN.bin, opened in the limited child."""
    from minedge.cli.limited import open_tokenizer

    told = open_tokenizer(path)
    if told is None:
        raise MinedgeFormatError(f"{path}: not a tokenizer")
    return {
        "what": "tokenizer",
        "tokens": told["tokens"],
        "largest_id": told["largest_id"],
        "end_of_text": repr(told["eos_token"]),
        "chat_template": told["chat_template"],
        "on_disk": disk_bytes(path),
    }


def model_config(path: Path) -> dict[str, Any]:
    """config.json by itself: what model it describes."""
    from minedge.io.hf import read_config

    config, linears = read_config(path.parent)
    return {
        "what": "model configuration",
        "architecture": config.architecture,
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": f"{config.n_head} of {config.head_dim}",
        "mlp_width": config.n_inner,
        "context": config.context_length,
        "vocabulary": config.vocab_size,
        "kinds": dict(Counter(kind.kind for kind in linears.values())),
        "on_disk": disk_bytes(path),
    }


def adapter_config(path: Path) -> dict[str, Any]:
    """adapter_config.json by itself."""
    from minedge.io.adapter_config import config_problem
    from minedge.io.jsonfile import read_json

    config = read_json(path)
    problem = config_problem(config)
    if problem:
        raise MinedgeFormatError(f"{path}: {problem}")
    return {
        "what": "adapter configuration",
        "base_model": config.get("base_model_name_or_path") or "not named",
        "rank": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": config["target_modules"],
        "on_disk": disk_bytes(path),
    }


def shard_index(path: Path) -> dict[str, Any]:
    """model.safetensors.index.json: how many tensors each shard holds."""
    from minedge.io.hf_weights import member
    from minedge.io.jsonfile import read_json

    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise MinedgeFormatError(f"{path}: weight_map: expected an object from tensor names to file names")
    shards = Counter(weight_map.values())
    missing = [name for name in sorted(shards) if not member(path.parent, name).is_file()]
    if missing:
        raise MinedgeFormatError(f"{path}: weight_map: {missing[0]!r} is not beside it")
    return {
        "what": "index of shards",
        "shards": [f"{name} ({count} tensors)" for name, count in sorted(shards.items())],
        "on_disk": disk_bytes(path),
    }


def any_json(path: Path) -> dict[str, Any]:
    """Any other JSON object: its keys."""
    from minedge.io.jsonfile import read_json

    return {"what": "JSON object", "keys": sorted(read_json(path, constants=True)), "on_disk": disk_bytes(path)}
