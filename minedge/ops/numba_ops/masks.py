"""Pruning masks as bits. Layout and meaning stand in `numpy_ops/masks.py`.

Weights are moved as raw unsigned integers of their size: every bit pattern survives, float16 (which Numba does not
know) included.
"""

from __future__ import annotations

import math

import numpy as np

from minedge.ops.numba_ops.runtime import Kernel, as_float32, kernel, writable_float32

__all__ = ["mask_apply", "mask_apply_", "sparse_pack", "sparse_unpack"]

Array = np.ndarray


@kernel("i i b1 u1 u1!")
def _apply(start, stop, bits, weight, out):
    for i in range(start, stop):
        keep = (bits[i >> 3] >> (i & 7)) & 1
        out[i] = weight[i] if keep else np.uint32(0)


@kernel("b1 i")
def _count(bits, n):
    total = 0
    for i in range(n):
        total += (bits[i >> 3] >> (i & 7)) & 1
    return total


def _gather(bits, weight, values):
    place = 0
    for i in range(weight.shape[0]):
        if (bits[i >> 3] >> (i & 7)) & 1:
            values[place] = weight[i]
            place += 1


def _spread(bits, values, out):
    place = 0
    for i in range(out.shape[0]):
        if (bits[i >> 3] >> (i & 7)) & 1:
            out[i] = values[place]
            place += 1


_RAW = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # one compiled version per size of number, each made when first used
_GATHER = {2: Kernel(_gather, "b1 h1 h1!"), 4: Kernel(_gather, "b1 u1 u1!"), 8: Kernel(_gather, "b1 q1 q1!")}
_SPREAD = {2: Kernel(_spread, "b1 h1 h1!"), 4: Kernel(_spread, "b1 u1 u1!"), 8: Kernel(_spread, "b1 q1 q1!")}


def _bits(bits: Array, n: int) -> Array:
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8:
        raise TypeError(f"bits: expected a uint8 array, got {getattr(bits, 'dtype', type(bits).__name__)}")
    if bits.shape != ((n + 7) // 8,):
        raise ValueError(f"bits: expected {(n + 7) // 8} bytes for {n} weights, got shape {bits.shape}")
    return np.ascontiguousarray(bits)


def _raw(name: str, array: Array) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.dtype.itemsize not in _RAW:
        got = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name}: expected a float16, float32 or float64 array, got {got}")
    flat = np.require(array, requirements=["C", "A"]).reshape(-1)
    return flat.view(_RAW[array.dtype.itemsize])


def mask_apply(weight: Array, bits: Array) -> Array:
    flat = as_float32("weight", weight, (-1,))
    out = np.empty(weight.shape, np.float32)
    _apply.rows(flat.size, flat.size, _bits(bits, flat.size), flat.view(np.uint32), out.reshape(-1).view(np.uint32))
    return out


def mask_apply_(weight: Array, bits: Array) -> None:
    flat = writable_float32("weight", weight).view(np.uint32)
    _apply.rows(flat.size, flat.size, _bits(bits, flat.size), flat, flat)


def sparse_pack(weight: Array, bits: Array) -> Array:
    flat = _raw("weight", weight)
    checked = _bits(bits, flat.size)
    values = np.empty(_count(checked, flat.size), weight.dtype)
    _GATHER[weight.dtype.itemsize](checked, flat, _raw("values", values))
    return values


def sparse_unpack(values: Array, bits: Array, shape: tuple[int, ...]) -> Array:
    n = math.prod(shape)
    flat, checked = _raw("values", values), _bits(bits, n)
    kept = int(_count(checked, n))
    if values.shape != (kept,):
        raise ValueError(f"values: expected {kept} kept weights as the mask says, got shape {values.shape}")
    out = np.zeros(shape, values.dtype)
    _SPREAD[values.dtype.itemsize](checked, flat, _raw("out", out))
    return out
