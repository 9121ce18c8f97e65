"""NF4 in C; numpy_ops/nf4.py says what is computed, and has the tables that the kernels read."""

from __future__ import annotations

import math

import numpy as np

from minedge.ops.c_ops.checks import dense, f32, need
from minedge.ops.c_ops.native import floats, lib, packed_product, unsigned_bytes
from minedge.ops.numpy_ops.nf4 import CODEBOOK, MIDPOINTS

__all__ = ["OPS"]

Array = np.ndarray
F32, U8 = np.float32, np.dtype(np.uint8)


def _packed(qweight: Array, absmax: Array, block_size: int) -> tuple[Array, Array, int, int]:
    """(qweight, absmax, out, in), checked against each other."""
    qweight, absmax = dense(qweight, U8, "qweight"), f32(absmax, "absmax")
    _check_block(block_size)
    need(qweight.ndim == 2, f"qweight: expected (out, in/2), got {qweight.shape}")
    out, width = qweight.shape[0], qweight.shape[1] * 2
    if width % block_size or absmax.shape != (out, width // block_size):
        raise ValueError(
            f"qweight, absmax: expected (out, in/2) and (out, in/{block_size}), got {qweight.shape} and {absmax.shape}"
        )
    return qweight, absmax, out, width


def _check_block(block_size: int) -> None:
    need(block_size > 0 and block_size % 16 == 0, f"block_size: expected a multiple of 16, got {block_size}")


def nf4_quantize(isa: int, weight: Array, block_size: int) -> tuple[Array, Array]:
    weight = f32(weight, "weight")
    _check_block(block_size)
    if weight.ndim != 2 or weight.shape[1] % block_size:
        raise ValueError(f"weight: expected (out, in) with in a multiple of {block_size}, got {weight.shape}")
    out, width = weight.shape
    qweight, absmax = np.empty((out, width // 2), U8), np.empty((out, width // block_size), F32)
    lib.me_nf4_quantize(
        isa, unsigned_bytes(qweight), floats(absmax), floats(weight), floats(MIDPOINTS), block_size, out, width
    )
    return qweight, absmax


def nf4_dequantize(isa: int, qweight: Array, absmax: Array, block_size: int) -> Array:
    qweight, absmax, out, width = _packed(qweight, absmax, block_size)
    weight = np.empty((out, width), F32)
    lib.me_nf4_dequantize(
        isa, floats(weight), unsigned_bytes(qweight), floats(absmax), floats(CODEBOOK), block_size, out, width
    )
    return weight


def nf4_linear_forward(isa: int, x: Array, qweight: Array, absmax: Array, block_size: int) -> tuple[Array, tuple]:
    x = f32(x, "x")
    qweight, absmax, out, width = _packed(qweight, absmax, block_size)
    need(x.ndim >= 1 and x.shape[-1] == width, f"x: expected (..., {width}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out), F32)
    weight = unsigned_bytes(qweight), floats(absmax), floats(CODEBOOK), block_size
    packed_product(lib.me_nf4_gemm, isa, y, x, weight, False, math.prod(x.shape[:-1]), out, width)
    return y, (qweight, absmax, block_size)


def nf4_linear_backward(isa: int, dout: Array, cache: tuple) -> Array:
    dout, block_size = f32(dout, "dout"), cache[2]
    qweight, absmax, out, width = _packed(*cache)
    need(dout.ndim >= 1 and dout.shape[-1] == out, f"dout: expected (..., {out}), got {dout.shape}")
    dx = np.empty((*dout.shape[:-1], width), F32)
    weight = unsigned_bytes(qweight), floats(absmax), floats(CODEBOOK), block_size
    packed_product(lib.me_nf4_gemm, isa, dx, dout, weight, True, math.prod(dout.shape[:-1]), out, width)
    return dx


OPS = {
    f.__name__: f
    for f in (nf4_quantize, nf4_dequantize, nf4_linear_forward, nf4_linear_backward)
}  # fmt: skip
