r"""Eight-bit weights: quantize, dequantize, and multiply with eight-bit activations. The specification.

Layout: a weight (out, in) is cut along `in` into groups of 32. A group has one float16 scale d and codes q in
-127..127; a weight reads as d * q. This is GGML's Q8_0, codes and scales kept in two arrays instead of interleaved:

    qweight int8 (out, in)        scales float16 (out, in / 32)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minedge.ops.numpy_ops.int4 import int8_quantize

__all__ = ["GROUP", "q8_dequantize", "q8_int8_linear", "q8_quantize"]

F32 = np.float32
GROUP = 32  # weights along a row that share a scale
TILE = 1 << 20  # weights looked at at a time


def q8_quantize(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    r"""d = max |x| / 127 over the group;  q = round(x * (1 / d)), halves away from zero.

    In float32, 1/d taken before d is rounded to float16. An all-zero group gets d = 0 and codes 0. Error: at most d/2,
    plus |q| times d's own rounding. A group of denormals, where 1/d is infinite, saturates and reads as zeros. weight
    (out, in), in a multiple of 32 -> qweight (out, in), scales (out, in/32). ValueError for another width.
    """
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ValueError(f"weight: expected (out, in) with in a multiple of {GROUP}, got {weight.shape}")
    out_features, in_features = weight.shape
    qweight = np.empty((out_features, in_features), np.int8)
    scales = np.empty((out_features, in_features // GROUP), np.float16)
    step = max(1, TILE // max(1, in_features))
    for row in range(0, out_features, step):
        rows = slice(row, row + step)
        x = np.ascontiguousarray(weight[rows], F32).reshape(-1, scales.shape[1], GROUP)
        d = np.abs(x).max(axis=-1) / F32(127)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            inverse = np.where(d != 0, F32(1) / d, F32(0))
            scaled = x * inverse[..., None]
            scales[rows] = d.astype(np.float16)
        scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=127.0, neginf=-127.0), -127, 127)
        # trunc(|x| + 0.5) would round the float below a half up: the sum itself rounds to 1
        whole = np.trunc(scaled)
        whole += np.copysign(np.abs(scaled - whole) >= 0.5, scaled)
        qweight[rows] = whole.reshape(len(x), -1)
    return qweight, scales


def q8_dequantize(qweight: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """`weight = scale * code` in float32. -> (out, in). ValueError where the shapes do not belong together."""
    if qweight.ndim != 2 or (len(scales), GROUP * scales.shape[-1]) != qweight.shape:
        raise ValueError(f"scales: expected one a group of {GROUP} codes of {qweight.shape}, got {scales.shape}")
    weight = qweight.astype(F32)
    groups = weight.reshape(*scales.shape, GROUP)
    groups *= scales.astype(F32)[..., None]
    return weight


def q8_int8_linear(
    x: NDArray[np.floating], qweight: NDArray[np.int8], scales: NDArray[np.float16]
) -> NDArray[np.float32]:
    """`out[n, o] = sum over groups g of xscale[n, g] * scale[o, g] * sum over g of xq * code`: what decoding uses.

    x (..., in) float, rounded to int8 by `int8_quantize` -> (..., out). A group's integer sum is at most 32 * 127 * 128
    in magnitude: int32 is exact. The distance from the exact product is bounded by the activations' rounding, half an
    xscale each.
    """
    if qweight.ndim != 2 or (len(scales), GROUP * scales.shape[-1]) != qweight.shape:
        raise ValueError(f"scales: expected one a group of {GROUP} codes of {qweight.shape}, got {scales.shape}")
    xq, xscales = int8_quantize(x.reshape(-1, x.shape[-1]))
    xb = xq.astype(np.int32).reshape(len(xq), -1, GROUP)
    wb = qweight.astype(np.int32).reshape(*scales.shape, GROUP)
    partial = np.einsum("ngi,ogi->nog", xb, wb).astype(F32)
    out = np.ascontiguousarray(np.einsum("nog,og,ng->no", partial, scales.astype(F32), xscales, optimize=True))
    return out.reshape(*x.shape[:-1], len(qweight))
