r"""Gaussian numbers that anyone can make again: the generator of MeZO's perturbations, specification version 1.

Element i of a tensor gets the number z(seed, step, sample, tensor, i) in four stated steps. Nothing is kept between
calls, so any part of any tensor can be made in any order, by any number of threads, and every tier and every CPU gives
the same 32 bits:

1. Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC'11, doi:10.1145/2063384.2063405) with
       key = (seed mod 2^32, seed div 2^32)    counter = (i div 4, tensor, step, sample)    word = output[i mod 4]
2. u = (word >> 9) * 2^-23 + 2^-24: one of 2^23 odd multiples of 2^-24 in (0, 1), exact in float32, never 0 or 1.
3. z = Phi^-1(u), the inverse of the normal distribution function, by two polynomials (below).
4. perturb: w + scale * z.

Steps 2 to 4 use only float32 +, -, * (each rounded on its own, as IEEE 754 says) and exact integer operations on bits:
no libm function and no fused multiply-add, because those differ between machines. There is no branch, no division and
no square root either.

The normal. Phi^-1 is odd around u = 1/2, so z = (2u - 1) * f(u (1 - u)) with a smooth f. In the variable
y = 13 + log2(u (1 - u)), which runs over [-11, 11], one polynomial of degree 13 serves centre and tails alike. The
logarithm takes its whole part from the exponent bits and the rest from a polynomial. Stated order, every operation
rounded to float32:

    v = 1 - u                                  exact
    q = u * v                                  rounded; the same for u and 1 - u, so z is exactly odd: z(1-u) = -z(u)
    e = (bits(q) - 0x3f3504f3) >> 23           int32, arithmetic shift: q = 2^e * m with m in [sqrt 1/2, sqrt 2)
    m = float(bits(q) - (e << 23))             the bits read as float32
    t = m - 1                                  exact
    L = c5;  for k = 4 .. 0:  L = L*t + c_k    Horner; product and sum rounded one after the other
    y = L*t + float(e + 13)
    P = d13; for k = 12 .. 0: P = P*y + d_k
    z = (u - v) * P                            u - v = 2u - 1, exact

Measured over all 2^23 inputs against a float64 inverse: |z - exact| <= 1.63e-6, and <= 8.3e-7 * |exact|. The values are
2^23 different ones, rising with u, |z| <= 5.2948; their mean is 0 exactly, their variance 1 - 2.4e-7 and their kurtosis
3 - 8.8e-6 (an exact inverse on the same grid has 1 - 1.6e-7 and 3 - 9.0e-6). The coefficients are our own fit:
tests/noise/fit_coefficients.py makes them again.
"""

from __future__ import annotations

import numpy as np

from minedge.errors import UsageError

__all__ = [
    "GENERATOR_VERSION",
    "check_both",
    "inverse_normal",
    "linear_both",
    "normal",
    "perturb",
    "perturb_",
    "perturb_both",
    "philox4x32_10",
    "uniform",
]

GENERATOR_VERSION = 1
ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, in units of 2^-32: added to the key every round
LOW_32, SHIFT_32 = np.uint64(0xFFFFFFFF), np.uint64(32)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
CHUNK = 1 << 14  # numbers made at a time: under 1 MB of temporaries, whatever the size of the tensor


def _float32(*numbers: str) -> tuple[np.float32, ...]:
    """Constants from exact hexadecimal; np.float32 scalars keep NumPy 1.26 and 2.x from widening to float64."""
    return tuple(np.float32(float.fromhex(number)) for number in numbers)


ONE, HALF_STEP, STEP = _float32("0x1p+0", "0x1p-24", "0x1p-23")

# log2(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1], constant term first
LOG2_COEFFICIENTS = _float32(
    "0x1.7155acp+0",  # 1.4427135
    "-0x1.713832p-1",  # -0.721131861
    "0x1.eada34p-2",  # 0.479348004
    "-0x1.784f4ap-2",  # -0.367489964
    "0x1.49e2f4p-2",  # 0.32215482
    "-0x1.a7199ap-3",  # -0.2065918
)

