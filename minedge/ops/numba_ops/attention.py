"""Causal attention, one key/value head at a time. Equations and shapes stand in `numpy_ops/attention.py`.

Keys are copied once per head to (D, S): the scores of one query against all keys then come from a loop over keys,
which vectorises without changing the order of any sum. No (T, S) matrix exists; a query's row of scores lives in a
buffer of S numbers.
"""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.exp_kernels import attention_backward_, attention_forward_
from minedge.ops.numba_ops.runtime import as_float32, same_shape

__all__ = ["attention_backward", "attention_forward"]

Array = np.ndarray


def _checked(q: Array, k: Array, v: Array) -> tuple[int, ...]:
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"q, k: expected (B, T, H, D) and (B, S, KV, D), got {q.shape} and {k.shape}")
    B, T, H, D = q.shape
    S, KV = k.shape[1], k.shape[2]
    if KV == 0 or H % KV or S < T:
        raise ValueError(f"k: expected KV dividing {H} heads and S >= {T} queries, got shape {k.shape}")
    same_shape("k", k, (B, S, KV, D))
    same_shape("v", v, k.shape)
    return B, T, H, D, S, KV


def _by_head(name: str, a: Array, *, transpose: bool) -> Array:
    """(B, S, KV, D), any strides -> (B * KV, D, S) or (B * KV, S, D), contiguous."""
    if a.dtype != np.float32:
        as_float32(name, a)  # raises with its usual message
    B, S, KV, D = a.shape
    if transpose:
        return np.ascontiguousarray(a.transpose(0, 2, 3, 1)).reshape(B * KV, D, S)
    return np.ascontiguousarray(a.transpose(0, 2, 1, 3)).reshape(B * KV, S, D)


def attention_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
    B, T, H, D, S, KV = _checked(q, k, v)
    out, lse = np.empty((B, T, H, D), np.float32), np.empty((B, H, T), np.float32)
    args = (as_float32("q", q), _by_head("k", k, transpose=True), _by_head("v", v, transpose=False))
    attention_forward_.rows(B * KV, 2 * B * H * T * S * D, *args, KV, H // KV, out, lse)
    return out, (q, k, v, out, lse)


def attention_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    q, k, v, out, lse = cache
    B, T, H, D, S, KV = _checked(q, k, v)
    for name, array in (("dout", dout), ("out", out)):
        same_shape(name, array, q.shape)
    same_shape("lse", lse, (B, H, T))
    dq = np.empty((B, T, H, D), np.float32)
    dk, dv = np.zeros((2, B * KV, S, D), np.float32)
    keys = (_by_head("k", k, transpose=False), _by_head("k", k, transpose=True), _by_head("v", v, transpose=True))
    args = (as_float32("dout", dout), as_float32("q", q), *keys, as_float32("out", out), as_float32("lse", lse))
    attention_backward_.rows(B * KV, 5 * B * H * T * S * D, *args, KV, H // KV, dq, dk, dv)
    dk, dv = (np.ascontiguousarray(g.reshape(B, KV, S, D).transpose(0, 2, 1, 3)) for g in (dk, dv))
    return dq, dk, dv
