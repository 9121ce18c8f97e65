"""Attention over a cache against loops in float64."""

from __future__ import annotations

import numpy as np

from op_checks.bounds import EXP, U, within
from op_checks.layers import numbers, wide

__all__ = ["check_cached_attention"]

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
