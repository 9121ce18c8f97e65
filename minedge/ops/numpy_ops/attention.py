r"""Causal attention with grouped key/value heads: the specification.

Legend: B batch, T query positions, S key positions (S >= T), H query heads, KV key/value heads, G = H / KV heads a
group, D head_dim. The cache holds the row-wise log-sum-exp instead of the (T, S) probabilities, as FlashAttention
does (arXiv:2205.14135), so every tier can run the backward of any other and a fast tier never has to keep a (T, S)
matrix. NumPy makes one for the moment of use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["attention_backward", "attention_forward"]

Array = NDArray[np.floating]


def attention_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
    r"""`out = softmax(q k^T / sqrt(D) + causal mask) v` per head (arXiv:1706.03762, Eq. 1; grouped heads
    arXiv:2305.13245).

    q (B, T, H, D), k and v (B, S, KV, D) -> out (B, T, H, D). Query i stands at position i + (S - T) and sees keys 0
    .. i + (S - T). Query head h reads key/value head h // (H / KV). The cache keeps lse (B, H, T), the log of each
    row's softmax denominator.
    """
    scores = _scores(q, k)  # (B, KV, G, T, S)
    # BEGIN SOLUTION a1.7
    top = scores.max(axis=-1, keepdims=True)  # subtracting the row maximum keeps exp in range
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = np.einsum("bkgts,bskd->btkgd", weights / total, v, optimize=True)
    lse = (top + np.log(total))[..., 0]  # (B, KV, G, T)
    out = np.ascontiguousarray(out.reshape(q.shape))
    return out, (q, k, v, out, lse.reshape(q.shape[0], q.shape[2], q.shape[1]))
    # END SOLUTION


def attention_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    r"""With p the probabilities: `dv = p^T dout`, `dp = dout v^T`, `ds = p * (dp - sum(p * dp))`, `dq = ds k`, `dk =
    ds^T q`.

    `sum(p * dp)` over keys equals `sum(dout * out)` over D, which needs no (T, S) matrix. -> dq, dk, dv; the heads of
    a group add up.
    """
    q, k, v, out, lse = cache
    B, T, H, D = q.shape
    KV = k.shape[2]
    group = (B, T, KV, H // KV, D)
    scores = _scores(q, k)
    p = np.exp(scores - lse.reshape(B, KV, H // KV, T)[..., None])  # the forward's weights / total
    dout5, q5 = dout.reshape(group), q.reshape(group)
    # BEGIN SOLUTION a1.8
    delta = (dout * out).sum(axis=-1).reshape(B, T, KV, H // KV).transpose(0, 2, 3, 1)  # (B, KV, G, T)
    dv = np.einsum("bkgts,btkgd->bskd", p, dout5, optimize=True)
    dp = np.einsum("btkgd,bskd->bkgts", dout5, v, optimize=True)
    ds = p * (dp - delta[..., None]) / np.sqrt(D).astype(q.dtype)
    dq = np.einsum("bkgts,bskd->btkgd", ds, k, optimize=True).reshape(q.shape)
    dk = np.einsum("bkgts,btkgd->bskd", ds, q5, optimize=True)
    return np.ascontiguousarray(dq), np.ascontiguousarray(dk), np.ascontiguousarray(dv)
    # END SOLUTION


def _scores(q: Array, k: Array) -> Array:
    """q k^T / sqrt(D) with -inf where a key lies in the query's future. -> (B, KV, G, T, S)."""
    B, T, H, D = q.shape
    S, KV = k.shape[1], k.shape[2]
    # BEGIN SOLUTION a1.7
    scores = np.einsum("btkgd,bskd->bkgts", q.reshape(B, T, KV, H // KV, D), k, optimize=True)
    scores /= np.sqrt(D).astype(q.dtype)
    future = np.arange(S)[None, :] > np.arange(T)[:, None] + (S - T)
    scores[..., future] = -np.inf
    return scores
    # END SOLUTION
