r"""Layers as compiled loops. Equations and shapes stand in `numpy_ops/layers.py`; here is only what makes them fast.

Sums over a row run in eight partial sums, which the compiler keeps in one vector register; gradients that add up over
rows do so in fixed chunks of rows, so that no number of threads changes the order.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from minedge.ops.numba_ops.exp_kernels import gelu_backward_, gelu_forward_, swiglu_backward_, swiglu_forward_
from minedge.ops.numba_ops.runtime import as_float32, as_int64, kernel, same_shape

__all__ = [
    "bias_backward",
    "bias_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "swiglu_backward",
    "swiglu_forward",
]

Array = np.ndarray
CHUNK = 256  # rows that add up to one partial gradient
ZERO, ONE = np.float32(0), np.float32(1)


def _flat(name: str, array: Array, width: int) -> Array:
    """(..., width) as (rows, width)."""
    array = as_float32(name, array)
    if array.ndim == 0 or array.shape[-1] != width:
        raise ValueError(f"{name}: expected a last axis of {width}, got shape {array.shape}")
    return array.reshape(array.size // width if width else 0, width)


def _chunks(rows: int) -> int:
    return max(1, -(-rows // CHUNK))


@kernel("i i i1 f2 f2!")
def _gather(start, stop, ids, weight, out):
    for i in range(start, stop):
        row = ids[i] if ids[i] >= 0 else ids[i] + weight.shape[0]
        for c in range(weight.shape[1]):
            out[i, c] = weight[row, c]


@kernel("i i i1 f2 f2!")
def _scatter_add(start, stop, ids, dout, dweight):  # by columns, so that two threads never meet in a row
    for i in range(ids.shape[0]):
        row = ids[i] if ids[i] >= 0 else ids[i] + dweight.shape[0]
        for c in range(start, stop):
            dweight[row, c] += dout[i, c]


def embedding_forward(ids: Array, weight: Array) -> tuple[Array, tuple]:
    w = as_float32("weight", weight)
    flat = as_int64("ids", ids, w.shape[0])
    out = np.empty((flat.size, w.shape[1]), np.float32)
    _gather.rows(flat.size, out.size, flat, w, out)
    return out.reshape(*np.shape(ids), w.shape[1]), (ids, weight.shape)


def embedding_backward(dout: Array, cache: tuple) -> Array:
    ids, shape = cache
    dout = _flat("dout", dout, shape[1])
    flat = as_int64("ids", ids, shape[0])
    same_shape("dout", dout, (flat.size, shape[1]))
    dweight = np.zeros(shape, np.float32)
    _scatter_add.rows(shape[1], dout.size, flat, dout, dweight)
    return dweight


def linear_forward(x: Array, weight: Array) -> tuple[Array, tuple]:
    """NumPy's matrix product, float32 only."""
    return as_float32("x", x) @ as_float32("weight", weight).T, (x, weight)


def linear_backward(dout: Array, cache: tuple, need_dweight: bool = True) -> tuple[Array, Array | None]:
    x, weight = cache
    dout = as_float32("dout", dout)
    dx = dout @ weight
    if not need_dweight:
        return dx, None
    return dx, dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])


@kernel("i i f2 f1 f2!")
def _add_row(start, stop, x, bias, out):
    for i in range(start, stop):
        for c in range(bias.shape[0]):
            out[i, c] = x[i, c] + bias[c]


@kernel("i i f2 f2!")
def _sum_rows(start, stop, dout, partial):
    for chunk in range(start, stop):
        for i in range(chunk * CHUNK, min(dout.shape[0], (chunk + 1) * CHUNK)):
            for c in range(dout.shape[1]):
                partial[chunk, c] += dout[i, c]


def bias_forward(x: Array, bias: Array) -> tuple[Array, tuple]:
    bias = as_float32("bias", bias)
    flat = _flat("x", x, bias.size)
    out = np.empty_like(flat)
    _add_row.rows(len(flat), flat.size, flat, bias, out)
    return out.reshape(x.shape), ()


def bias_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    flat = _flat("dout", dout, dout.shape[-1])
    partial = np.zeros((_chunks(len(flat)), flat.shape[1]), np.float32)
    _sum_rows.rows(len(partial), flat.size, flat, partial)
    return dout, partial.sum(axis=0)


