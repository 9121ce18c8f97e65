"""Keys and values of the tokens seen so far: generating a token reads the past instead of computing it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.errors import UsageError
from minedge.model.linears import LinearKind
from minedge.ops import Ops
from minedge.ops.numpy_ops.attention_decode import KV_DTYPES, kv_codes, kv_round

__all__ = ["KVCache", "check_room", "default_kv_dtype"]

Array = NDArray[np.floating]


class KVCache:
    """Room for `max_length` tokens: per layer k and v of shape (B, max_length, KV, D). `length` counts the tokens in
    it.

    rounding  "float16": keys and values are rounded as the engine's narrow cache rounds them, and kept as float32 all
              the same. "int8": codes, with a scale (B, max_length, KV) for each vector in k_scales and v_scales. This
              is the cache that is meant to be read; engine.py has the one that is fast.
    """

    def __init__(
        self, config: Config, batch: int, max_length: int, dtype: type = np.float32, rounding: str = "float32"
    ):
        check_room(config, max_length, rounding)
        shape, layers = (batch, max_length, config.n_kv_head, config.head_dim), range(config.n_layer)
        if rounding == "int8":
            dtype = np.int8
        self.k: list[Array] = [np.zeros(shape, dtype) for _ in layers]
        self.v: list[Array] = [np.zeros(shape, dtype) for _ in layers]
        self.k_scales: list[Array] = [np.zeros(shape[:3], np.float32) for _ in layers if rounding == "int8"]
        self.v_scales: list[Array] = [np.zeros(shape[:3], np.float32) for _ in layers if rounding == "int8"]
        self.length = 0
        self.rounding = rounding
        self.max_length = max_length

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Store the new (B, T, KV, D) keys and values of a layer; views of all so far, (B, length + T, KV, D).

        `length` itself moves once a step, by `advance`, after the last layer.
        """
        end = self.length + k.shape[1]
        new = slice(self.length, end)
        if self.rounding == "int8":
            self.k[layer][:, new], self.k_scales[layer][:, new] = kv_codes(k)
            self.v[layer][:, new], self.v_scales[layer][:, new] = kv_codes(v)
        else:
            self.k[layer][:, new] = kv_round(k, self.rounding)
            self.v[layer][:, new] = kv_round(v, self.rounding)
        return self.k[layer][:, :end], self.v[layer][:, :end]

    def attention(self, ops: Ops, layer: int, q: Array, k: Array, v: Array) -> Array:
        """The attention of new queries over k and v, as `append` gave them."""
        if self.rounding != "int8":
            return ops.cached_attention(q, k, v)
        S = k.shape[1]
        return ops.cached_attention_int8(q, k, self.k_scales[layer][:, :S], v, self.v_scales[layer][:, :S])

    def advance(self, n: int) -> None:
        self.length += n

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.k, *self.v, *self.k_scales, *self.v_scales))


def check_room(config: Config, max_length: int, kv_dtype: str) -> None:
    """Raise `UsageError` for a cache longer than the context, or of an unknown dtype."""
    if not 1 <= max_length <= config.context_length:
        raise UsageError(f"max_length: expected 1 to {config.context_length} (the context), got {max_length}")
    if kv_dtype not in KV_DTYPES:
        raise UsageError(f"kv_dtype: expected one of {', '.join(KV_DTYPES)}, got {kv_dtype!r}")


def default_kv_dtype(linears: Mapping[str, LinearKind]) -> str:
    """What keys and values are kept in where nobody says.

    "float16" where products round their activations to int8 (to 1/254 of the largest of 32): against that a float16's
    1/2048 is nothing, and attention over a long past reads half the bytes. "float32" elsewhere, so that text from a
    cache is the text of the full forward pass.
    """
    integer = any(kind.kind in ("int4", "int8") for outer in linears.values() for kind in _layers(outer))
    return "float16" if integer else "float32"


def _layers(kind: LinearKind | None) -> Iterator[LinearKind]:
    """A kind and those it wraps."""
    while kind is not None:
        yield kind
        kind = getattr(kind, "base", None)
