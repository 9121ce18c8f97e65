"""A session in a file: what a model has read, so that another run need not read it again.

A safetensors file: `tokens` int64 (n,), and per layer i `layers.i.k` and `layers.i.v` (n, KV, D) in the cache's dtype,
with int8 also `layers.i.k_scales`, `layers.i.v_scales` float32 (n, KV). Its metadata names the format, the dtype and
the model: the hash of all weights, the config and the linear kinds. For any other model the numbers mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import safetensors
from minedge.model.engine import Engine
from minedge.model.hashes import weights_hash
from minedge.model.session import Session

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = ["load_session", "model_fingerprint", "save_session"]

FORMAT = "minedge prompt cache 1"


def model_fingerprint(model: Model) -> str:
    """SHA-256 of everything that decides what the model computes."""
    kinds = {name: kind.to_dict() for name, kind in model.linears.items()}
    about = json.dumps([model.config.to_dict(), kinds, weights_hash(model.params)], sort_keys=True, default=str)
    return hashlib.sha256(about.encode()).hexdigest()


def save_session(session: Session, path: str | os.PathLike[str]) -> None:
    """Write what the session holds, whole or not at all. `UsageError` where the engine does not run the model."""
    engine, tensors = _engine(session), {"tokens": np.array(session.ids, np.int64)}
    for i, cache in enumerate(engine.caches):
        for name, rows in cache.rows(0, len(session.ids)).items():
            tensors[f"layers.{i}.{name}"] = rows
    metadata = {"format": FORMAT, "kv_dtype": engine.kv_dtype, "model": model_fingerprint(session.model)}
    safetensors.write(path, tensors, metadata)


def load_session(
    model: Model, path: str | os.PathLike[str], max_length: int | None = None, kv_dtype: str | None = None
) -> Session:
    """The session that `save_session` wrote, for the same model.

    Raises `UsageError` for a file of another model or dtype, `MinedgeFormatError` for one that is damaged or foreign.
    """
    session = Session(model, max_length, kv_dtype)
    engine, where = _engine(session), os.fspath(path)
    with safetensors.SafetensorsFile(path) as file:
        metadata = file.header.metadata
        if metadata.get("format") != FORMAT:
            raise MinedgeFormatError(f"{where}: expected a {FORMAT!r}, got format {metadata.get('format')!r}")
        if metadata.get("model") != model_fingerprint(model):
            raise UsageError(
                f"prompt cache: {where} was made by another model than {model.name}; name another file, or delete it"
            )
        if metadata.get("kv_dtype") != engine.kv_dtype:
            raise UsageError(
                f"prompt cache: {where} keeps {metadata.get('kv_dtype')}, this run {engine.kv_dtype}; "
                "take the same dtype, or name another file"
            )
        n = min(_length(file, where, model), engine.max_length)
        tensors = file.read()
    ids = tensors["tokens"]
    if len(ids) and not (ids.min() >= 0 and ids.max() < model.config.vocab_size):
        raise MinedgeFormatError(f"{where}: tensor 'tokens': expected ids in 0..{model.config.vocab_size - 1}")
    for name, array in tensors.items():
        if array.dtype == np.int8 and array.min(initial=0) < -127:
            raise MinedgeFormatError(f"{where}: tensor {name!r}: expected codes in -127..127, got -128")
    for i, cache in enumerate(engine.caches):
        names = cache.rows(0, 0)
        cache.fill(0, {name: tensors[f"layers.{i}.{name}"][:n] for name in names})
    engine.lengths[0], session.ids = n, ids[:n].tolist()
    return session


def _engine(session: Session) -> Any:
    if not isinstance(session.reader, Engine):
        raise UsageError(f"prompt cache: it needs the engine; {Engine.why_not(session.model)}")
    return session.reader


def _length(file: safetensors.SafetensorsFile, where: str, model: Model) -> int:
    """Tokens in the file; `MinedgeFormatError` unless all tensors are there with their shapes and types."""
    found = file.header.tensors
    tokens = found.get("tokens")
    if tokens is None or tokens.dtype != "I64" or len(tokens.shape) != 1:
        raise MinedgeFormatError(f"{where}: expected a tensor 'tokens' of one dimension, int64")
    n, KV, D = tokens.shape[0], model.config.n_kv_head, model.config.head_dim
    dtype = {"float32": "F32", "float16": "F16", "int8": "I8"}.get(file.header.metadata["kv_dtype"])
    want: dict[str, tuple[tuple[int, ...], str | None]] = {"tokens": ((n,), "I64")}
    for i in range(model.config.n_layer):
        want.update({f"layers.{i}.{name}": ((n, KV, D), dtype) for name in ("k", "v")})
        if dtype == "I8":
            want.update({f"layers.{i}.{name}": ((n, KV), "F32") for name in ("k_scales", "v_scales")})
    have = {name: (tuple(info.shape), info.dtype) for name, info in found.items()}
    if have != want:
        odd = min(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        raise MinedgeFormatError(f"{where}: tensor {odd!r}: expected {want.get(odd)}, got {have.get(odd)}")
    return n
