r"""Products with a pruned weight that stays packed: its mask and the weights that are left. The specification.

    bits    uint8 (out * in / 8,), the mask as masks.py has it; in a multiple of 8, so every row begins with a byte
    values  float32 or float16 (kept,), the weights that are left, row after row
    starts  int64 (out + 1,): the values of row o are values[starts[o] : starts[o + 1]]

A pruned weight counts as 0 and is multiplied as that, so results are those of the dense weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.ops.numpy_ops.masks import sparse_unpack

__all__ = ["sparse_linear_backward", "sparse_linear_forward"]

Array = NDArray[Any]
TILE = 1 << 20  # weights that are dense at a time


def sparse_linear_forward(
    x: Array, bits: NDArray[np.uint8], values: Array, starts: NDArray[np.int64]
) -> tuple[Array, tuple]:
    """`out = x @ dense(weight).T`, some rows of the weight dense at a time. x (..., in) -> (..., out). ValueError where
    bits, values and starts do not belong together.
    """
    out = np.empty((*x.shape[:-1], len(starts) - 1), x.dtype)
    for rows, weight in _tiles(bits, values, starts, x.dtype):
        out[..., rows] = x @ weight.T
    return out, (bits, values, starts)


def sparse_linear_backward(dout: Array, cache: tuple) -> Array:
    """`dx = dout @ dense(weight)`, summed over forward's tiles in order; the weight is frozen."""
    bits, values, starts = cache
    dx = np.zeros((*dout.shape[:-1], 8 * bits.size // max(1, len(starts) - 1)), dout.dtype)
    for rows, weight in _tiles(bits, values, starts, dout.dtype):
        dx += dout[..., rows] @ weight
    return dx


def _tiles(bits: Array, values: Array, starts: Array, dtype: Any) -> Iterator[tuple[slice, Array]]:
    """Slices of rows with about `TILE` weights each, and those rows dense."""
    out = len(starts) - 1
    if out < 1 or bits.size % out or starts[-1] != values.size:
        raise ValueError(
            f"bits, values, starts: {bits.size} bytes, {values.size} values, {len(starts)} starts do not fit"
        )
    width = bits.size // out
    step: Any = max(1, TILE // max(1, 8 * width))
    for start in range(0, out, step):
        rows = slice(start, min(start + step, out))
        kept = values[starts[rows.start] : starts[rows.stop]]
        shape = (rows.stop - rows.start, 8 * width)
        yield rows, sparse_unpack(kept, bits[rows.start * width : rows.stop * width], shape).astype(dtype, copy=False)
