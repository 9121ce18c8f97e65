"""Four-bit weights and eight-bit activations as loops. The format and its rules stand in `numpy_ops/int4.py`; all
bits are equal.

Numba does not know float16, so scales pass through NumPy's conversion (exact towards float32, rounded to nearest
back).
"""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.runtime import as_float32, kernel

__all__ = [
    "int4_dequantize",
    "int4_int8_linear",
    "int4_int8_partials",
    "int4_linear_backward",
    "int4_linear_forward",
    "int4_quantize",
    "int8_quantize",
]

Array = np.ndarray
BLOCK = 32
ZERO, HALF, ONE, EIGHT, EIGHT_AND_HALF, FIFTEEN = (np.float32(v) for v in (0, 0.5, 1, 8, 8.5, 15))
INT8_MAX = np.float32(127)


@kernel("i i f2 i b2! f2!")
def _quantize(start, stop, weight, group_size, qweight, scales):
    code = np.empty(group_size, np.uint8)
    for o in range(start, stop):
        for g in range(scales.shape[1]):
            first = g * group_size
            signed_max = weight[o, first]
            for i in range(first, first + group_size):
                x = weight[o, i]
                if x != x:  # NaN counts as the largest, as in NumPy's argmax
                    signed_max = x
                    break
                if abs(x) > abs(signed_max):  # strictly: the first of equals stays
                    signed_max = x
            d = signed_max / -EIGHT
            inverse = ONE / d if d != ZERO else ZERO
            for i in range(group_size):
                value = weight[o, first + i] * inverse + EIGHT_AND_HALF
                if value != value:
                    code[i] = 8
                else:
                    code[i] = np.uint8(min(max(value, ZERO), FIFTEEN))  # the conversion truncates
            scales[o, g] = d
            for block in range(group_size // BLOCK):
                for j in range(BLOCK // 2):
                    low, high = code[block * BLOCK + j], code[block * BLOCK + j + BLOCK // 2]
                    qweight[o, (first + block * BLOCK) // 2 + j] = low | (high << 4)


@kernel("i i b2 f2 i f2!")
def _dequantize(start, stop, qweight, scales, group_size, weight):
    half = BLOCK // 2
    for o in range(start, stop):
        for block in range(weight.shape[1] // BLOCK):
            d = scales[o, block * BLOCK // group_size]
            for j in range(half):
                byte = np.int32(qweight[o, block * half + j])
                weight[o, block * BLOCK + j] = d * np.float32((byte & np.int32(15)) - np.int32(8))
                weight[o, block * BLOCK + j + half] = d * np.float32((byte >> np.int32(4)) - np.int32(8))


@kernel("i i f2 c2! f2!")
def _to_int8(start, stop, x, xq, xscales):
    for n in range(start, stop):
        for block in range(xscales.shape[1]):
            first = block * BLOCK
            top = ZERO
            for i in range(first, first + BLOCK):
                a = abs(x[n, i])
                if a != a:
                    top = a
                    break
                top = max(top, a)
            d = top / INT8_MAX
            inverse = ONE / d if d != ZERO else ZERO
            for i in range(first, first + BLOCK):
                value = x[n, i] * inverse
                if value != value:
                    value = ZERO
                value = min(max(value, -INT8_MAX), INT8_MAX)
                xq[n, i] = np.int8(value + (HALF if value >= ZERO else -HALF))  # the conversion truncates
            xscales[n, block] = d


@kernel("i i c2 b2 j3!")
def _partials(start, stop, xq, qweight, out):
    half = BLOCK // 2
    for o in range(start, stop):
        for n in range(xq.shape[0]):
            for block in range(out.shape[2]):
                total = np.int32(0)
                for j in range(half):
                    byte = np.int32(qweight[o, block * half + j])
                    total += np.int32(xq[n, block * BLOCK + j]) * ((byte & np.int32(15)) - np.int32(8))
                    total += np.int32(xq[n, block * BLOCK + j + half]) * ((byte >> np.int32(4)) - np.int32(8))
                out[n, o, block] = total


@kernel("i i c2 f2 b2 f2 i f2!")
def _int8_product(start, stop, xq, xscales, qweight, scales, group_size, out):
    """The codes of a weight row are unpacked once for all n; blocks add up in order, so n changes no bit."""
    half, blocks = BLOCK // 2, xscales.shape[1]
    codes = np.empty(blocks * BLOCK, np.int8)
    for o in range(start, stop):
        for block in range(blocks):
            for j in range(half):
                byte = qweight[o, block * half + j]
                codes[block * BLOCK + j] = np.int8(byte & 15) - np.int8(8)
                codes[block * BLOCK + j + half] = np.int8(byte >> 4) - np.int8(8)
        for n in range(xq.shape[0]):
            total = ZERO
            for block in range(blocks):
                partial = np.int32(0)
                for i in range(block * BLOCK, (block + 1) * BLOCK):
                    partial += np.int32(xq[n, i]) * np.int32(codes[i])
                total += np.float32(partial) * (scales[o, block * BLOCK // group_size] * xscales[n, block])
            out[n, o] = total


def _checked(qweight: Array, scales: Array, group_size: int) -> tuple[Array, Array, int]:
    """Contiguous codes, float32 scales, in_features."""
    if group_size not in (32, 64, 128):
        raise ValueError(f"group_size: expected 32, 64 or 128, got {group_size}")
    if not isinstance(qweight, np.ndarray) or qweight.dtype != np.uint8 or qweight.ndim != 2:
        raise TypeError("qweight: expected a uint8 array (out, in / 2)")
    out_features, in_features = qweight.shape[0], 2 * qweight.shape[1]
    if in_features % group_size or scales.shape != (out_features, in_features // group_size):
        raise ValueError(f"scales: expected shape ({out_features}, {in_features} / {group_size}), got {scales.shape}")
    return np.ascontiguousarray(qweight), np.ascontiguousarray(scales, dtype=np.float32), in_features


def _rows(x: Array, in_features: int) -> Array:
    x = as_float32("x", x)
    if x.shape[-1] != in_features or in_features % BLOCK:
        raise ValueError(f"x: expected a last axis of {in_features}, a multiple of {BLOCK}, got shape {x.shape}")
    return x.reshape(x.size // in_features if in_features else 0, in_features)


def int4_quantize(weight: Array, group_size: int) -> tuple[Array, Array]:
    weight = as_float32("weight", weight)
    if weight.ndim != 2 or group_size not in (32, 64, 128) or weight.shape[1] % group_size:
        raise ValueError(
            f"weight: expected (out, in), in a multiple of group_size 32, 64 or 128, got {weight.shape}, {group_size}"
        )
    out_features, in_features = weight.shape
    qweight = np.empty((out_features, in_features // 2), np.uint8)
    scales = np.empty((out_features, in_features // group_size), np.float32)
    _quantize.rows(out_features, 4 * weight.size, weight, group_size, qweight, scales)
    with np.errstate(over="ignore"):
        return qweight, scales.astype(np.float16)


def int4_dequantize(qweight: Array, scales: Array, group_size: int) -> Array:
    qweight, wide, in_features = _checked(qweight, scales, group_size)
    weight = np.empty((len(qweight), in_features), np.float32)
    _dequantize.rows(len(weight), weight.size, qweight, wide, group_size, weight)
    return weight


def int4_linear_forward(x: Array, qweight: Array, scales: Array, group_size: int) -> tuple[Array, tuple]:
    """NumPy's matrix product with the weights dequantized."""
    return as_float32("x", x) @ int4_dequantize(qweight, scales, group_size).T, (qweight, scales, group_size)


def int4_linear_backward(dout: Array, cache: tuple) -> Array:
    return as_float32("dout", dout) @ int4_dequantize(*cache)


def int8_quantize(x: Array) -> tuple[Array, Array]:
    flat = _rows(x, x.shape[-1])
    xq = np.empty(flat.shape, np.int8)
    xscales = np.empty((len(flat), flat.shape[1] // BLOCK), np.float32)
    _to_int8.rows(len(flat), 4 * flat.size, flat, xq, xscales)
    return xq.reshape(x.shape), xscales.reshape(*x.shape[:-1], -1)


def int4_int8_partials(xq: Array, qweight: Array) -> Array:
    if xq.dtype != np.int8 or xq.ndim != 2 or qweight.dtype != np.uint8 or qweight.ndim != 2:
        raise TypeError(f"xq, qweight: expected int8 (N, in), uint8 (out, in / 2), got {xq.dtype}, {qweight.dtype}")
    if xq.shape[1] != 2 * qweight.shape[1] or xq.shape[1] % BLOCK:
        raise ValueError(f"xq: expected (N, {2 * qweight.shape[1]}), a multiple of {BLOCK}, got {xq.shape}")
    out = np.empty((len(xq), len(qweight), xq.shape[1] // BLOCK), np.int32)
    args = (np.ascontiguousarray(xq), np.ascontiguousarray(qweight), out)
    _partials.rows(len(qweight), out.size * BLOCK, *args)
    return out


def int4_int8_linear(x: Array, qweight: Array, scales: Array, group_size: int) -> Array:
    qweight, wide, in_features = _checked(qweight, scales, group_size)
    flat = _rows(x, in_features)
    xq, xscales = int8_quantize(flat)
    out = np.empty((len(flat), len(qweight)), np.float32)
    args = (xq, xscales, qweight, wide, group_size, out)
    _int8_product.rows(len(qweight), in_features * out.size // 4, *args)
    return out.reshape(*x.shape[:-1], len(qweight))
