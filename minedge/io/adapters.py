"""LoRA adapters in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors.

In a file a matrix is called base_model.model.<path>.lora_A.weight; in memory <path>.lora_A.<adapter>.weight, because a
model can carry several adapters. lora_A is (r, in), lora_B (out, r); DoRA adds lora_magnitude_vector (out,). What the
configuration may say, ranks and alphas by module among it, stands in adapter_config.py.

An adapter only makes sense on the base it was trained on, so the base's fingerprint (`minedge.model.hashes`) goes with
it: in the safetensors metadata, under the key "minedge", where no version of peft minds it. Whoever puts an adapter on
a model checks it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.adapter_config import MAX_NAME, Scale, config_problem, scale_of
from minedge.io.atomic import atomic_dir, recover_dir
from minedge.io.hf_weights import member
from minedge.io.jsonfile import dump_json, parse_json, read_json
from minedge.io.safetensors import SafetensorsFile, writer

__all__ = ["read_adapter", "write_adapter"]

_FORMAT_VERSION = 1
_IN_FILE = re.compile(r"base_model\.model\.(?P<path>[\w.]+)\.lora_((?P<side>[AB])\.weight|magnitude_vector)")
_IN_MEMORY = re.compile(r"(?P<path>[\w.]+)\.lora_(?P<side>A|B|magnitude_vector)\.(?P<adapter>[\w-]+)\.weight")


def write_adapter(
    path: str | os.PathLike[str],
    params: Mapping[str, np.ndarray],
    r: int,
    lora_alpha: float,
    target_modules: Iterable[str],
    base_model_name: str | None = None,
    fingerprint: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    fan_in_fan_out: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> None:
    """Write one adapter's matrices (names as in memory, all of one adapter) as a folder that peft opens.

    `fan_in_fan_out` is for GPT-2, whose layers peft calls Conv1D; the patterns are for modules whose rank or alpha is
    not `r` or `lora_alpha`. Raises UsageError if the folder exists (unless `overwrite`, and it holds an
    adapter_config.json) or the matrices are not what these say; MinedgeError on a full disk and the like.
    """
    if dtype not in (None, "float32", "float16"):
        raise UsageError(f"dtype: expected 'float32' or 'float16', got {dtype!r}")
    tensors, adapters = {}, set()
    for name, array in params.items():
        match = _IN_MEMORY.fullmatch(name)
        if match is None:
            raise UsageError(f"params: expected names like 'path.lora_A.default.weight', got {name!r}")
        adapters.add(match["adapter"])
        end = "" if match["side"] == "magnitude_vector" else ".weight"
        stored = f"base_model.model.{match['path']}.lora_{match['side']}{end}"
        tensors[stored] = array if dtype is None else array.astype(dtype)
    if len(adapters) != 1:
        raise UsageError(f"params: expected the matrices of one adapter, got {sorted(adapters) or 'none'}")
    targets = sorted(set(target_modules))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "r": int(r),
        "lora_alpha": lora_alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
    problem = config_problem(config) or _tensors_problem({name: a.shape for name, a in tensors.items()}, config)
    if problem:
        raise UsageError(f"adapter: {problem}")
    own = {"format_version": _FORMAT_VERSION, "base_fingerprint": fingerprint}
    # One key only: the library writes several in an order that changes from run to run, and peft asks for none.
    write_weights = writer(tensors, {"minedge": json.dumps(own)})
    with atomic_dir(path, overwrite) as folder:
        write_weights(folder / "adapter_model.safetensors")
        dump_json(config, folder / "adapter_config.json")


def read_adapter(
    path: str | os.PathLike[str], adapter: str = "default"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter folder: its configuration, and its matrices in float32 under the names they have in memory.

    The configuration is adapter_config.json's object, checked, plus the keys "base_fingerprint" (None where peft wrote
    it) and "modules", the `Scale` (rank, alpha) of every module that is adapted. MinedgeFormatError for anything
    missing, unknown, contradictory or not supported.
    """
    folder = Path(path)
    if re.fullmatch(r"[\w-]+", adapter) is None:
        raise UsageError(f"adapter: expected a name of letters, digits, '_' and '-', got {adapter!r}")
    recover_dir(folder)
    if not os.path.isdir(folder):
        raise MinedgeFormatError(f"{folder}: no such folder; expected one with adapter_config.json")
    file, weights = member(folder, "adapter_config.json"), member(folder, "adapter_model.safetensors")
    config = read_json(file)
    problem = config_problem(config)
    if problem:
        raise MinedgeFormatError(f"{file}: {problem}")
    if not os.path.exists(weights) and (folder / "adapter_model.bin").exists():
        raise MinedgeFormatError(
            f"{folder}: only adapter_model.bin here, a pickle, which can run any code and is never read; "
            "save it again with a newer peft: model.save_pretrained(folder, safe_serialization=True)"
        )
    with SafetensorsFile(weights) as tensors:
        header = tensors.header
        for name, info in header.tensors.items():
            if info.dtype not in ("F32", "F16", "BF16", "F64"):
                raise MinedgeFormatError(f"{weights}: tensor {name!r}: expected floats, got {info.dtype}")
        shapes = {name: info.shape for name, info in header.tensors.items()}
        problem = _tensors_problem(shapes, config)
        if problem:
            raise MinedgeFormatError(f"{weights}: {problem}")
        read = tensors.read(dtype=np.float32)
    params, modules = {}, {}
    for name, array in read.items():
        match = _IN_FILE.fullmatch(name)
        assert match is not None  # _tensors_problem saw to it
        modules[match["path"]] = scale_of(config, match["path"])
        params[f"{match['path']}.lora_{match['side'] or 'magnitude_vector'}.{adapter}.weight"] = array
    own = parse_json(header.metadata.get("minedge", "{}").encode(), f"{weights}: metadata 'minedge'")
    if own and own.get("format_version") != _FORMAT_VERSION:
        raise MinedgeFormatError(
            f"{weights}: metadata 'minedge': format_version: expected {_FORMAT_VERSION}, "
            f"got {own.get('format_version')!r}"
        )
    fingerprint = own.get("base_fingerprint")
    if not (fingerprint is None or isinstance(fingerprint, str)):
        raise MinedgeFormatError(
            f"{weights}: metadata 'minedge': base_fingerprint: expected a string, got {fingerprint!r}"
        )
    return {**config, "base_fingerprint": fingerprint, "modules": modules}, params


