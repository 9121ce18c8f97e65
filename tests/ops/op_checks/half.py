"""Sixteen-bit floats: every bit pattern, rounding against exact fractions, products against float64."""

from __future__ import annotations

import numpy as np

from op_checks.bounds import exact, gamma, within
from op_checks.layers import numbers, wide

__all__ = ["bfloat16_value", "check_half", "check_half_linear", "scalar_bfloat16"]

F = np.float32


def bfloat16_value(bits: int) -> float:
    """What 1 sign bit, 8 exponent bits and 7 fraction bits say, by the format's definition."""
    sign, exponent, fraction = (-1.0) ** (bits >> 15), bits >> 7 & 255, bits & 127
    if exponent == 255:
        return float("nan") if fraction else sign * float("inf")
    return sign * (fraction * 2.0**-133 if exponent == 0 else (128 + fraction) * 2.0 ** (exponent - 134))


def scalar_bfloat16(x: float) -> int:
    """The bits of the nearest bfloat16, of two equally near the even one: by looking at both neighbours."""
    if x != x:
        return 0x7FC0
    low = int(np.abs(F(x)).view(np.uint32)) >> 16  # towards zero
    sign = 0x8000 if np.signbit(F(x)) else 0
    if low == 0x7F80:
        return sign | low
    below = bfloat16_value(low)
    above = 2.0**128 if low + 1 == 0x7F80 else bfloat16_value(low + 1)  # infinity begins where the next number would be
    size = abs(float(F(x)))
    up = size - below > above - size or (size - below == above - size and low % 2 == 1)
    return sign | (low + up)


def check_half(ops, seed, n):
    """All 65,536 patterns read as their definition says; rounding, ties and both ends of the range included."""
    every = np.arange(65536, dtype=np.uint16)
    want = np.array([bfloat16_value(int(b)) for b in every])
    got = ops.half_widen(every)
    assert got.dtype == F and np.array_equal(got, want.astype(F), equal_nan=True), "half_widen: bfloat16 reads wrongly"
    assert (np.signbit(got) == (every >= 0x8000))[~np.isnan(want)].all(), "half_widen: a sign is lost"
    halves = every.view(np.float16)
    exact("half_widen", ops.half_widen(halves)[~np.isnan(halves)], halves[~np.isnan(halves)].astype(F))
    assert np.isnan(ops.half_widen(halves)[np.isnan(halves)]).all()
    (x,) = numbers(seed, (n,))
    middle = ((every.astype(np.uint32) << 16) + 0x8000).view(F)  # ties, and what lies on either side of them
    near = (middle.view(np.uint32)[:, None] + np.array([-1, 0, 1], np.int64)).astype(np.uint32).reshape(-1).view(F)
    for case in (x, near[seed % 97 :: 97], F([0.0, -0.0, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 65519.9, 65520.0])):
        finite = case[~np.isnan(case)]
        want_bits = np.array([scalar_bfloat16(float(v)) for v in finite], np.uint16)
        exact("half_round bfloat16", ops.half_round(finite, "bfloat16"), want_bits)
        with np.errstate(over="ignore"):
            exact("half_round float16", ops.half_round(finite, "float16"), finite.astype(np.float16))
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(F)
    assert np.isnan(ops.half_widen(ops.half_round(nan, "bfloat16"))).all(), "half_round: a NaN becomes a number"


def check_half_linear(ops, seed, N, C, M):
    """Weights are read exactly, so only the dot products round: n u sum |a_i b_i|."""
    x, weight, dout = numbers(seed, (N, C), (M, C), (N, M))
    X, D = wide(x, dout)
    for dtype in ("float16", "bfloat16"):
        half = ops.half_round(weight, dtype)
        W = np.vectorize(bfloat16_value)(half.astype(int)) if dtype == "bfloat16" else half.astype(np.float64)
        out, cache = ops.half_linear_forward(x, half)
        within("half_linear_forward", out, np.einsum("nc,mc->nm", X, W), gamma(C) * (np.abs(X) @ np.abs(W).T))
        dx = ops.half_linear_backward(dout, cache)
        within("half_linear_backward", dx, np.einsum("nm,mc->nc", D, W), gamma(M) * (np.abs(D) @ np.abs(W)))
