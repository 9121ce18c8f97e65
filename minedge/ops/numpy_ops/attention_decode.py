r"""Attention of new tokens over a cache of keys and values, and how a narrow cache rounds: the specification.

Legend: B batch, T new tokens, S tokens so far (S >= T), H query heads, KV key/value heads, G = H / KV, D head_dim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minedge.ops.numpy_ops.attention import attention_forward

__all__ = ["KV_DTYPES", "SPAN", "cached_attention", "cached_attention_int8", "kv_codes", "kv_round"]

Array = NDArray[np.floating]
Codes = NDArray[np.integer]
KV_DTYPES = ("float32", "float16", "int8")
SPAN = 256  # keys whose softmax stands alone before it joins the others


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


def cached_attention_int8(q: Array, k: Codes, k_scales: Array, v: Codes, v_scales: Array) -> Array:
    r"""`cached_attention` over keys and values kept as int8 codes, by integer products.

    The query and the weights of the values are rounded to 16-bit codes, `x ~ d_x c_x`, so that both sums are integers:

        s_j   = (d_q d_kj) sum_i c_q[i] c_kj[i]          q already times 1 / sqrt(D); one d_q a query and head
        p_j   = exp(s_j - max s)                         keys in spans of 256, each with its own maximum
        o[i]  = d_w sum_j c_w[j] c_vj[i]                 w_j = p_j d_vj; one d_w a query, head and span
        out   = sum_spans e^(max s - top) o / sum_spans e^(max s - top) sum_j p_j

    Both sums fit 32 bits: 256 * 32767 * 127 < 2^31, and the query's codes reach min(32767, (2^31 - 1) / (127 D)). To
    the rounding of the codes themselves this adds at most d_q / 2 * sum|k_j| to a score and d_w / 2 * sum|c_v| to a
    span's sum, a 256th of what int8 already cost where the largest codes are near 127.

    q (B, T, H, D) float32; k, v (B, S, KV, D) int8; k_scales, v_scales (B, S, KV) float32 -> out (B, T, H, D).
    """
    (B, T, H, D), (S, KV) = q.shape, k.shape[1:3]
    scaled = q * (np.float32(1) / np.sqrt(np.float32(D)))
    codes, d_q = _round16(scaled.reshape(B, T, KV, H // KV, D), min(32767, (2**31 - 1) // (127 * D)))
    out = np.empty(q.shape, np.float32)
    for t in range(T):
        seen = S - T + t + 1
        sums = np.einsum("bkgd,bskd->bkgs", codes[:, t], k[:, :seen].astype(np.int64))
        heads = k_scales[:, :seen].transpose(0, 2, 1)[:, :, None]  # (B, KV, 1, seen)
        s = d_q[:, t, :, :, None] * heads * sums.astype(np.float32)  # (B, KV, G, seen)
        tops, totals, parts = [], [], []
        for j in range(0, seen, SPAN):
            span = slice(j, min(seen, j + SPAN))
            tops.append(s[..., span].max(axis=-1))
            p = np.exp(s[..., span] - tops[-1][..., None])
            totals.append(p.sum(axis=-1))
            w, d_w = _round16(p * v_scales[:, span].transpose(0, 2, 1)[:, :, None], 32767)
            o = np.einsum("bkgs,bskd->bkgd", w, v[:, span].astype(np.int64))
            parts.append(d_w[..., None] * o.astype(np.float32))  # (B, KV, G, D)
        factors = np.exp(np.stack(tops) - np.max(tops, axis=0))  # (spans, B, KV, G)
        total = np.sum(factors * np.stack(totals), axis=0)
        out[:, t] = (np.sum(factors[..., None] * np.stack(parts), axis=0) / total[..., None]).reshape(B, H, D)
    return out


def _round16(x: Array, levels: int) -> tuple[Codes, Array]:
    """Codes int64 and one scale d for the last axis: d = max|x| / levels, c = round(x * (1 / d)), halves away from
    zero.
    """
    return _codes(x.astype(np.float32), levels, np.int64)


def kv_codes(x: Array) -> tuple[Codes, Array]:
    """Keys or values x (..., D) as an int8 cache keeps them: codes (..., D) and scales (...), see `kv_round`."""
    return _codes(x, 127, np.int8)


def _codes(x: Array, levels: int, dtype: type) -> tuple[Codes, Array]:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        d = (np.abs(x).max(axis=-1, keepdims=True) / np.float32(levels)).astype(np.float32)
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        scaled = np.clip(np.nan_to_num(x * inverse, nan=0.0, posinf=levels, neginf=-levels), -levels, levels)
        return np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(dtype), d[..., 0]


def kv_round(x: Array, dtype: str) -> Array:
    r"""What a cache of `dtype` gives back for the keys or values x (..., D), as float32.

    "float32"   x itself
    "float16"   rounded to the nearest float16: relative error 2^-11 within its range
    "int8"      one scale a vector: d = max|x| / 127, q = round(x * (1 / d)), halves away from zero; d * q. Error d / 2.

    A vector of zeros stays zero. ValueError for another dtype.
    """
    if dtype == "float32":
        return x
    if dtype not in KV_DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(KV_DTYPES)}, got {dtype!r}")
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    codes, d = kv_codes(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return codes.astype(np.float32) * d[..., None]
