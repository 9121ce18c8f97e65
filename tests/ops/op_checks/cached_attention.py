"""Attention over a cache against loops in float64."""

from __future__ import annotations

import numpy as np

from op_checks.bounds import EXP, U, within
from op_checks.layers import numbers, wide

__all__ = ["check_cached_attention", "check_cached_attention_int8"]

SPAN = 256  # keys whose softmax may stand alone before it joins the others


def check_cached_attention(ops, seed, B, T, S, KV, G, D, scale=1.0):
    r"""A score errs by es = (D + 3) u sum|q k| / sqrt(D), so p by 2 max(es) + u |s - top| + EXP u relative, and the
    sum over S keys by (S + 2) u more; each span that joins costs two more factors exp, (2 EXP + 6) u. What lies
    behind the S places of k and v is not read: it is NaN here.
    """
    H = KV * G
    q, long_k, long_v = numbers(seed, (B, T, H, D), (B, S + 3, KV, D), (B, S + 3, KV, D))
    q, long_k, long_v = q * np.float32(scale), long_k.copy(), long_v.copy()
    long_k[:, S:] = long_v[:, S:] = np.nan
    Q, K, V = wide(q, long_k[:, :S], long_v[:, :S])
    want, bound = np.zeros(q.shape), np.zeros(q.shape)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                n = t + 1 + S - T
                keys, values, x = K[b, :n, h // G], V[b, :n, h // G], Q[b, t, h]
                s = keys @ x / np.sqrt(D)
                p = np.exp(s - np.logaddexp.reduce(s))
                es = (D + 3) * U * (np.abs(keys) @ np.abs(x)) / np.sqrt(D)
                joins = (2 * EXP + 6) * (1 + S // SPAN)
                rho = 2 * es.max() + U * (s.max() - s) + (2 * S + 5 + EXP + joins) * U
                want[b, t, h] = p @ values
                bound[b, t, h] = (p * rho) @ np.abs(values)
    within("cached_attention", ops.cached_attention(q, long_k[:, :S], long_v[:, :S]), want, bound)


def check_cached_attention_int8(ops, seed, B, T, S, KV, G, D, scale=1.0):
    r"""Against loops over the codes' values k = d_k c_k and v = d_v c_v in float64, so that only what the op adds errs.

    A query's code is off by half a step d_q = max|q| / (sqrt(D) levels), plus what rounding x / d moves it by, under
    0.01 steps: a score by es = 0.51 d_q sum|k| beside the (D + 6) u of its roundings. A value's weight w = p d_v,
    with p against its span's largest score, is off by 0.51 max(w) / 32767, which meets codes up to 127:
    `0.51 d_w sum|c_v|` a span, times e^(its top - the top) / the total. p errs as in the float op. Where d_w has no
    inverse in float32, below 2^-128, every code may be wrong: 32767 * 2^-128 for each.
    """
    H, rng = KV * G, np.random.default_rng(seed)
    q = (numbers(seed, (B, T, H, D))[0] * np.float32(scale)).astype(np.float32)
    k, v = (rng.integers(-127, 128, (B, S + 3, KV, D)).astype(np.int8) for _ in range(2))
    d_k, d_v = (np.exp(rng.normal(-5, 1, (B, S + 3, KV))).astype(np.float32) for _ in range(2))
    d_k[:, S:] = d_v[:, S:] = np.nan  # behind the S places of the views: not read
    d_v[:, 0] = 0  # a vector of zeros
    K, V = (wide(c[:, :S])[0] * wide(d[:, :S])[0][..., None] for c, d in ((k, d_k), (v, d_v)))
    levels = min(32767, (2**31 - 1) // (127 * D))
    want, bound = np.zeros(q.shape), np.zeros(q.shape)
    for b, h, t in np.ndindex(B, H, T):
        n, g = t + 1 + S - T, h // G
        x, keys, values = wide(q[b, t, h])[0] / np.sqrt(D), K[b, :n, g], V[b, :n, g]
        s = keys @ x
        p = np.exp(s - np.logaddexp.reduce(s))
        es = 0.51 * np.abs(x).max() / levels * np.abs(keys).sum(-1) + (D + 6) * U * (np.abs(keys) @ np.abs(x))
        joins = (2 * EXP + 6) * (1 + S // SPAN)
        rho = 2 * es.max() + U * (s.max() - s) + (2 * S + 9 + EXP + joins) * U
        want[b, t, h] = p @ values
        bound[b, t, h] = (p * np.expm1(rho)) @ np.abs(values)
        for j in range(0, n, SPAN):
            span = slice(j, min(n, j + SPAN))
            step = 0.51 / 32767 * (p[span] * wide(d_v[b, span, g])[0]).max() * np.exp(2 * es.max())
            bound[b, t, h] += (step + 2.0**-113) * np.abs(wide(v[b, span, g])[0]).sum(0)
    got = ops.cached_attention_int8(q, k[:, :S], d_k[:, :S], v[:, :S], d_v[:, :S])
    within("cached_attention_int8", got, want, bound)
