"""Pruning masks in C; numpy_ops/masks.py says what is computed."""

from __future__ import annotations

import math

import numpy as np

from minedge.ops.c_ops.checks import dense, f32, f32_inplace, need
from minedge.ops.c_ops.native import ffi, floats, lib, unsigned_bytes

__all__ = ["OPS"]

Array = np.ndarray
U8 = np.dtype(np.uint8)


def _bits(bits: Array, n: int) -> Array:
    bits = dense(bits, U8, "bits")
    need(bits.shape == ((n + 7) // 8,), f"bits: expected {(n + 7) // 8} bytes for {n} weights, got shape {bits.shape}")
    return bits


def _any_float(a: Array, name: str) -> Array:
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.dtype.itemsize not in (2, 4, 8):
        raise TypeError(
            f"{name}: expected a float16, float32 or float64 array, got {getattr(a, 'dtype', type(a).__name__)}"
        )
    return dense(a, a.dtype, name)


def mask_apply(isa: int, weight: Array, bits: Array) -> Array:
    weight = f32(weight, "weight")
    out = np.empty(weight.shape, np.float32)
    lib.me_mask_apply(isa, floats(out), floats(weight), unsigned_bytes(_bits(bits, weight.size)), weight.size)
    return out


def mask_apply_(isa: int, weight: Array, bits: Array) -> None:
    weight = f32_inplace(weight, "weight")
    pointer = floats(weight)
    lib.me_mask_apply(isa, pointer, pointer, unsigned_bytes(_bits(bits, weight.size)), weight.size)


def sparse_pack(isa: int, weight: Array, bits: Array) -> Array:
    weight = _any_float(weight, "weight")
    bits = _bits(bits, weight.size)
    pointer = unsigned_bytes(bits)
    values = np.empty(lib.me_mask_count(pointer, weight.size), weight.dtype)
    lib.me_sparse_pack(ffi.from_buffer(values), ffi.from_buffer(weight), pointer, weight.size, weight.itemsize)
    return values


def sparse_unpack(isa: int, values: Array, bits: Array, shape: tuple[int, ...]) -> Array:
    values = _any_float(values, "values")
    n = math.prod(shape)
    pointer = unsigned_bytes(_bits(bits, n))
    kept = lib.me_mask_count(pointer, n)
    need(values.shape == (kept,), f"values: expected {kept} kept weights as the mask says, got shape {values.shape}")
    out = np.empty(shape, values.dtype)
    lib.me_sparse_unpack(ffi.from_buffer(out), ffi.from_buffer(values), pointer, n, values.itemsize)
    return out


OPS = {f.__name__: f for f in (mask_apply, mask_apply_, sparse_pack, sparse_unpack)}
