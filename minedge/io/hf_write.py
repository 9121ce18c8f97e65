"""Writing a model folder as Hugging Face lays it out; hf.py reads it again and describes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import minedge.ops
from minedge.config import Config
from minedge.errors import UsageError
from minedge.io.atomic import atomic_dir
from minedge.io.hf import FILE_DTYPE_KEYS, FORMAT_VERSION, check_tokenizer, lies_transposed
from minedge.io.jsonfile import dump_json
from minedge.io.safetensors import writer
from minedge.model.linears import LinearKind, dense_kind
from minedge.model.shapes import linear_shapes, param_shapes

__all__ = ["write_model"]


def write_model(
    path: str | os.PathLike[str],
    config: Config,
    params: Mapping[str, np.ndarray],
    linears: Mapping[str, LinearKind],
    tokenizer: Any = None,
    dtype: str | None = None,
    generation_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    trainable_names: Iterable[str] | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    `dtype` "float16" stores the float32 tensors so (None: as they are); what kinds keep in other types stays. A folder
    of dense linears is what transformers opens. Raises UsageError if the folder exists (unless `overwrite`, and it
    holds a config.json), if params do not fit config and linears, or if a value is too large for float16; MinedgeError
    on a full disk and the like.
    """
    if dtype not in (None, "float32", "float16"):
        raise UsageError(f"dtype: expected 'float32' or 'float16', got {dtype!r}")
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, "tokenizer")
    exact = {key for name, kind in linears.items() for key in kind.exact_storage(name)}
    stored = _to_storage(config, params, linears)
    tensors = {key: array if key in exact else _stored_as(key, array, dtype) for key, array in stored.items()}
    write_weights = writer(tensors, {"format": "pt"})  # transformers refuses files without this entry
    data = config.to_hf()
    data.update(dict.fromkeys(FILE_DTYPE_KEYS, dtype or "float32"))
    own: dict[str, Any] = {}
    special = {name: kind.to_dict() for name, kind in linears.items() if kind != dense_kind()}
    if special:
        own["linears"] = special
    if trainable_names is not None:
        own["trainable_names"] = sorted(trainable_names)
    if own:
        data["minedge"] = {"format_version": FORMAT_VERSION, **own}
    generation = dict(generation_config or {"bos_token_id": config.bos_token_id, "eos_token_id": data["eos_token_id"]})
    with atomic_dir(path, overwrite) as folder:
        write_weights(folder / "model.safetensors")
        dump_json(generation, folder / "generation_config.json")
        if tokenizer is not None:
            tokenizer.save(folder)
        dump_json(data, folder / "config.json")


def _to_storage(
    config: Config, params: Mapping[str, np.ndarray], linears: Mapping[str, LinearKind]
) -> dict[str, np.ndarray]:
    """The tensors of the file; UsageError unless params are what config and linears say, so it can be read again."""
    expected = param_shapes(config, linears)
    odd = sorted(expected.keys() ^ params.keys())
    if odd:
        problem = "is missing" if odd[0] in expected else "does not belong to the model"
        raise UsageError(f"params: {odd[0]!r} {problem}")
    for key, (shape, dtype) in expected.items():
        got = params[key]
        if got.shape != tuple(shape) or (got.dtype != dtype and not (dtype == "float32" and got.dtype == np.float64)):
            raise UsageError(f"params: {key!r}: expected {dtype} {list(shape)}, got {got.dtype} {list(got.shape)}")
    ops, stored = minedge.ops.get("numpy"), dict(params)
    for name, widths in linear_shapes(config).items():
        for key in linears[name].shapes(name, *widths):
            del stored[key]
        stored.update(linears[name].to_storage(params, name, ops))
    return {key: array.T if lies_transposed(config, key, array.shape) else array for key, array in stored.items()}


def _stored_as(key: str, array: np.ndarray, dtype: str | None) -> np.ndarray:
    if dtype is None or array.dtype not in (np.float32, np.float64):
        return array
    with np.errstate(over="raise"):
        try:
            return array.astype(dtype)
        except FloatingPointError:
            largest = np.abs(array[np.isfinite(array)]).max()
            raise UsageError(f"dtype: {key!r} holds {largest:.6g}, too large for {dtype}; save as float32") from None
