"""Attention over a cache in the Numba tier: its own attention, one query at a time where there is a past."""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.attention import attention_forward

__all__ = ["cached_attention"]

Array = np.ndarray


def cached_attention(q: Array, k: Array, v: Array) -> Array:
    T, past = q.shape[1], k.shape[1] - q.shape[1]
    if past <= 0 or T == 1:  # a negative past is attention_forward's to refuse
        return attention_forward(q, k, v)[0]
    ys = [attention_forward(q[:, t : t + 1], k[:, : past + t + 1], v[:, : past + t + 1])[0] for t in range(T)]
    return np.concatenate(ys, axis=1)
