"""GGUF files out, through the `gguf` package (the extra `minedge[gguf]`), for llama.cpp and what builds on it.

The types are llama.cpp's: matrices become F16, Q8_0 or Q4_0, vectors (norms, biases) and learned positions stay F32,
and a matrix whose width is no multiple of 32 falls back to F16 with a warning. Tensors are made and written one after
another. An Int4 matrix becomes Q4_0, an Int8 matrix Q8_0, without any loss: the same codes and scales, interleaved;
larger groups repeat their scale. Matrices of 16 bits stay F16 or BF16. GGUF has no form for NF4 nor for masks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minedge.ops
from minedge.config import Config
from minedge.errors import MinedgeError, UsageError
from minedge.io.atomic import atomic_write
from minedge.io.gguf_names import ROPE_FREQS, gguf_name, metadata_from_config, rope_factors, rotary_rows
from minedge.io.gguf_tokenizer import tokenizer_metadata
from minedge.io.hf import check_tokenizer
from minedge.model.linears import LinearKind
from minedge.model.shapes import linear_shapes, param_shapes

__all__ = ["GGUF_DTYPES", "write_model"]

# Our name -> type of the matrices.
GGUF_DTYPES = {"keep": "F32", "f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
# Kinds that have a type of their own; llama.cpp's number for a file that mostly consists of a type.
_PACKED = {"int4": "Q4_0", "int8": "Q8_0", "float16": "F16", "bfloat16": "BF16"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_F16_MAX, _F32_MAX = 65504.0, float(np.finfo(np.float32).max)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise MinedgeError(
            "writing GGUF files needs the gguf package, which is not installed: pip install 'minedge[gguf]' (from the "
            "source folder: pip install '.[gguf]')"
        ) from None
    return gguf


def write_model(
    path: str | os.PathLike[str],
    config: Config,
    params: Mapping[str, np.ndarray],
    linears: Mapping[str, LinearKind],
    tokenizer: Any = None,
    dtype: str = "keep",
    name: str = "model",
) -> None:
    """Write a model as a GGUF file, whole or not at all; an existing file is replaced.

    dtype  "f32", "f16", "q8_0", "q4_0": the type of all matrices, embedding and head included. "keep": Int4 matrices
           as Q4_0, Int8 as Q8_0, those of 16 bits as they are, all others as F32, so that nothing is lost. A
           warning names what grows by that.

    Raises UsageError for an unknown dtype, adapters that are not merged, values that are not finite or too large for
    the type, or a tokenizer that GGUF has no form for; MinedgeError where the gguf package is missing or the disk full.
    """
    if dtype not in GGUF_DTYPES:
        raise UsageError(f"dtype: expected one of {', '.join(GGUF_DTYPES)}, got {dtype!r}")
    adapted = [module for module, kind in linears.items() if kind.is_adapter]
    if adapted:
        raise UsageError(
            f"model: {adapted[0]} carries an adapter, which GGUF has no form for; merge it first (minedge fuse)"
        )
    gguf = _package()
    metadata = {**metadata_from_config(config), **_general(config, linears, dtype, name)}
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, "tokenizer")
        metadata.update(tokenizer_metadata(tokenizer, config.vocab_size))
    else:
        metadata["tokenizer.ggml.model"] = ("string", "no_vocab")  # or llama.cpp would not open the file
        warnings.warn(
            "the model has no tokenizer, so the GGUF file has none: it takes ids only", UserWarning, stacklevel=3
        )
    for key, token_id in (("bos", config.bos_token_id), *zip(("eos", "eot"), config.eos_ids, strict=False)):
        if token_id is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = ("uint32", token_id)
    plan = _plan(config, params, linears, dtype)

    def write_to(target: Path) -> None:
        writer = gguf.GGUFWriter(target, config.architecture)
        for key, (kind, value) in metadata.items():
            if kind != "array" or value:
                getattr(writer, f"add_{kind}")(key, value)
        for tensor, (kind, shape, _) in plan.items():
            qtype = gguf.GGMLQuantizationType[kind]
            block, nbytes = gguf.constants.GGML_QUANT_SIZES[qtype]
            size = int(np.prod(shape, dtype=object)) // block * nbytes
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=qtype)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor, (kind, _, make) in plan.items():
                writer.write_tensor_data(_encoded(gguf, tensor, kind, make()))
        finally:
            writer.close()

    atomic_write(path, write_to)


def _general(config: Config, linears: Mapping[str, LinearKind], dtype: str, name: str) -> dict[str, tuple[str, Any]]:
    kinds = {_PACKED.get(kind.kind, "F32") for kind in linears.values()} if dtype == "keep" else {GGUF_DTYPES[dtype]}
    mostly = _FILE_TYPES[next(kind for kind in ("Q4_0", "Q8_0", "BF16", "F16", "F32") if kind in kinds)]
    out: dict[str, tuple[str, Any]] = {"general.name": ("string", name), "general.file_type": ("uint32", mostly)}
    if mostly in (2, 7):
        out["general.quantization_version"] = ("uint32", 2)
    return out


Make = Callable[[], np.ndarray]


def _plan(
    config: Config, params: Mapping[str, np.ndarray], linears: Mapping[str, LinearKind], dtype: str
) -> dict[str, tuple[str, tuple[int, ...], Make]]:
    """GGUF name -> type, shape, and a function that makes its array: float32 (or ready blocks of a packed type)."""
    ops, narrow = minedge.ops.get("numpy"), []
    grown = sorted({kind.kind for kind in linears.values()} - {"dense", *_PACKED}) if dtype == "keep" else []
    owned: set[str] = set()
    plan: dict[str, tuple[str, tuple[int, ...], Make]] = {}
    if dict(config.rope_scaling or ()).get("rope_type") == "llama3":
        plan[ROPE_FREQS] = ("F32", (config.head_dim // 2,), lambda: rope_factors(config))
    for module, shape in linear_shapes(config).items():
        kind, weight = linears[module], f"{module}.weight"
        owned.update(kind.shapes(module, *shape))
        rows = rotary_rows(config, module)
        packed = kind.kind in _PACKED and dtype in ("keep", _PACKED[kind.kind].lower())
        target = _PACKED[kind.kind] if packed else GGUF_DTYPES[dtype]
        if target.startswith("Q") and shape[1] % 32:
            narrow.append(module)
            target = "F16"

        def make(kind: Any = kind, module: str = module, rows: Any = rows, packed: bool = packed) -> np.ndarray:
            blocks = packed and kind.kind in ("int4", "int8")
            array = _interleaved(params, module) if blocks else kind.dense(params, module, ops)
            return array if rows is None else array[rows]

        plan[gguf_name(config, weight)] = (target, shape, make)
    if narrow:
        warnings.warn(f"width no multiple of 32, written as F16: {', '.join(narrow)}", UserWarning, stacklevel=4)
    if grown:
        warnings.warn(
            f"GGUF has no form for {' and '.join(grown)}: those matrices are written as F32; for a small file choose "
            "f16, q8_0 or q4_0",
            UserWarning,
            stacklevel=4,
        )
    for key in param_shapes(config, linears):
        if key not in owned:
            plan[gguf_name(config, key)] = ("F32", params[key].shape, partial(params.__getitem__, key))
    return plan


def _interleaved(params: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    """Int4's or Int8's codes and scales as blocks: per 32 weights the float16 scale, then 16 or 32 bytes of codes."""
    qweight, scales = params[f"{module}.qweight"], params[f"{module}.scales"]
    codes = qweight.view(np.uint8).reshape(len(qweight), -1, 16 if qweight.dtype == np.uint8 else 32)  # (out, in/32, .)
    per_block = np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)  # a group of 64 has two blocks
    raw = np.ascontiguousarray(per_block, "<f2").view(np.uint8).reshape(*per_block.shape, 2)
    return np.concatenate([raw, codes], axis=-1).reshape(len(qweight), -1)


def _encoded(gguf: Any, tensor: str, kind: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:  # blocks already
        return np.ascontiguousarray(array)
    array = np.ascontiguousarray(array, np.float32)
    if kind != "F32":
        top = float(np.abs(array).max(initial=0.0))
        limit = {"F16": _F16_MAX, "Q8_0": 127 * _F16_MAX, "Q4_0": 8 * _F16_MAX}.get(kind, _F32_MAX)
        if not top <= limit:  # NaN too
            raise UsageError(f"dtype: {tensor} holds {top:.6g}, which {kind} cannot; write it as f32")
    with np.errstate(over="ignore", invalid="ignore"):  # a block of denormals: 1 / d is infinite, codes saturate
        return gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
