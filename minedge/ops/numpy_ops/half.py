r"""Sixteen-bit floats: frozen weights stored in float16 or bfloat16, arithmetic in float32. The specification.

float16 has 11 bits of precision and reaches 65,504; bfloat16 is the upper half of a float32: 8 bits, float32's range.
NumPy has no bfloat16, so such an array is uint16 and holds the bits:

    weight float16 (out, in)    or    weight uint16 (out, in), bfloat16's bits
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["half_linear_backward", "half_linear_forward", "half_round", "half_widen"]

Array = NDArray[Any]
F32 = np.float32
TILE = 1 << 20  # weights that are float32 at a time


def half_round(weight: Array, dtype: str = "float16") -> Array:
    """`weight` rounded to nearest, ties to even: float16, or uint16 with bfloat16's bits.

    Beyond the range: infinity. NaN stays NaN. weight float32 of any shape -> the same shape. ValueError for another
    `dtype`.
    """
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return weight.astype(np.float16)
    if dtype != "bfloat16":
        raise ValueError(f"dtype: expected 'float16' or 'bfloat16', got {dtype!r}")
    bits = np.ascontiguousarray(weight, F32).view(np.uint32)
    # Half a unit less one, plus the last bit that stays: a tie goes to the even one. A carry may go on to infinity.
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    quiet = bits >> np.uint32(16) | np.uint32(0x40)  # a NaN must not round to infinity
    return np.where(np.isnan(weight), quiet, rounded).astype(np.uint16).reshape(weight.shape)


def half_widen(half: Array) -> NDArray[np.float32]:
    """The same numbers in float32, exact. float16, or uint16 with bfloat16's bits; TypeError for anything else."""
    if half.dtype == np.float16:
        return half.astype(F32)
    if half.dtype != np.uint16:
        raise TypeError(f"half: expected float16, or uint16 with bfloat16's bits, got {half.dtype}")
    return (half.astype(np.uint32) << np.uint32(16)).view(F32)


def half_linear_forward(x: Array, weight: Array) -> tuple[Array, tuple]:
    """`out = x @ widen(weight).T`, some rows of the weight float32 at a time. x (..., in), weight (out, in) of 16-bit
    floats -> (..., out).
    """
    out = np.empty((*x.shape[:-1], len(weight)), x.dtype)
    for rows in _tiles(weight):
        out[..., rows] = x @ half_widen(weight[rows]).astype(x.dtype, copy=False).T
    return out, (weight,)


def half_linear_backward(dout: Array, cache: tuple) -> Array:
    """`dx = dout @ widen(weight)`, summed over forward's tiles in order; the weight is frozen."""
    (weight,) = cache
    dx = np.zeros((*dout.shape[:-1], weight.shape[1]), dout.dtype)
    for rows in _tiles(weight):
        dx += dout[..., rows] @ half_widen(weight[rows]).astype(dout.dtype, copy=False)
    return dx


def _tiles(weight: Array) -> list[slice]:
    """Slices of rows with about `TILE` weights each."""
    step = max(1, TILE // max(1, weight.shape[1]))
    return [slice(start, min(start + step, len(weight))) for start in range(0, len(weight), step)]
