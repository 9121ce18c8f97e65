"""Products with packed pruned weights in C; numpy_ops/sparse.py says what is computed."""

from __future__ import annotations

import math

import numpy as np

from minedge.ops.c_ops.checks import dense, f32, need
from minedge.ops.c_ops.native import ffi, floats, lib, longs, packed_product, unsigned_bytes

__all__ = ["OPS"]

Array = np.ndarray
F32, F16, U8, I64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint8), np.dtype(np.int64)


def _packed(bits: Array, values: Array, starts: Array) -> tuple[Array, Array, Array, int, int]:
    """(bits, values, starts, out, in), checked against each other. Whether each row has as many values as bits is left
    to the kernels, which read no value that is not there.
    """
    if not isinstance(values, np.ndarray) or values.dtype not in (F32, F16):
        raise TypeError(
            f"values: expected a float32 or float16 array, got {getattr(values, 'dtype', type(values).__name__)}"
        )
    bits, values, starts = dense(bits, U8, "bits"), dense(values, values.dtype, "values"), dense(starts, I64, "starts")
    need(bits.ndim == values.ndim == starts.ndim == 1, "bits, values, starts: expected vectors")
    out = len(starts) - 1
    if out < 1 or bits.size % out or starts[0] != 0 or starts[-1] != values.size:
        raise ValueError(
            f"bits, values, starts: expected (out in / 8,), (kept,) and (out + 1,) from 0 to kept, got "
            f"{bits.shape}, {values.shape} and {starts.shape}"
        )
    return bits, values, starts, out, 8 * bits.size // out


def _arguments(bits: Array, values: Array, starts: Array) -> tuple:
    return unsigned_bytes(bits), ffi.from_buffer(values), longs(starts), values.dtype == F16


def sparse_linear_forward(isa: int, x: Array, bits: Array, values: Array, starts: Array) -> tuple[Array, tuple]:
    x = f32(x, "x")
    bits, values, starts, out, width = _packed(bits, values, starts)
    need(x.ndim >= 1 and x.shape[-1] == width, f"x: expected (..., {width}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out), F32)
    N = math.prod(x.shape[:-1])
    if lib.me_sparse_linear(isa, floats(y), floats(x), *_arguments(bits, values, starts), N, out, width):
        raise MemoryError("sparse product: no memory for some dense rows")
    return y, (bits, values, starts)


def sparse_linear_backward(isa: int, dout: Array, cache: tuple) -> Array:
    dout = f32(dout, "dout")
    bits, values, starts, out, width = _packed(*cache)
    need(dout.ndim >= 1 and dout.shape[-1] == out, f"dout: expected (..., {out}), got {dout.shape}")
    dx = np.empty((*dout.shape[:-1], width), F32)
    weight = _arguments(bits, values, starts)
    packed_product(lib.me_sparse_gemm, isa, dx, dout, weight, True, math.prod(dout.shape[:-1]), out, width)
    return dx


OPS = {f.__name__: f for f in (sparse_linear_forward, sparse_linear_backward)}
