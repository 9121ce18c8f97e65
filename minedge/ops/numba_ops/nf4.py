"""NF4 as loops. The format and its rules stand in `numpy_ops/nf4.py`; all bits are equal."""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.runtime import as_float32, kernel
from minedge.ops.numpy_ops.nf4 import CODEBOOK, MIDPOINTS, SMALLEST, TILE

__all__ = ["nf4_dequantize", "nf4_linear_backward", "nf4_linear_forward", "nf4_quantize"]

Array = np.ndarray
ZERO, ONE = np.float32(0), np.float32(1)


@kernel("i i f2 f1 i b2! f2!")
def _quantize(start, stop, weight, midpoints, block_size, qweight, absmax):
    for o in range(start, stop):
        for g in range(absmax.shape[1]):
            first, top = g * block_size, ZERO
            for i in range(first, first + block_size):
                a = abs(weight[o, i])
                if a != a:
                    top = a
                    break
                top = max(top, a)
            absmax[o, g] = top
            inverse = ONE / (SMALLEST if top < SMALLEST else top)
            for i in range(first, first + block_size, 2):
                high, low = 15, 15
                x, y = weight[o, i] * inverse, weight[o, i + 1] * inverse
                for k in range(15):
                    high -= x <= midpoints[k]
                    low -= y <= midpoints[k]
                qweight[o, i // 2] = np.uint8(high * 16 + low)


@kernel("i i b2 f2 f1 i f2!")
def _dequantize(start, stop, qweight, absmax, codebook, block_size, weight):
    for o in range(start, stop):
        for j in range(qweight.shape[1]):
            byte, scale = np.int64(qweight[o, j]), absmax[o, 2 * j // block_size]
            weight[o, 2 * j] = codebook[byte >> 4] * scale
            weight[o, 2 * j + 1] = codebook[byte & 15] * scale


def _checked(qweight: Array, absmax: Array, block_size: int) -> tuple[Array, Array, int]:
    """Contiguous codes and scales, in_features."""
    if not isinstance(qweight, np.ndarray) or qweight.dtype != np.uint8 or qweight.ndim != 2:
        raise TypeError("qweight: expected a uint8 array (out, in / 2)")
    _check_block(block_size)
    out_features, in_features = qweight.shape[0], 2 * qweight.shape[1]
    absmax = as_float32("absmax", absmax)
    if in_features % block_size or absmax.shape != (out_features, in_features // block_size):
        raise ValueError(f"absmax: expected shape ({out_features}, {in_features} / {block_size}), got {absmax.shape}")
    return np.ascontiguousarray(qweight), np.ascontiguousarray(absmax), in_features


def _check_block(block_size: int) -> None:
    if block_size < 1 or block_size % 16:
        raise ValueError(f"block_size: expected a multiple of 16, got {block_size}")


def nf4_quantize(weight: Array, block_size: int) -> tuple[Array, Array]:
    weight = np.ascontiguousarray(as_float32("weight", weight))
    _check_block(block_size)
    if weight.ndim != 2 or weight.shape[1] % block_size:
        raise ValueError(f"weight: expected (out, in) with in a multiple of {block_size}, got {weight.shape}")
    out_features, in_features = weight.shape
    qweight = np.empty((out_features, in_features // 2), np.uint8)
    absmax = np.empty((out_features, in_features // block_size), np.float32)
    _quantize.rows(out_features, 16 * weight.size, weight, MIDPOINTS, block_size, qweight, absmax)
    return qweight, absmax


def nf4_dequantize(qweight: Array, absmax: Array, block_size: int) -> Array:
    qweight, absmax, in_features = _checked(qweight, absmax, block_size)
    weight = np.empty((len(qweight), in_features), np.float32)
    _dequantize.rows(len(weight), weight.size, qweight, absmax, CODEBOOK, block_size, weight)
    return weight


def nf4_linear_forward(x: Array, qweight: Array, absmax: Array, block_size: int) -> tuple[Array, tuple]:
    """NumPy's matrix product with some rows of the weight dequantized at a time."""
    x, out_features = as_float32("x", x), len(qweight)
    out, step = np.empty((*x.shape[:-1], out_features), np.float32), _rows(qweight)
    for row in range(0, out_features, step):
        rows = slice(row, row + step)
        out[..., rows] = x @ nf4_dequantize(qweight[rows], absmax[rows], block_size).T
    return out, (qweight, absmax, block_size)


def nf4_linear_backward(dout: Array, cache: tuple) -> Array:
    dout, (qweight, absmax, block_size) = as_float32("dout", dout), cache
    dx, step = np.zeros((*dout.shape[:-1], 2 * qweight.shape[1]), np.float32), _rows(qweight)
    for row in range(0, len(qweight), step):
        rows = slice(row, row + step)
        dx += dout[..., rows] @ nf4_dequantize(qweight[rows], absmax[rows], block_size)
    return dx


def _rows(qweight: Array) -> int:
    return max(1, TILE // max(1, 2 * qweight.shape[1]))
