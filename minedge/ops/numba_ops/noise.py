r"""The counter-based normal numbers as a loop: bit for bit what `numpy_ops/noise.py` specifies, generator version 1.

Everything is exact integer arithmetic or float32 with a rounding after every operation; Numba neither reorders nor
fuses them. Numbers are made in blocks of 1024 that stay in the first-level cache: first the random words, then the
polynomials, which vectorise.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from minedge.ops.numba_ops.runtime import as_float32, bits_to_float, float_to_bits, kernel, writable_float32
from minedge.ops.numpy_ops.noise import (
    HALF_STEP,
    LOG2_COEFFICIENTS,
    MULTIPLIER_0,
    MULTIPLIER_1,
    NORMAL_COEFFICIENTS,
    ONE,
    ROUNDS,
    SQRT_HALF_BITS,
    STEP,
    WEYL_0,
    WEYL_1,
    _check,
    check_both,
)

__all__ = ["linear_both", "normal", "perturb", "perturb_", "perturb_both"]

Array = np.ndarray
BLOCK = 1024
WEYL_0_32, WEYL_1_32 = np.uint64(WEYL_0), np.uint64(WEYL_1)
LOW_32, SHIFT_32, NINE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint32(9)
MANTISSA, OFFSET = np.int32(23), np.int32(13)
C0, C1, C2, C3, C4, C5 = LOG2_COEFFICIENTS
D0, D1, D2, D3, D4, D5, D6, D7, D8, D9, D10, D11, D12, D13 = NORMAL_COEFFICIENTS


@njit(error_model="numpy")
def _words(first, counters, key0, key1, step, sample, tensor, words):
    """Philox4x32-10 of counters first, first + 1, ..: four words each."""
    for i in range(counters):
        c0, c1, c2, c3 = np.uint64(first + i), tensor, step, sample
        k0, k1 = key0, key1
        for _ in range(ROUNDS):
            product0, product1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
            c0, c2 = (product1 >> SHIFT_32) ^ c1 ^ k0, (product0 >> SHIFT_32) ^ c3 ^ k1
            c1, c3 = product1 & LOW_32, product0 & LOW_32
            k0, k1 = (k0 + WEYL_0_32) & LOW_32, (k1 + WEYL_1_32) & LOW_32
        words[4 * i] = np.uint32(c0)
        words[4 * i + 1] = np.uint32(c1)
        words[4 * i + 2] = np.uint32(c2)
        words[4 * i + 3] = np.uint32(c3)


@njit(error_model="numpy")
def _inverse_normal(word):
    u = np.float32(np.int32(word >> NINE)) * STEP + HALF_STEP
    v = ONE - u
    bits = float_to_bits(u * v)
    e = (bits - SQRT_HALF_BITS) >> MANTISSA
    t = bits_to_float(bits - (e << MANTISSA)) - ONE
    y = (((((C5 * t + C4) * t + C3) * t + C2) * t + C1) * t + C0) * t + np.float32(e + OFFSET)
    p = ((((((D13 * y + D12) * y + D11) * y + D10) * y + D9) * y + D8) * y + D7) * y + D6
    p = (((((p * y + D5) * y + D4) * y + D3) * y + D2) * y + D1) * y + D0
    return (u - v) * p


@kernel("i i i q q q q q f f f1!")
def _perturb(start, stop, offset, key0, key1, step, sample, tensor, decay, scale, weight):
    """weight[i] = decay * weight[i] + scale * z[offset + i] over blocks start .. stop."""
    words = np.empty(BLOCK + 8, np.uint32)
    for block in range(start, stop):
        low = block * BLOCK
        count = min(BLOCK, weight.shape[0] - low)
        skip = (offset + low) & 3  # numbers of the first counter that belong to the block before
        _words((offset + low) >> 2, (skip + count + 3) >> 2, key0, key1, step, sample, tensor, words)
        for i in range(count):
            weight[low + i] = weight[low + i] * decay + _inverse_normal(words[skip + i]) * scale


@kernel("i i i q q q q q f1!")
def _normal(start, stop, offset, key0, key1, step, sample, tensor, z):
    words = np.empty(BLOCK + 8, np.uint32)
    for block in range(start, stop):
        low = block * BLOCK
        count = min(BLOCK, z.shape[0] - low)
        skip = (offset + low) & 3
        _words((offset + low) >> 2, (skip + count + 3) >> 2, key0, key1, step, sample, tensor, words)
        for i in range(count):
            z[low + i] = _inverse_normal(words[skip + i])


def _numbers(seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> tuple:
    seed, step, sample, tensor, start, count = map(int, (seed, step, sample, tensor, start, count))
    _check(seed, step, sample, tensor, start, count)
    return (start, *(np.uint64(n) for n in (seed & 0xFFFFFFFF, seed >> 32, step, sample, tensor)))


def normal(seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> Array:
    numbers = _numbers(seed, step, sample, tensor, start, count)
    z = np.empty(count, np.float32)
    _normal.rows(-(-z.size // BLOCK), 20 * z.size, *numbers, z)
    return z


def perturb(weight: Array, scale: float, seed: int, step: int, sample: int, tensor: int, start: int = 0) -> Array:
    out = np.array(as_float32("weight", weight), order="C", copy=True)
    perturb_(out, 1.0, scale, seed, step, sample, tensor, start)
    return out


def perturb_both(
    weight: Array, scale: float, seed: int, step: int, sample: int, tensor: int, start: int = 0
) -> tuple[Array, Array]:
    at = (seed, step, sample, tensor, start)
    return perturb(weight, scale, *at), perturb(weight, -scale, *at)


def linear_both(x: Array, weight: Array, scale: float, seed: int, step: int, sample: int, tensor: int) -> Array:
    """NumPy's matrix products, with the weights of both sides; MeZO in this tier makes its looks in turn instead."""
    x, weight = as_float32("x", x), as_float32("weight", weight)
    check_both(x, weight)
    plus, minus = perturb_both(weight, scale, seed, step, sample, tensor)
    return np.stack([x[0] @ plus.T, x[1] @ minus.T])


def perturb_(
    weight: Array,
    decay: float,
    scale: float,
    seed: int,
    step: int,
    sample: int,
    tensor: int,
    start: int = 0,
) -> None:
    flat = writable_float32("weight", weight)
    numbers = _numbers(seed, step, sample, tensor, start, flat.size)
    _perturb.rows(-(-flat.size // BLOCK), 20 * flat.size, *numbers, np.float32(decay), np.float32(scale), flat)
