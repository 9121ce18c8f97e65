r"""Attention of new tokens over a cache of keys and values, and how a narrow cache rounds: the specification.

Legend: B batch, T new tokens, S tokens so far (S >= T), H query heads, KV key/value heads, D head_dim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minedge.ops.numpy_ops.attention import attention_forward

__all__ = ["KV_DTYPES", "cached_attention", "kv_round"]

Array = NDArray[np.floating]
KV_DTYPES = ("float32", "float16", "int8")


def cached_attention(q: Array, k: Array, v: Array) -> Array:
    """`attention_forward` for generation: no backward follows, and after a prompt every query is computed as if it
    came alone, so that several tokens at once give what one at a time gives.

    q (B, T, H, D), k and v (B, S, KV, D), views of a longer cache or whole -> out (B, T, H, D).
    """
    T, past = q.shape[1], k.shape[1] - q.shape[1]
    if past == 0 or T == 1:
        return attention_forward(q, k, v)[0]
    ys = [
        attention_forward(q[:, t : t + 1], k[:, : past + t + 1], v[:, : past + t + 1])[0] for t in range(T)
    ]  # (B, 1, H, D) each
    return np.concatenate(ys, axis=1)


def kv_round(x: Array, dtype: str) -> Array:
    r"""What a cache of `dtype` gives back for the keys or values x (..., D), as float32.

    "float32"   x itself
    "float16"   rounded to the nearest float16: relative error 2^-11 within its range
    "int8"      one scale a vector: d = max|x| / 127, q = round(x * (1 / d)), halves away from zero; d * q. Error d / 2.

    A vector of zeros stays zero. ValueError for another dtype.
    """
    if dtype == "float32":
        return x
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if dtype == "float16":
            return x.astype(np.float16).astype(np.float32)
        if dtype != "int8":
            raise ValueError(f"dtype: expected one of {', '.join(KV_DTYPES)}, got {dtype!r}")
        d = (np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float32)
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        scaled = np.clip(np.nan_to_num(x * inverse, nan=0.0, posinf=127.0, neginf=-127.0), -127, 127)
        codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
        return codes.astype(np.float32) * d
