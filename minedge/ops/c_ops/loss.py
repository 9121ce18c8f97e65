"""Cross-entropy in C; numpy_ops/loss.py says what it computes."""

from __future__ import annotations

import numpy as np

from minedge.ops.c_ops.checks import f32, ids64, need
from minedge.ops.c_ops.native import doubles, find_bad_id, floats, lib, longs

__all__ = ["OPS"]

Array = np.ndarray
F32 = np.float32


def cross_entropy_forward(isa: int, logits: Array, targets: Array, weights: Array) -> tuple[float, tuple]:
    logits, weights = f32(logits, "logits"), f32(weights, "weights")
    need(logits.ndim == 2 and logits.shape[1] > 0, f"logits: expected (N, V), got {logits.shape}")
    N, V = logits.shape
    targets = ids64(targets, V, "targets", find_bad_id)
    need(
        targets.shape == (N,) == weights.shape,
        f"targets, weights: expected ({N},), got {targets.shape}, {weights.shape}",
    )
    lse, terms = np.empty(N, F32), np.empty(N, np.float64)
    loss = lib.me_cross_entropy_forward(
        isa, floats(lse), doubles(terms), floats(logits), longs(targets), floats(weights), N, V
    )
    return loss, (logits, targets, weights, lse)


def cross_entropy_backward(isa: int, dloss: float, cache: tuple) -> Array:
    logits, targets, weights, lse = cache
    logits, weights, lse = f32(logits, "logits"), f32(weights, "weights"), f32(lse, "lse")
    need(logits.ndim == 2 and logits.shape[1] > 0, f"logits: expected (N, V), got {logits.shape}")
    N, V = logits.shape
    targets = ids64(targets, V, "targets", find_bad_id)
    need(
        targets.shape == (N,) == weights.shape == lse.shape,
        f"targets, weights, lse: expected ({N},), got {targets.shape}, {weights.shape}, {lse.shape}",
    )
    dlogits = np.empty(logits.shape, F32)
    lib.me_cross_entropy_backward(
        isa, floats(dlogits), floats(logits), longs(targets), floats(weights), floats(lse), float(dloss), N, V
    )
    return dlogits


OPS = {f.__name__: f for f in (cross_entropy_forward, cross_entropy_backward)}
