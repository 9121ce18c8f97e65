"""Cross-entropy fused with softmax, a row at a time. Equations and shapes stand in `numpy_ops/loss.py`."""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.exp_kernels import cross_entropy_backward_, cross_entropy_forward_
from minedge.ops.numba_ops.runtime import as_float32, as_int64, same_shape

__all__ = ["cross_entropy_backward", "cross_entropy_forward"]

Array = np.ndarray


def _checked(logits: Array, targets: Array, weights: Array) -> tuple[Array, Array, Array]:
    logits = as_float32("logits", logits)
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"logits: expected (N, V), got shape {logits.shape}")
    rows = (len(logits),)
    same_shape("targets", np.asarray(targets), rows)
    same_shape("weights", np.asarray(weights), rows)
    return logits, as_int64("targets", targets, logits.shape[1]), np.asarray(weights)


def cross_entropy_forward(logits: Array, targets: Array, weights: Array) -> tuple[float, tuple]:
    checked, ids, weights = _checked(logits, targets, weights)
    lse, picked = np.empty(len(ids), np.float32), np.empty(len(ids), np.float32)
    cross_entropy_forward_.rows(len(ids), 8 * checked.size, checked, ids, lse, picked)
    loss = float(np.sum(weights.astype(np.float64) * (lse - picked)))
    return loss, (logits, targets, weights, lse)


def cross_entropy_backward(dloss: float, cache: tuple) -> Array:
    logits, targets, weights, lse = cache
    checked, ids, weights = _checked(logits, targets, weights)
    factor = (dloss * weights).astype(np.float32)
    dlogits = np.empty_like(checked)
    args = (checked, ids, as_float32("lse", lse, (len(ids),)), factor, dlogits)
    cross_entropy_backward_.rows(len(ids), 8 * checked.size, *args)
    return dlogits