# z / (2u - 1) as a polynomial in y, constant term first
NORMAL_COEFFICIENTS = _float32(
    "0x1.d5a82cp+1",  # 3.6691947
    "-0x1.69e130p-3",  # -0.176699042
    "-0x1.db940cp-9",  # -0.00362837454
    "-0x1.fe7fa0p-14",  # -0.000121712335
    "-0x1.42b7f4p-19",  # -2.40444069e-06
    "0x1.d87992p-23",  # 2.20013263e-07
    "0x1.0bda1ap-25",  # 3.1182072e-08
    "0x1.664a8cp-29",  # 2.60691158e-09
    "0x1.304d04p-32",  # 2.76760004e-10
    "0x1.c3d276p-37",  # 1.28415568e-11
    "-0x1.cb85d2p-40",  # -1.63255271e-12
    "-0x1.560942p-43",  # -1.5189457e-13
    "0x1.398a3cp-49",  # 2.17562064e-15
    "0x1.8aa0e2p-52",  # 3.42285617e-16
)


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    r"""Philox4x32-10: ten rounds that mix a counter with a key; a bijection of the counter for every key.

    One round on counter words (c0, c1, c2, c3) with key words (k0, k1):
        h0:l0 = 0xD2511F53 * c0 (64-bit product, high and low half),   h1:l1 = 0xCD9E8D57 * c2
        (c0, c1, c2, c3) <- (h1 ^ c1 ^ k0,  l1,  h0 ^ c3 ^ k1,  l0)
        (k0, k1) <- (k0 + 0x9E3779B9, k1 + 0xBB67AE85) mod 2^32

    counter: uint32 (..., 4), key: two integers below 2^32. Returns uint32 (..., 4).

    >>> [hex(word) for word in philox4x32_10(np.zeros(4, np.uint32), (0, 0)).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (counter[..., k].astype(np.uint64) for k in range(4))  # 64 bits wide, to hold the products
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0 = (product1 >> SHIFT_32) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> SHIFT_32) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & LOW_32, product0 & LOW_32
        k0, k1 = (k0 + WEYL_0) & 0xFFFFFFFF, (k1 + WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniform(words: np.ndarray) -> np.ndarray:
    """u = (word >> 9) * 2^-23 + 2^-24, float32: the middle of one of 2^23 equal cells of (0, 1); exact."""
    return (words >> np.uint32(9)).astype(np.float32) * STEP + HALF_STEP


def _horner(coefficients: tuple[np.float32, ...], x: np.ndarray) -> np.ndarray:
    """Sum of coefficients[k] * x^k from the highest power down; product and sum are rounded separately."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= x
        total += coefficient
    return total


def inverse_normal(u: np.ndarray) -> np.ndarray:
    """z = Phi^-1(u) for u from `uniform`, float32, in the order that the head of this file states."""
    v = ONE - u
    bits = (u * v).view(np.int32)
    e = (bits - SQRT_HALF_BITS) >> np.int32(23)
    t = (bits - (e << np.int32(23))).view(np.float32) - ONE
    y = _horner(LOG2_COEFFICIENTS, t)
    y *= t
    y += (e + np.int32(13)).astype(np.float32)
    return (u - v) * _horner(NORMAL_COEFFICIENTS, y)


