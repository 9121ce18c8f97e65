r"""Four-bit weights: quantize, dequantize, and two ways to multiply. The specification.

Layout: a weight (out, in) is cut along `in` into groups of `group_size` (32, 64 or 128). A group has one float16
scale d and codes q in 0..15; a weight reads as d * (q - 8). Codes are packed per 32 columns: byte j holds code j in
its low nibble and code j + 16 in its high nibble. With group_size 32 this is GGML's Q4_0, codes and scales kept in
two arrays instead of interleaved:

    qweight uint8 (out, in / 2)        scales float16 (out, in / group_size)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "int4_dequantize",
    "int4_int8_linear",
    "int4_int8_partials",
    "int4_linear_backward",
    "int4_linear_forward",
    "int4_quantize",
    "int8_quantize",
]

Array = NDArray[np.floating]
BLOCK = 32  # columns packed together; also the activations' group in the integer product


def int4_quantize(weight: Array, group_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    r"""Symmetric rounding with the signed-maximum rule (GGML's Q4_0).

    d = m / -8, m the value of largest magnitude in the group with its sign;  q = min(15, trunc(x * (1 / d) + 8.5)),
    0 <= q <= 15

    In float32, product and sum each rounded, 1/d taken before d is rounded to float16. So m itself becomes code 0,
    i.e. exactly -8 d; the other side reaches only +7 d, and what lies beyond clips. An all-zero group gets d = 0 and
    codes 8: it reads as zeros. Error: at most |d|/2 where x/d <= 7.5, else at most |d|; plus |q - 8| times d's own
    rounding. weight (out, in), in a multiple of group_size -> qweight (out, in/2), scales (out, in/group_size).
    """
    out_features, in_features = weight.shape
    # BEGIN SOLUTION a6.1
    x = np.ascontiguousarray(weight, dtype=np.float32).reshape(out_features, -1, group_size)
    where = np.abs(x).argmax(axis=-1)[..., None]  # the first of equals
    d = np.take_along_axis(x, where, axis=-1) / np.float32(-8)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        codes = x * inverse + np.float32(8.5)  # a group of denormals has inverse = inf: codes saturate, as in GGML
        scales = d[..., 0].astype(np.float16)
    codes = np.nan_to_num(codes, nan=8.0, posinf=15.0, neginf=0.0)
    q = np.clip(np.trunc(codes), 0, 15).astype(np.uint8).reshape(out_features, -1, BLOCK)
    packed = q[..., :16] | (q[..., 16:] << 4)
    return packed.reshape(out_features, in_features // 2), scales
    # END SOLUTION


def int4_dequantize(qweight: NDArray[np.uint8], scales: NDArray[np.float16], group_size: int) -> NDArray[np.float32]:
    """`weight = scale * (code - 8)` in float32. -> (out, in)."""
    # BEGIN SOLUTION a6.3
    codes = _codes(qweight).astype(np.float32)
    groups = codes.reshape(codes.shape[0], -1, group_size)
    return (groups * scales.astype(np.float32)[..., None]).reshape(codes.shape)
    # END SOLUTION


def int4_linear_forward(
    x: Array, qweight: NDArray[np.uint8], scales: NDArray[np.float16], group_size: int
) -> tuple[Array, tuple]:
    """`out = x @ dequantize(weight).T`, exact in the weights: what training uses. x (..., in) -> (..., out)."""
    # BEGIN SOLUTION a6.3
    weight = int4_dequantize(qweight, scales, group_size).astype(x.dtype)
    return x @ weight.T, (qweight, scales, group_size)
    # END SOLUTION


def int4_linear_backward(dout: Array, cache: tuple) -> Array:
    """`dx = dout @ dequantize(weight)`; codes have no gradient."""
    # BEGIN SOLUTION a6.3
    return dout @ int4_dequantize(*cache).astype(dout.dtype)
    # END SOLUTION


def int8_quantize(x: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    r"""Activations in int8, one float32 scale per 32: d = max|x| / 127, q = round(x * (1 / d)), halves away from zero.

    x (..., in) -> xq int8 (..., in), xscales (..., in / 32). An all-zero group gets d = 0. Error at most d / 2.
    """
    # BEGIN SOLUTION a6.4
    blocks = np.asarray(x, dtype=np.float32).reshape(*x.shape[:-1], -1, BLOCK)
    d = np.abs(blocks).max(axis=-1) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        scaled = blocks * inverse[..., None]
    scaled = np.clip(np.nan_to_num(scaled, nan=0.0, posinf=127.0, neginf=-127.0), -127, 127)
    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return q.reshape(x.shape), d
    # END SOLUTION


def int4_int8_partials(xq: NDArray[np.int8], qweight: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Integer part of the product: `partial[n, o, b] = sum over block b of xq * (code - 8)`. xq (N, in) -> int32 (N,
    out, in/32).

    At most 32 * 127 * 8 in magnitude, so int32 is exact and every tier and CPU gives the same numbers.
    """
    # BEGIN SOLUTION a6.5
    xb = xq.astype(np.int32).reshape(xq.shape[0], -1, BLOCK)
    wb = _codes(qweight).astype(np.int32).reshape(qweight.shape[0], -1, BLOCK)
    return np.einsum("nbi,obi->nob", xb, wb)
    # END SOLUTION


def int4_int8_linear(
    x: Array, qweight: NDArray[np.uint8], scales: NDArray[np.float16], group_size: int
) -> NDArray[np.float32]:
    """`out[n, o] = sum over blocks b of xscale[n, b] * scale[o, group of b] * partial[n, o, b]`: what decoding uses.

    x (..., in) float -> (..., out). Its distance from the exact product is bounded by the activations' rounding, d/2
    each.
    """
    # BEGIN SOLUTION a6.5
    xq, xscales = int8_quantize(x.reshape(-1, x.shape[-1]))
    partial = int4_int8_partials(xq, qweight).astype(np.float32)  # (N, out, blocks)
    wscales = np.repeat(scales.astype(np.float32), group_size // BLOCK, axis=1)  # (out, blocks)
    out = np.ascontiguousarray(np.einsum("nob,ob,nb->no", partial, wscales, xscales, optimize=True))
    return out.reshape(*x.shape[:-1], -1)
    # END SOLUTION


def _codes(qweight: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Unpack to code - 8, int8 (out, in)."""
    # BEGIN SOLUTION a6.2
    blocks = qweight.reshape(qweight.shape[0], -1, BLOCK // 2)
    codes = np.concatenate([blocks & 0x0F, blocks >> 4], axis=-1).astype(np.int8) - np.int8(8)
    return codes.reshape(qweight.shape[0], -1)
    # END SOLUTION
