r"""Pruning masks as bits, and the packed form that makes a pruned file smaller: the specification.

A mask of n weights is `np.packbits(mask.ravel(), bitorder="little")`, ceil(n / 8) bytes; a set bit means the weight
is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["mask_apply", "mask_apply_", "sparse_pack", "sparse_unpack"]

Array = NDArray[np.floating]
Bits = NDArray[np.uint8]


def mask_apply(weight: Array, bits: Bits) -> Array:
    """A new array: the weight where its bit is set, +0.0 elsewhere, whatever stood there (NaN and infinity too)."""
    # BEGIN SOLUTION a5.2
    return np.where(_unpack(bits, weight.shape), weight, weight.dtype.type(0))
    # END SOLUTION


def mask_apply_(weight: Array, bits: Bits) -> None:
    """The same, in place."""
    # BEGIN SOLUTION a5.2
    weight[~_unpack(bits, weight.shape)] = 0
    # END SOLUTION


def sparse_pack(weight: Array, bits: Bits) -> Array:
    """The kept weights alone, in row order: (number of set bits,)."""
    # BEGIN SOLUTION a5.6
    return weight[_unpack(bits, weight.shape)]
    # END SOLUTION


def sparse_unpack(values: Array, bits: Bits, shape: tuple[int, ...]) -> Array:
    """Inverse of `sparse_pack`: kept weights in their places, zero elsewhere."""
    mask = _unpack(bits, shape)
    kept = int(mask.sum())
    if values.shape != (kept,):
        raise ValueError(f"values: expected {kept} kept weights as the mask says, got shape {values.shape}")
    # BEGIN SOLUTION a5.6
    out = np.zeros(shape, dtype=values.dtype)
    out[mask] = values
    return out
    # END SOLUTION


def _unpack(bits: Bits, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    n = int(np.prod(shape))
    if bits.shape != ((n + 7) // 8,):
        raise ValueError(f"bits: expected {(n + 7) // 8} bytes for {n} weights, got shape {bits.shape}")
    # BEGIN SOLUTION a5.1
    return np.unpackbits(bits, count=n, bitorder="little").reshape(shape).astype(bool)
    # END SOLUTION