def _check(seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> None:
    """Every number must fit its place in key and counter: one that wraps would silently draw another tensor's noise."""
    for name, value, bits in (("seed", seed, 64), ("step", step, 32), ("sample", sample, 32), ("tensor", tensor, 32)):
        if not 0 <= value < 1 << bits:
            raise UsageError(f"{name}: expected an integer in [0, 2^{bits}), got {value}")
    if start < 0 or count < 0 or start + count > 1 << 34:
        raise UsageError(f"start, count: expected 0 <= start, count and start + count <= 2^34, got {start}, {count}")


def _chunk(seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> np.ndarray:
    first, last = start // 4, (start + count + 3) // 4  # one counter makes four numbers; both ends are cut to size
    counter = np.empty((last - first, 4), np.uint32)
    counter[:, 0] = np.arange(first, last, dtype=np.uint64)
    counter[:, 1:] = tensor, step, sample
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)
    return inverse_normal(uniform(words[start - 4 * first : start - 4 * first + count]))


def normal(seed: int, step: int, sample: int, tensor: int, start: int, count: int) -> np.ndarray:
    """z float32 (count,): standard normal numbers start .. start + count - 1 of the tensor whose id is `tensor`.

    seed is a 64-bit, step, sample and tensor are 32-bit unsigned integers; UsageError otherwise.

    >>> bool((normal(7, 0, 0, 1, 2, 3) == normal(7, 0, 0, 1, 0, 5)[2:]).all())
    True
    """
    seed, step, sample, tensor, start, count = map(int, (seed, step, sample, tensor, start, count))
    _check(seed, step, sample, tensor, start, count)
    z = np.empty(count, np.float32)
    for low in range(0, count, CHUNK):
        high = min(low + CHUNK, count)
        z[low:high] = _chunk(seed, step, sample, tensor, start + low, high - low)
    return z


def perturb(
    weight: np.ndarray, scale: float, seed: int, step: int, sample: int, tensor: int, start: int = 0
) -> np.ndarray:
    """w + scale * z as a new array of weight's shape; weight's first element is element `start` of its tensor.

    scale is rounded to the dtype of weight first, then product and sum are rounded one after the other. With float64
    weights z is the same float32 numbers and the arithmetic is float64.
    """
    out = np.array(weight, order="C", copy=True)
    perturb_(out, 1.0, scale, seed, step, sample, tensor, start)
    return out


def perturb_both(
    weight: np.ndarray, scale: float, seed: int, step: int, sample: int, tensor: int, start: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(w + scale * z, w - scale * z): bit for bit `perturb` for scale and -scale. Faster tiers make z once."""
    at = (seed, step, sample, tensor, start)
    return perturb(weight, scale, *at), perturb(weight, -scale, *at)


def linear_both(
    x: np.ndarray, weight: np.ndarray, scale: float, seed: int, step: int, sample: int, tensor: int
) -> np.ndarray:
    """`out[0] = x[0] @ (w + scale * z).T` and `out[1] = x[1] @ (w - scale * z).T`: one matrix at MeZO's two looks.

    x (2, ..., in), weight (out, in) -> out (2, ..., out). It equals `perturb_both` and two `linear_forward` of its tier
    bit for bit. The c tier makes z a few rows at a time, on their way into the product: nothing perturbed is stored.
    """
    check_both(x, weight)
    plus, minus = perturb_both(weight, scale, seed, step, sample, tensor)
    return np.stack([x[0] @ plus.T, x[1] @ minus.T])


def check_both(x: np.ndarray, weight: np.ndarray) -> None:
    """ValueError unless the shapes are those of `linear_both`."""
    if weight.ndim != 2 or x.ndim < 2 or x.shape[0] != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x, weight: expected (2, ..., in) and (out, in), got {x.shape} and {weight.shape}")


def perturb_(
    weight: np.ndarray,
    decay: float,
    scale: float,
    seed: int,
    step: int,
    sample: int,
    tensor: int,
    start: int = 0,
) -> None:
    """w = fl(fl(decay * w) + fl(scale * z)) in place; decay and scale are rounded to the dtype of weight first.

    weight: float32 or float64, C-contiguous, writable; TypeError or ValueError otherwise.
    """
    if not isinstance(weight, np.ndarray) or weight.dtype not in (np.float32, np.float64):
        raise TypeError(f"weight: expected a float32 or float64 array, got {getattr(weight, 'dtype', type(weight))}")
    if not weight.flags.c_contiguous or not weight.flags.writeable:
        raise ValueError("weight: expected a C-contiguous, writable array")
    seed, step, sample, tensor, start = map(int, (seed, step, sample, tensor, start))
    _check(seed, step, sample, tensor, start, weight.size)
    flat = weight.reshape(-1)
    decay_factor, factor = weight.dtype.type(decay), weight.dtype.type(scale)
    for low in range(0, flat.size, CHUNK):
        part = flat[low : low + CHUNK]
        part *= decay_factor  # exact when decay is 1
        part += _chunk(seed, step, sample, tensor, start + low, part.size) * factor
