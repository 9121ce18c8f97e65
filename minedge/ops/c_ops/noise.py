"""The noise generator in C; numpy_ops/noise.py is its specification, equal bit for bit."""

from __future__ import annotations

import numpy as np

from minedge.errors import UsageError
from minedge.ops.c_ops.checks import f32, f32_inplace
from minedge.ops.c_ops.native import ffi, floats, lib
from minedge.ops.numpy_ops.noise import check_both

__all__ = ["OPS"]

Array = np.ndarray
F32 = np.float32


def _key(seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> tuple[int, int, int, int, int]:
    """(two key words, step, sample, tensor), all within their width: else they would draw other numbers."""
    seed, step, sample, tensor, start, count = map(int, (seed, step, sample, tensor, start, count))
    for name, value, bits in (("seed", seed, 64), ("step", step, 32), ("sample", sample, 32), ("tensor", tensor, 32)):
        if not 0 <= value < 1 << bits:
            raise UsageError(f"{name}: expected an integer in [0, 2^{bits}), got {value}")
    if start < 0 or count < 0 or start + count > 1 << 34:
        raise UsageError(f"start, count: expected 0 <= start, count and start + count <= 2^34, got {start}, {count}")
    return seed & 0xFFFFFFFF, seed >> 32, step, sample, tensor


def normal(isa: int, seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> Array:
    key = _key(seed, step, sample, tensor, start, count)
    z = np.empty(int(count), F32)
    lib.me_normal(isa, floats(z), *key, int(start), z.size)
    return z


def perturb(
    isa: int, weight: Array, scale: float, seed: int, step: int, sample: int, tensor: int, start: int = 0
) -> Array:
    weight = f32(weight, "weight")
    key = _key(seed, step, sample, tensor, start, weight.size)
    out = np.empty(weight.shape, F32)
    lib.me_perturb(isa, floats(out), ffi.NULL, floats(weight), 1.0, float(scale), *key, int(start), out.size)
    return out


def perturb_both(
    isa: int, weight: Array, scale: float, seed: int, step: int, sample: int, tensor: int, start: int = 0
) -> tuple[Array, Array]:
    weight = f32(weight, "weight")
    key = _key(seed, step, sample, tensor, start, weight.size)
    plus, minus = np.empty(weight.shape, F32), np.empty(weight.shape, F32)
    lib.me_perturb(isa, floats(plus), floats(minus), floats(weight), 1.0, float(scale), *key, int(start), weight.size)
    return plus, minus


def perturb_(
    isa: int,
    weight: Array,
    decay: float,
    scale: float,
    seed: int,
    step: int,
    sample: int,
    tensor: int,
    start: int = 0,
) -> None:
    weight = f32_inplace(weight, "weight")
    key = _key(seed, step, sample, tensor, start, weight.size)
    pointer = floats(weight)
    lib.me_perturb(isa, pointer, ffi.NULL, pointer, float(decay), float(scale), *key, int(start), weight.size)


def linear_both(
    isa: int, x: Array, weight: Array, scale: float, seed: int, step: int, sample: int, tensor: int
) -> Array:
    x, weight = f32(x, "x"), f32(weight, "weight")
    check_both(x, weight)
    key = _key(seed, step, sample, tensor, 0, weight.size)
    out = np.empty((*x.shape[:-1], weight.shape[0]), F32)
    sizes = out[0].size // max(1, len(weight)), *weight.shape
    if weight.shape[1] == 0:
        out[...] = 0
    elif out.size and lib.me_linear_both(isa, floats(out), floats(x), floats(weight), float(scale), *key, *sizes):
        raise MemoryError("matrix product: no memory for its packed operands")
    return out


OPS = {f.__name__: f for f in (normal, perturb, perturb_, perturb_both, linear_both)}
