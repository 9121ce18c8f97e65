"""Sixteen-bit floats in C; numpy_ops/half.py says what is computed."""

from __future__ import annotations

import math

import numpy as np

from minedge.ops.c_ops.checks import dense, f32, need
from minedge.ops.c_ops.native import ffi, floats, lib, packed_product

__all__ = ["OPS"]

Array = np.ndarray
F32, F16, U16 = np.float32, np.dtype(np.float16), np.dtype(np.uint16)


def _half(a: Array, name: str) -> Array:
    if not isinstance(a, np.ndarray) or a.dtype not in (F16, U16):
        raise TypeError(
            f"{name}: expected float16, or uint16 with bfloat16's bits, got {getattr(a, 'dtype', type(a).__name__)}"
        )
    return dense(a, a.dtype, name)


def _bits(a: Array) -> object:
    return ffi.from_buffer("uint16_t[]", a)


def half_widen(isa: int, half: Array) -> Array:
    half = _half(half, "half")
    out = np.empty(half.shape, F32)
    lib.me_half_widen(isa, floats(out), _bits(half), half.dtype == U16, half.size)
    return out


def half_linear_forward(isa: int, x: Array, weight: Array) -> tuple[Array, tuple]:
    x, weight = f32(x, "x"), _half(weight, "weight")
    need(weight.ndim == 2, f"weight: expected (out, in), got {weight.shape}")
    out, width = weight.shape
    need(x.ndim >= 1 and x.shape[-1] == width, f"x: expected (..., {width}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out), F32)
    N = math.prod(x.shape[:-1])
    lib.me_half_linear(isa, floats(y), floats(x), _bits(weight), weight.dtype == U16, N, out, width)
    return y, (weight,)


def half_linear_backward(isa: int, dout: Array, cache: tuple) -> Array:
    dout, weight = f32(dout, "dout"), _half(cache[0], "weight")
    out, width = weight.shape
    need(dout.ndim >= 1 and dout.shape[-1] == out, f"dout: expected (..., {out}), got {dout.shape}")
    dx = np.empty((*dout.shape[:-1], width), F32)
    packed = _bits(weight), weight.dtype == U16
    packed_product(lib.me_half_gemm, isa, dx, dout, packed, True, math.prod(dout.shape[:-1]), out, width)
    return dx


OPS = {f.__name__: f for f in (half_widen, half_linear_forward, half_linear_backward)}
