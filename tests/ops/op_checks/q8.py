"""Eight-bit weights against the rule written as scalar loops in exact fractions where it matters."""

from __future__ import annotations

import math

import numpy as np

from op_checks.bounds import U, exact
from op_checks.int4 import special_groups
from op_checks.layers import numbers

__all__ = ["check_q8"]

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
