"""Eight-bit weights in C; numpy_ops/q8.py says what is computed."""

from __future__ import annotations

import numpy as np

from minedge.ops.c_ops.checks import dense, need
from minedge.ops.c_ops.int4 import int8_quantize
from minedge.ops.c_ops.native import floats, halves, lib, signed_bytes

__all__ = ["OPS"]

Array = np.ndarray
F32 = np.float32
I8, F16 = np.dtype(np.int8), np.dtype(np.float16)
GROUP = 32


def _packed(qweight: Array, scales: Array) -> tuple[Array, Array]:
    qweight, scales = dense(qweight, I8, "qweight"), dense(scales, F16, "scales")
    need(qweight.ndim == 2, f"qweight: expected (out, in), got {qweight.shape}")
    if qweight.shape[1] % GROUP or scales.shape != (len(qweight), qweight.shape[1] // GROUP):
        raise ValueError(f"scales: expected one a group of {GROUP} codes of {qweight.shape}, got {scales.shape}")
    return qweight, scales


def q8_dequantize(isa: int, qweight: Array, scales: Array) -> Array:
    qweight, scales = _packed(qweight, scales)
    weight = np.empty(qweight.shape, F32)
    lib.me_q8_dequantize(isa, floats(weight), signed_bytes(qweight), halves(scales), *weight.shape)
    return weight


def q8_int8_linear(isa: int, x: Array, qweight: Array, scales: Array) -> Array:
    qweight, scales = _packed(qweight, scales)
    out, width = qweight.shape
    xq, xscales = int8_quantize(isa, x)
    need(x.shape[-1] == width, f"x: expected (..., {width}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out), F32)
    N = x.size // width
    lib.me_q8_int8_linear(
        isa, floats(y), signed_bytes(xq), floats(xscales), signed_bytes(qweight), halves(scales), N, out, width
    )
    return y


OPS = {f.__name__: f for f in (q8_dequantize, q8_int8_linear)}