def _tensors_problem(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str | None:
    """What is wrong with the tensors' names and shapes, or None: each path needs lora_A (r, in) and lora_B (out, r),
    with DoRA also lora_magnitude_vector (out,).
    """
    targets = config["target_modules"]
    scales: dict[str, Scale] = {}
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = _IN_FILE.fullmatch(name)
        if match is None:
            return f"tensor {name[:MAX_NAME]!r}: expected names like 'base_model.model.<path>.lora_A.weight'"
        path, side = match["path"], match["side"] or "magnitude_vector"
        if len(path) > MAX_NAME:
            return f"tensor {name[:MAX_NAME]!r}...: expected a name of at most {MAX_NAME} characters"
        if path not in scales:
            if isinstance(targets, list) and not any(path == t or path.endswith("." + t) for t in targets):
                return f"tensor {name!r}: target_modules {targets} do not name it"
            scales[path] = scale_of(config, path)
        r = scales[path].r
        if side == "magnitude_vector":
            if not config.get("use_dora"):
                return f"tensor {name!r}: it belongs to DoRA, and use_dora is not true"
            if len(shape) != 1:
                return f"tensor {name!r}: expected shape (out,), got {list(shape)}"
        elif len(shape) != 2 or shape[0 if side == "A" else 1] != r:
            wanted = f"({r}, in)" if side == "A" else f"(out, {r})"
            return f"tensor {name!r}: expected shape {wanted} by the rank {r}, got {list(shape)}"
        found.setdefault(path, {})[side] = shape
    if not found:
        return "no adapter matrices"
    needed = {"A", "B"} | ({"magnitude_vector"} if config.get("use_dora") else set())
    for path, sides in sorted(found.items()):
        missing = sorted(needed - sides.keys())
        if missing:
            return f"{path!r} has lora_{next(iter(sides))} but not lora_{missing[0]}"
        if config.get("use_dora") and sides["magnitude_vector"][0] != sides["B"][0]:
            return f"{path!r}: expected a lora_magnitude_vector of {sides['B'][0]}, got {sides['magnitude_vector'][0]}"
    return None
