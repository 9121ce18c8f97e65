"""Eight-bit weights against the rule written as scalar loops in exact fractions where it matters."""

from __future__ import annotations

import math

import numpy as np

from op_checks.bounds import U, exact, within
from op_checks.int4 import scalar_int8, special_groups
from op_checks.layers import numbers

__all__ = ["check_q8", "check_q8_product"]

F = np.float32


def scalar_quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rule one number at a time: d = max |x| / 127; code = x * (1/d) rounded, halves away from zero."""
    out, width = weight.shape
    codes, scales = np.zeros((out, width), np.int8), np.zeros((out, width // 32), np.float16)
    with np.errstate(all="ignore"):
        for o in range(out):
            for g in range(width // 32):
                group = weight[o, 32 * g : 32 * g + 32]
                d = F(max(abs(v) for v in group)) / F(127)
                inverse = F(1) / d if d != 0 else F(0)
                for i, x in enumerate(group):
                    value = float(F(x * inverse))  # from here on in float64, where + 0.5 is exact
                    if math.isnan(value):
                        value = 0.0
                    size = 127 if abs(value) > 127 else math.floor(abs(value) + 0.5)
                    codes[o, 32 * g + i] = int(math.copysign(size, value))
                scales[o, g] = np.float16(d)
    return codes, scales


def halves() -> np.ndarray:
    """Groups whose d is 1: halves, and the floats on either side of them."""
    middle = np.resize([0.5, -0.5, 1.5, -2.5, 3.5, 126.5, -126.5], 31).astype(F)
    moved = [middle, np.nextafter(middle, F(0)), np.nextafter(middle, F(1000) * middle)]
    return np.array([[127.0, *m] for m in moved], F)


def check_q8(ops, seed, rows, blocks):
    """Codes, scales and dequantized weights, every bit; the error against half a step."""
    (weight,) = numbers(seed, (rows, 32 * blocks))
    special = special_groups(32)
    for case in (weight, special, halves(), np.concatenate([special[:, ::-1], special], axis=1)):
        want_q, want_s = scalar_quantize(case)
        qweight, scales = ops.q8_quantize(case)
        exact("q8_quantize qweight", qweight, want_q)
        exact("q8_quantize scales", scales, want_s)
        with np.errstate(invalid="ignore"):  # an infinite scale times code 0
            got = ops.q8_dequantize(qweight, scales)
            want = np.repeat(want_s.astype(F), 32, axis=1) * want_q.astype(F)
        assert got.dtype == np.float32 and np.array_equal(got, want, equal_nan=True), "q8_dequantize: differs"
        d = np.repeat(np.abs(case.astype(np.float64)).reshape(len(case), -1, 32).max(-1) / 127, 32, axis=1)
        d16 = np.repeat(want_s.astype(np.float64), 32, axis=1)
        fits = np.isfinite(d16) & (d > 1e-37)
        # x * (1/d) carries three roundings of a number up to 127; reading multiplies the code with float16(d)
        bound = d / 2 + 127 * 4 * U * d + 127 * np.abs(d16 - d) * (1 + U)
        assert (np.abs(got.astype(np.float64) - case)[fits] <= bound[fits]).all(), "q8: error above half a step"


def check_q8_product(ops, seed, N, blocks, M):
    """Integer sums are exact; groups add up with two products and one sum each: (groups + 3) u sum |terms|.

    Then the same with scales that are powers of two and few groups: every rounding is exact, so the result is the
    int64 sum, with the extremes -127, 127 and -128 (which files may hold) included.
    """
    x, weight = numbers(seed, (N, 32 * blocks), (M, 32 * blocks))
    codes, scales = scalar_quantize(weight)
    xq, d = scalar_int8(x)
    parts = xq.astype(float).reshape(N, blocks, 32), codes.astype(float).reshape(M, blocks, 32)
    terms = np.einsum("nbi,mbi->nmb", *parts) * scales.astype(float)[None] * d.astype(float)[:, None]
    out = ops.q8_int8_linear(x, codes, scales)
    within("q8_int8_linear", out, terms.sum(axis=2), (blocks + 3) * U * np.abs(terms).sum(axis=2))
    rng = np.random.default_rng(seed)
    whole = rng.integers(-127, 128, (N, 32 * blocks))
    whole[:, ::32] = 127  # the scale of every group is 1
    whole[0], codes = np.where(np.arange(32 * blocks) % 2, -127, 127), rng.integers(-128, 128, codes.shape)
    codes[0], codes[-1] = np.where(np.arange(32 * blocks) % 2, -128, 127), -128
    got = ops.q8_int8_linear(whole.astype(F), codes.astype(np.int8), np.full_like(scales, 0.5))
    exact("q8_int8_linear of integers", got, ((whole @ codes.T) * 0.5).astype(F))