@njit(error_model="numpy")
def _sum8(x):
    """Sum of a contiguous row in eight partial sums, added pairwise."""
    a = b = c = d = e = f = g = h = ZERO
    whole = x.shape[0] // 8 * 8
    for i in range(0, whole, 8):
        a += x[i]
        b += x[i + 1]
        c += x[i + 2]
        d += x[i + 3]
        e += x[i + 4]
        f += x[i + 5]
        g += x[i + 6]
        h += x[i + 7]
    for i in range(whole, x.shape[0]):
        a += x[i]
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


@kernel("i i f2 f1 d f2! f1!")
def _rms_forward(start, stop, x, weight, eps, out, rstd):
    width = x.shape[1]
    row = np.empty(width, np.float32)
    for i in range(start, stop):
        for c in range(width):
            row[c] = x[i, c] * x[i, c]
        mean = _sum8(row) / np.float32(width)
        rstd[i] = np.float32(ONE / np.sqrt(np.float32(mean + np.float32(eps))))
        for c in range(width):
            out[i, c] = x[i, c] * rstd[i] * weight[c]


@kernel("i i f2 f2 f1 f1 f2! f2!")
def _rms_backward(start, stop, dout, x, weight, rstd, dx, partial):
    width = x.shape[1]
    row = np.empty(width, np.float32)
    for chunk in range(start, stop):
        for i in range(chunk * CHUNK, min(x.shape[0], (chunk + 1) * CHUNK)):
            r = rstd[i]
            for c in range(width):
                n = x[i, c] * r
                partial[chunk, c] += dout[i, c] * n
                row[c] = dout[i, c] * weight[c] * n
            mean = _sum8(row) / np.float32(width)
            for c in range(width):
                dx[i, c] = r * (dout[i, c] * weight[c] - x[i, c] * r * mean)


def rms_norm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    w = as_float32("weight", weight)
    flat = _flat("x", x, w.size)
    out, rstd = np.empty_like(flat), np.empty(len(flat), np.float32)
    _rms_forward.rows(len(flat), 2 * flat.size, flat, w, float(eps), out, rstd)
    return out.reshape(x.shape), (x, weight, rstd.reshape(x.shape[:-1]))


def rms_norm_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    x, weight, rstd = cache
    w = as_float32("weight", weight)
    same_shape("dout", dout, x.shape)
    flat = _flat("x", x, w.size)
    dx, partial = np.empty_like(flat), np.zeros((_chunks(len(flat)), w.size), np.float32)
    args = (_flat("dout", dout, w.size), flat, w, as_float32("rstd", rstd, (len(flat),)), dx, partial)
    _rms_backward.rows(len(partial), 3 * flat.size, *args)
    return dx.reshape(x.shape), partial.sum(axis=0)


@kernel("i i f2 f1 f1 d f2! f1! f1!")
def _layer_norm_forward(start, stop, x, weight, bias, eps, out, mean, rstd):
    width = x.shape[1]
    row = np.empty(width, np.float32)
    for i in range(start, stop):
        mean[i] = _sum8(x[i]) / np.float32(width)
        for c in range(width):
            row[c] = (x[i, c] - mean[i]) * (x[i, c] - mean[i])
        variance = _sum8(row) / np.float32(width)
        rstd[i] = np.float32(ONE / np.sqrt(np.float32(variance + np.float32(eps))))
        for c in range(width):
            out[i, c] = (x[i, c] - mean[i]) * rstd[i] * weight[c] + bias[c]


