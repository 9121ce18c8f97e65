"""minedge inspect: what a model folder, an adapter, a run or a single file holds."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minedge.cli import inspect_json
from minedge.cli.common import disk_bytes, find
from minedge.cli.console import Console
from minedge.cli.text import size
from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Open a model folder, a LoRA adapter, a training run, one of their files or a MeZO log, check it as
strictly as loading does, and show what is in it: architecture, tensors, linear kinds, bytes by part, tokenizer. A
damaged file gives the reason and exit code 3. Tokenizers and chat templates are opened in a child process with little
memory and time."""
CALLED = {"model": "FILE_OR_DIR", "--model": "FILE_OR_DIR"}
EXAMPLES = (
    "minedge inspect bundled",
    "minedge inspect my-int4 --tensors",
    "minedge inspect my-run/adapter --json",
    "minedge inspect my-model/model.safetensors",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE_OR_DIR", help="'bundled', a folder, a file or a hub id")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")


def run(args: argparse.Namespace, console: Console) -> int:
    path = find(args.path)
    report = _reader(path)(path)
    tensors = report.get("tensors", [])
    console.out(f"{report['what']}  {path}")
    for key, value in report.items():
        if key not in ("what", "tensors", "bytes", "kinds", "path"):
            console.out(f"{key.replace('_', ' ').ljust(18)}{_show(key, value)}")
    if report.get("kinds"):
        console.out()
        console.table(["linear kind", "matrices"], [[kind, str(n)] for kind, n in report["kinds"].items()])
    if report.get("bytes"):
        console.out()
        console.table(["resident bytes", ""], [[part, size(n)] for part, n in report["bytes"].items()])
    if args.tensors:
        console.out()
        rows = [[t["name"], t["dtype"], "x".join(map(str, t["shape"])) or "scalar", size(t["bytes"])] for t in tensors]
        console.table(["tensor", "type", "shape", "bytes"], rows, left=2)
    elif tensors:
        console.out(f"{len(tensors)} tensors; --tensors lists them")
    console.result({**report, "path": str(path)})
    return 0


def _reader(path: Path) -> Callable[[Path], dict[str, Any]]:
    """How to read what is there, judged by names and first bytes."""
    if not path.exists():
        from minedge.api import load

        load(path, backend="numpy")  # says what was expected, with the nearest names
    if path.is_dir():
        for marker, reader in (
            ("config.json", _model),
            ("adapter_config.json", _adapter),
            ("run.json", _run),
            ("manifest.json", _checkpoint),
        ):
            if (path / marker).exists():
                return reader
        if any(path.glob("*.gguf")):
            return _model
        if any(path.glob("*.safetensors")):
            raise MinedgeFormatError(f"{path}: expected config.json beside the weights, it is missing")
        raise UsageError(
            f"{path}: expected a model, adapter or run folder, found no config.json, adapter_config.json or run.json"
        )
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"MEZOLOG\n"):
        return _mezo_log
    if start.startswith(b"GGUF"):
        return _gguf
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _safetensors
    if path.suffix == ".json":
        by_name = {
            "config.json": inspect_json.model_config,
            "adapter_config.json": inspect_json.adapter_config,
            "tokenizer.json": inspect_json.tokenizer,
            "model.safetensors.index.json": inspect_json.shard_index,
        }
        return by_name.get(path.name, inspect_json.any_json)
    if re.fullmatch(r"tok\d{1,9}\.bin", path.name):
        return inspect_json.tokenizer
    if not start:
        raise MinedgeFormatError(f"{path}: it is empty, expected a model, an adapter or one of their files")
    return _model  # a llama2.c file; for others its reader says what was expected


def _model(path: Path) -> dict[str, Any]:
    import minedge
    from minedge.cli.limited import open_tokenizer
    from minedge.io.hf import check_ids

    told = open_tokenizer(path)
    model = minedge.load(path, backend="numpy", with_tokenizer=False)  # only the child opens tokenizers
    c, nbytes = model.config, model.nbytes()
    if told is not None:
        check_ids(told["largest_id"], c, f"{path}: tokenizer")
    kinds: dict[str, int] = {}
    for kind in model.linears.values():
        label = _kind_label(kind.to_dict())
        kinds[label] = kinds.get(label, 0) + 1
    return {
        "what": "model",
        "architecture": c.architecture,
        "parameters": model.n_params(),
        "layers": c.n_layer,
        "width": c.n_embd,
        "heads": f"{c.n_head} of {c.head_dim}"
        + (f", {c.n_kv_head} for keys and values" if c.n_kv_head != c.n_head else ""),
        "mlp_width": c.n_inner,
        "context": c.context_length,
        "vocabulary": c.vocab_size,
        "head": "tied to the embedding" if c.tie_embeddings else "its own matrix",
        "tokenizer": "none" if told is None else f"{told['tokens']:,} tokens, end of text {told['eos_token']!r}",
        "chat_template": "none" if told is None else told["chat_template"],
        "engine": _engine(model),
        "on_disk": disk_bytes(path),
        "kinds": kinds,
        "bytes": {key: n for key, n in nbytes.items() if not key.startswith("kind:")},
        "tensors": [
            {"name": name, "dtype": str(a.dtype), "shape": list(a.shape), "bytes": a.nbytes}
            for name, a in model.params.items()
        ],
    }


def _engine(model: Any) -> str:
    """Whether the engine would generate text with this model on the C tier, or why op by op."""
    from minedge.errors import BackendError
    from minedge.model.engine import Engine

    try:
        reason = Engine.why_not(model.with_backend("c"))
    except BackendError as error:
        reason = str(error)
    return f"no: {reason}" if reason else "yes"


