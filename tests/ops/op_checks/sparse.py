"""Packed pruned weights: products against float64 ones of the weight as its mask and values say, bit by bit."""

from __future__ import annotations

import numpy as np

from op_checks.bounds import gamma, within
from op_checks.layers import numbers, wide

__all__ = ["check_sparse_linear"]


def packed(weight, keep, dtype):
    """bits, values and starts, written out one weight at a time."""
    bits, values, starts = np.zeros(weight.size // 8, np.uint8), [], [0]
    for o, row in enumerate(weight):
        for i, w in enumerate(row):
            if keep[o, i]:
                place = o * weight.shape[1] + i
                bits[place // 8] |= 1 << place % 8
                values.append(w)
        starts.append(len(values))
    return bits, np.array(values, dtype), np.array(starts, np.int64)


def check_sparse_linear(ops, seed, N, blocks, M, density):
    """Weights are read exactly and a product with 0 adds nothing, so only kept weights round: n u sum |a_i b_i|."""
    C = 8 * blocks
    x, weight, dout = numbers(seed, (N, C), (M, C), (N, M))
    keep = np.random.default_rng(seed).random((M, C)) < density
    X, D = wide(x, dout)
    for dtype in (np.float32, np.float16):
        stored = weight.astype(dtype)
        W = np.where(keep, stored.astype(np.float64), 0)
        out, cache = ops.sparse_linear_forward(x, *packed(stored, keep, dtype))
        within("sparse_linear_forward", out, np.einsum("nc,mc->nm", X, W), gamma(C) * (np.abs(X) @ np.abs(W).T))
        dx = ops.sparse_linear_backward(dout, cache)
        within("sparse_linear_backward", dx, np.einsum("nm,mc->nc", D, W), gamma(M) * (np.abs(D) @ np.abs(W)))
