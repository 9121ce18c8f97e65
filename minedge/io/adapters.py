"""LoRA adapters in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors.

In a file a matrix is called base_model.model.<path>.lora_A.weight; in memory <path>.lora_A.<adapter>.weight, because a
model can carry several adapters. lora_A is (r, in), lora_B (out, r), and the update of the weight is lora_alpha / r *
lora_B @ lora_A.

An adapter only makes sense on the base it was trained on, so the base's fingerprint (`minedge.model.hashes`) goes with
it: in the safetensors metadata, under the key "minedge", where no version of peft minds it. Whoever puts an adapter on
a model checks it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.atomic import atomic_dir, recover_dir
from minedge.io.hf_weights import member
from minedge.io.jsonfile import dump_json, parse_json, read_json
from minedge.io.safetensors import SafetensorsFile, writer

__all__ = ["read_adapter", "write_adapter"]

_FORMAT_VERSION = 1
_IN_FILE = re.compile(r"base_model\.model\.(?P<path>[\w.]+)\.lora_(?P<side>[AB])\.weight")
_IN_MEMORY = re.compile(r"(?P<path>[\w.]+)\.lora_(?P<side>[AB])\.(?P<adapter>[\w-]+)\.weight")
_MAX_RANK = 65536

# Options of PEFT that change what an adapter computes and that minedge does not have, with the values that switch them
# off.
_MUST_BE_OFF: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "lora_bias": (None, False),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    # Other initialisations (pissa, olora, corda, loftq) also change the base's weights.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


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
) -> None:
    """Write one adapter's matrices (names as in memory, all of one adapter) as a folder that peft opens.

    `fan_in_fan_out` is for GPT-2, whose layers peft calls Conv1D. Raises UsageError if the folder exists (unless
    `overwrite`, and it holds an adapter_config.json) or the matrices are not what r says; MinedgeError on a full disk
    and the like.
    """
    if dtype not in (None, "float32", "float16"):
        raise UsageError(f"dtype: expected 'float32' or 'float16', got {dtype!r}")
    tensors, adapters = {}, set()
    for name, array in params.items():
        match = _IN_MEMORY.fullmatch(name)
        if match is None:
            raise UsageError(f"params: expected names like 'path.lora_A.default.weight', got {name!r}")
        adapters.add(match["adapter"])
        stored = f"base_model.model.{match['path']}.lora_{match['side']}.weight"
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
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
    problem = _config_problem(config) or _pairs_problem({name: a.shape for name, a in tensors.items()}, int(r), targets)
    if problem:
        raise UsageError(f"adapter: {problem}")
    own = {"format_version": _FORMAT_VERSION, "base_fingerprint": fingerprint}
    # One key only: the library writes several in an order that changes from run to run, and peft asks for none.
    write_weights = writer(tensors, {"minedge": json.dumps(own)})
    with atomic_dir(path, overwrite, marker="adapter_config.json") as folder:
        write_weights(folder / "adapter_model.safetensors")
        dump_json(config, folder / "adapter_config.json")


def read_adapter(
    path: str | os.PathLike[str], adapter: str = "default"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter folder: its configuration, and its matrices in float32 under the names they have in memory.

    The configuration is adapter_config.json's object, in which r, lora_alpha and target_modules are checked, plus the
    key "base_fingerprint" (None where peft wrote it). MinedgeFormatError for anything missing, unknown, contradictory
    or not supported.
    """
    folder = Path(path)
    if re.fullmatch(r"[\w-]+", adapter) is None:
        raise UsageError(f"adapter: expected a name of letters, digits, '_' and '-', got {adapter!r}")
    recover_dir(folder)
    if not os.path.isdir(folder):
        raise MinedgeFormatError(f"{folder}: no such folder; expected one with adapter_config.json")
    file, weights = member(folder, "adapter_config.json"), member(folder, "adapter_model.safetensors")
    config = read_json(file)
    problem = _config_problem(config)
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
        problem = _pairs_problem(shapes, config["r"], config["target_modules"])
        if problem:
            raise MinedgeFormatError(f"{weights}: {problem}")
        read = tensors.read(dtype=np.float32)
    params = {}
    for name, array in read.items():
        match = _IN_FILE.fullmatch(name)
        assert match is not None  # _pairs_problem saw to it
        params[f"{match['path']}.lora_{match['side']}.{adapter}.weight"] = array
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
    return {**config, "base_fingerprint": fingerprint}, params


def _config_problem(config: Mapping[str, Any]) -> str | None:
    """What is wrong with a configuration, or None."""
    if config.get("peft_type") != "LORA":
        return f"peft_type: expected 'LORA', got {config.get('peft_type')!r}"
    r, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= _MAX_RANK:
        return f"r: expected an integer from 1 to {_MAX_RANK}, got {r!r}"
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not isfinite(alpha):
        return f"lora_alpha: expected a finite number, got {alpha!r}"
    if not isinstance(targets, str) and not (
        isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets)
    ):
        return f"target_modules: expected a list of module names, got {targets!r}"
    for key, off in _MUST_BE_OFF.items():
        if config.get(key) not in off:
            return f"{key}: {config[key]!r} is not supported, expected {off[-1]!r}"
    for key, value in config.items():  # use_rslora, use_dora, and whatever comes after them
        if key.startswith("use_") and value not in (None, False):
            return f"{key}: {value!r} is not supported, expected False"
    return None


def _pairs_problem(shapes: Mapping[str, tuple[int, ...]], r: int, targets: list[str] | str) -> str | None:
    """What is wrong with the matrices' names and shapes, or None: each path needs lora_A (r, in) and lora_B (out,
    r).
    """
    sides: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        match = _IN_FILE.fullmatch(name)
        if match is None:
            return f"tensor {name!r}: expected names like 'base_model.model.<path>.lora_A.weight'"
        rank = shape[0 if match["side"] == "A" else 1] if len(shape) == 2 else None
        if rank != r:
            wanted = f"({r}, in)" if match["side"] == "A" else f"(out, {r})"
            return f"tensor {name!r}: expected shape {wanted} by r, got {list(shape)}"
        path = match["path"]
        if isinstance(targets, list) and not any(path == t or path.endswith("." + t) for t in targets):
            return f"tensor {name!r}: target_modules {targets} do not name it"
        sides.setdefault(path, set()).add(match["side"])
    if not sides:
        return "no adapter matrices"
    alone = sorted(path for path, found in sides.items() if len(found) == 1)
    return f"{alone[0]!r} has lora_{next(iter(sides[alone[0]]))} but not its partner" if alone else None