def _kind_label(kind: dict[str, Any]) -> str:
    """{'kind': 'lora', 'base': {'kind': 'int4', ...}, 'r': 8} -> 'lora(int4(group_size=32), r=8)'."""
    base = [_kind_label(kind["base"])] if "base" in kind else []
    rest = [f"{key}={value}" for key, value in kind.items() if key not in ("kind", "base", "kept")]
    inside = ", ".join(base + rest)
    return f"{kind['kind']}({inside})" if inside else kind["kind"]


def _adapter(path: Path) -> dict[str, Any]:
    from minedge.io.adapters import read_adapter

    config, params = read_adapter(path)
    return {
        "what": "DoRA adapter" if config.get("use_dora") else "LoRA adapter",
        "base_model": config.get("base_model_name_or_path") or "not named",
        "rank": _one_or_range([scale.r for scale in config["modules"].values()]),
        "lora_alpha": _one_or_range([scale.lora_alpha for scale in config["modules"].values()]),
        "scaling": "lora_alpha / sqrt(rank)" if config.get("use_rslora") else "lora_alpha / rank",
        "target_modules": config["target_modules"],
        "parameters": sum(a.size for a in params.values()),
        "base_fingerprint": config["base_fingerprint"] or "none",
        "on_disk": disk_bytes(path),
        "tensors": [
            {"name": name, "dtype": str(a.dtype), "shape": list(a.shape), "bytes": a.nbytes}
            for name, a in params.items()
        ],
    }


def _one_or_range(values: list[Any]) -> Any:
    """A number that all modules share, or 'lowest to highest'."""
    low, high = min(values), max(values)
    return low if low == high else f"{low} to {high}"


def _run(path: Path) -> dict[str, Any]:
    from minedge.finetune import metrics
    from minedge.io import checkpoint
    from minedge.io.jsonfile import read_json

    header, records = read_json(path / "run.json", constants=True), metrics.read(path / "metrics.jsonl")
    valid = [r for r in records if "valid_loss" in r]
    steps = [r["step"] for r in records]
    found = checkpoint.list_checkpoints(path)
    for _, folder in found:
        checkpoint.verify_checkpoint(folder)
    return {
        "what": "training run",
        "method": header.get("config", {}).get("method", "unknown"),
        "steps": f"{max(steps, default=0)} of {header.get('config', {}).get('iters', '?')}",
        "trainable": header.get("n_trainable", 0),
        "best_valid_loss": min((r["valid_loss"] for r in valid if r["valid_loss"] is not None), default=None),
        "checkpoints": [folder.name for _, folder in found],
        "result": next((name for name in ("model", "adapter") if (path / name).is_dir()), "none yet"),
        "on_disk": disk_bytes(path),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    from minedge.io import checkpoint

    checkpoint.verify_checkpoint(path)
    return {
        "what": "checkpoint, whole",
        "on_disk": disk_bytes(path),
        "tensors": _safetensors(path / "arrays.safetensors")["tensors"],
    }


def _safetensors(path: Path) -> dict[str, Any]:
    from minedge.io.safetensors_header import read_header

    header = read_header(path)
    tensors = [
        {"name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.end - info.begin}
        for name, info in header.tensors.items()
    ]
    return {
        "what": "safetensors file",
        "metadata": dict(header.metadata),
        "on_disk": header.file_size,
        "tensors": tensors,
    }


def _gguf(path: Path) -> dict[str, Any]:
    from minedge.cli.limited import open_tokenizer
    from minedge.io.gguf import GGUFFile, read_config

    with GGUFFile(path) as file:
        try:
            c = read_config(file)
            loads = f"{c.n_layer} layers, {c.n_embd} wide, {c.n_head} heads, vocabulary {c.vocab_size:,}"
        except MinedgeFormatError as error:
            loads = f"cannot be loaded: {str(error).removeprefix(f'{path}: ')}"
        try:
            told = open_tokenizer(path)
            opened = "none" if told is None else f"{told['tokens']:,} tokens, end of text {told['eos_token']!r}"
        except MinedgeFormatError as error:
            told, opened = None, f"cannot be opened: {str(error).removeprefix(f'{path}: ')}"
        get, tokens = file.get, file.header.metadata.get("tokenizer.ggml.tokens")
        tensors = [
            {"name": name, "dtype": info.type.name, "shape": list(info.shape), "bytes": info.nbytes}
            for name, info in file.header.tensors.items()
        ]
        kinds = Counter(info.type.name for info in file.header.tensors.values())
        return {
            "what": f"GGUF file, version {file.header.version}",
            "architecture": get("general.architecture", str) or "not named",
            "name": get("general.name", str) or "none",
            "as_a_model": loads,
            "metadata_keys": len(file.header.metadata),
            "tokenizer": get("tokenizer.ggml.model", str) or "none",
            "tokens": getattr(tokens, "count", 0),
            "opened": opened,
            "chat_template": "none" if told is None else told["chat_template"],
            "on_disk": file.header.file_size,
            "types": ", ".join(f"{n} of {kind}" for kind, n in kinds.items()) or "none",
            "tensors": tensors,
        }


def _mezo_log(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from minedge.finetune.mezo_log import load_log

    log = load_log(path)
    return {
        "what": "MeZO log",
        "steps": log.steps,
        **asdict(log.settings),
        "base_weights": log.base_sha256,
        "trainable": log.trainable_sha256,
        "on_disk": disk_bytes(path),
    }


def _show(key: str, value: Any) -> str:
    if key == "on_disk":
        return size(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)
