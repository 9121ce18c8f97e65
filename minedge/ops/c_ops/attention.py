"""Attention in C; numpy_ops/attention.py says what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from minedge.ops.c_ops.checks import dense, f32, need
from minedge.ops.c_ops.native import floats, lib

__all__ = ["OPS"]

Array = np.ndarray
F32 = np.dtype(np.float32)


def _keys(a: Array, name: str) -> tuple[Array, Any, int]:
    """(the array, pointer, floats from one batch entry to the next). Views [:, :S] of a cache are read in place."""
    if not isinstance(a, np.ndarray) or a.dtype != F32 or a.ndim != 4:
        f32(a, name)
        raise ValueError(f"{name}: expected (B, S, KV, D), got {a.shape}")
    _, S, KV, D = a.shape
    batch, *inner = a.strides
    if inner != [KV * D * 4, D * 4, 4] or batch % 4 or batch < S * KV * D * 4 or not a.flags.aligned:
        a = dense(a, F32, name)
        batch = S * KV * D * 4
    return a, floats(a if a.flags.c_contiguous else a[0]), batch // 4


def _sizes(q: Array, k: Array, v: Array) -> tuple[int, int, int, int, int, int]:
    B, T, H, D = q.shape if q.ndim == 4 else (0, 0, 0, 0)
    S, KV = k.shape[1:3]
    if (
        k.shape != v.shape
        or k.shape != (B, S, KV, D)
        or not 1 <= T <= S
        or KV < 1
        or H < 1
        or H % KV
        or D < 1
        or S >= 1 << 31
    ):
        raise ValueError(
            "q, k, v: expected (B, T, H, D) and twice (B, S, KV, D) with 1 <= T <= S and H a multiple of KV, "
            f"got {q.shape}, {k.shape}, {v.shape}"
        )
    return B, T, S, H, KV, D


def attention_forward(isa: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple]:
    q = f32(q, "q")
    k, k_pointer, k_step = _keys(k, "k")
    v, v_pointer, v_step = _keys(v, "v")
    sizes = _sizes(q, k, v)
    B, T, _, H, _, _ = sizes
    out, lse = np.empty(q.shape, F32), np.empty((B, H, T), F32)
    if B and lib.me_attention_forward(
        isa, floats(out), floats(lse), floats(q), k_pointer, v_pointer, k_step, v_step, *sizes
    ):
        raise MemoryError("attention_forward: no memory for its scratch space")
    return out, (q, k, v, out, lse)


def attention_backward(isa: int, dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    q, k, v, out, lse = cache
    dout, q, out, lse = f32(dout, "dout"), f32(q, "q"), f32(out, "out"), f32(lse, "lse")
    k, k_pointer, k_step = _keys(k, "k")
    v, v_pointer, v_step = _keys(v, "v")
    sizes = _sizes(q, k, v)
    B, T, _, H, _, _ = sizes
    need(
        dout.shape == out.shape == q.shape,
        f"dout, out: expected the shape of q, {q.shape}, got {dout.shape}, {out.shape}",
    )
    need(lse.shape == (B, H, T), f"lse: expected {(B, H, T)}, got {lse.shape}")
    dq, dk, dv = np.empty(q.shape, F32), np.empty(k.shape, F32), np.empty(k.shape, F32)
    if B and lib.me_attention_backward(
        isa, floats(dq), floats(dk), floats(dv), floats(dout), floats(q), k_pointer, v_pointer, floats(out),
        floats(lse), k_step, v_step, *sizes,
    ):  # fmt: skip
        raise MemoryError("attention_backward: no memory for its scratch space")
    return dq, dk, dv


OPS = {f.__name__: f for f in (attention_forward, attention_backward)}