@kernel("i i f2 f2 f1 f1 f1 f2! f2! f2!")
def _layer_norm_backward(start, stop, dout, x, weight, mean, rstd, dx, partial_w, partial_b):
    width = x.shape[1]
    dn, product = np.empty(width, np.float32), np.empty(width, np.float32)
    for chunk in range(start, stop):
        for i in range(chunk * CHUNK, min(x.shape[0], (chunk + 1) * CHUNK)):
            r, mu = rstd[i], mean[i]
            for c in range(width):
                n = (x[i, c] - mu) * r
                partial_w[chunk, c] += dout[i, c] * n
                partial_b[chunk, c] += dout[i, c]
                dn[c] = dout[i, c] * weight[c]
                product[c] = dn[c] * n
            mean_dn, mean_product = _sum8(dn) / np.float32(width), _sum8(product) / np.float32(width)
            for c in range(width):
                dx[i, c] = r * (dn[c] - mean_dn - (x[i, c] - mu) * r * mean_product)


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, tuple]:
    w = as_float32("weight", weight)
    flat = _flat("x", x, w.size)
    out, mean, rstd = np.empty_like(flat), np.empty(len(flat), np.float32), np.empty(len(flat), np.float32)
    args = (flat, w, as_float32("bias", bias, w.shape), float(eps), out, mean, rstd)
    _layer_norm_forward.rows(len(flat), 3 * flat.size, *args)
    rows = x.shape[:-1]
    return out.reshape(x.shape), (x, weight, mean.reshape(rows), rstd.reshape(rows))


def layer_norm_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    x, weight, mean, rstd = cache
    w = as_float32("weight", weight)
    same_shape("dout", dout, x.shape)
    flat = _flat("x", x, w.size)
    rows = (len(flat),)
    dx = np.empty_like(flat)
    partial_w, partial_b = np.zeros((2, _chunks(len(flat)), w.size), np.float32)
    args = (_flat("dout", dout, w.size), flat, w, as_float32("mean", mean, rows), as_float32("rstd", rstd, rows))
    _layer_norm_backward.rows(len(partial_w), 4 * flat.size, *args, dx, partial_w, partial_b)
    return dx.reshape(x.shape), partial_w.sum(axis=0), partial_b.sum(axis=0)


@kernel("i i f3 f2 f2 f f3!")
def _rotate(start, stop, x, cos, sin, sign, out):
    half = cos.shape[1]
    for i in range(start, stop):  # i runs over (B, T); the angle depends on the position in T
        t = i % cos.shape[0]
        for h in range(x.shape[1]):
            for d in range(half):
                s = sin[t, d] * sign
                first, second = x[i, h, d], x[i, h, d + half]
                out[i, h, d] = first * cos[t, d] - second * s
                out[i, h, d + half] = second * cos[t, d] + first * s


def _rotary(name: str, x: Array, cos: Array, sin: Array, sign: float) -> Array:
    x = as_float32(name, x)
    B, T, H, D = x.shape
    angles = (T, D // 2)
    same_shape("cos", cos, angles)
    same_shape("sin", sin, angles)
    flat = x.reshape(B * T, H, D)
    out = np.empty_like(flat)
    _rotate.rows(len(flat), 2 * x.size, flat, as_float32("cos", cos), as_float32("sin", sin), np.float32(sign), out)
    return out.reshape(x.shape)


def rotary_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple]:
    return _rotary("x", x, cos, sin, 1.0), (cos, sin)


def rotary_backward(dout: Array, cache: tuple) -> Array:
    cos, sin = cache
    return _rotary("dout", dout, cos, sin, -1.0)


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple]:
    same_shape("up", up, gate.shape)
    out = np.empty(gate.size, np.float32)
    swiglu_forward_.rows(out.size, 8 * out.size, as_float32("gate", gate, (-1,)), as_float32("up", up, (-1,)), out)
    return out.reshape(gate.shape), (gate, up)


def swiglu_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    gate, up = cache
    same_shape("dout", dout, gate.shape)
    flat = [as_float32(name, a, (-1,)) for name, a in (("dout", dout), ("gate", gate), ("up", up))]
    dgate, dup = np.empty(gate.shape, np.float32), np.empty(gate.shape, np.float32)
    swiglu_backward_.rows(gate.size, 8 * gate.size, *flat, dgate.reshape(-1), dup.reshape(-1))
    return dgate, dup


def gelu_forward(x: Array) -> tuple[Array, tuple]:
    out = np.empty(x.size, np.float32)
    gelu_forward_.rows(out.size, 8 * out.size, as_float32("x", x, (-1,)), out)
    return out.reshape(x.shape), (x,)


def gelu_backward(dout: Array, cache: tuple) -> Array:
    (x,) = cache
    same_shape("dout", dout, x.shape)
    dx = np.empty(x.size, np.float32)
    gelu_backward_.rows(dx.size, 8 * dx.size, as_float32("dout", dout, (-1,)), as_float32("x", x, (-1,)), dx)
    return dx.reshape(x.shape)
