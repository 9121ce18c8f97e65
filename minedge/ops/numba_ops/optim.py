"""AdamW and the sum of squares in one pass each, in the order of operations that `numpy_ops/optim.py` has."""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.runtime import as_float32, kernel, same_shape, writable_float32

__all__ = ["adamw_", "sum_squares"]

Array = np.ndarray
CHUNK = 1 << 14  # numbers that add up to one partial sum, whatever the number of threads


@kernel("i i f1! f1 f1! f1! f1")
def _adamw(start, stop, param, grad, m, v, constants):
    beta1, rest1, beta2, rest2, correct1, correct2, decay, lr, eps, grad_scale = (
        constants[0], constants[1], constants[2], constants[3], constants[4],
        constants[5], constants[6], constants[7], constants[8], constants[9],
    )  # fmt: skip
    for i in range(start, stop):
        g = grad[i] * grad_scale
        m[i] = m[i] * beta1 + rest1 * g
        v[i] = v[i] * beta2 + rest2 * g * g
        kept = param[i] - decay * param[i]
        param[i] = kept - lr * (m[i] / correct1) / (np.sqrt(v[i] / correct2) + eps)


def adamw_(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    flat = [writable_float32(name, a) for name, a in (("param", param), ("m", m), ("v", v))]
    for name, array in (("grad", grad), ("m", m), ("v", v)):
        same_shape(name, array, param.shape)
    numbers = (
        beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 - beta1**step, 1.0 - beta2**step,
        lr * weight_decay, lr, eps, grad_scale,
    )  # fmt: skip
    constants = np.array(numbers, np.float64).astype(np.float32)  # computed in float64, rounded once, as NumPy does
    args = (flat[0], as_float32("grad", grad, (-1,)), flat[1], flat[2], constants)
    _adamw.rows(param.size, 10 * param.size, *args)


@kernel("i i f1 d1!")
def _squares(start, stop, x, partial):
    for chunk in range(start, stop):
        a = b = c = d = 0.0
        first = chunk * CHUNK
        last = min(x.shape[0], first + CHUNK)
        whole = first + (last - first) // 4 * 4
        for i in range(first, whole, 4):
            a += np.float64(x[i]) * np.float64(x[i])
            b += np.float64(x[i + 1]) * np.float64(x[i + 1])
            c += np.float64(x[i + 2]) * np.float64(x[i + 2])
            d += np.float64(x[i + 3]) * np.float64(x[i + 3])
        for i in range(whole, last):
            a += np.float64(x[i]) * np.float64(x[i])
        partial[chunk] = (a + c) + (b + d)


def sum_squares(x: Array) -> float:
    flat = as_float32("x", x, (-1,))
    partial = np.zeros(-(-flat.size // CHUNK), np.float64)
    _squares.rows(len(partial), flat.size, flat, partial)
    return float(partial.sum())
