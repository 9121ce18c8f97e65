"""NF4 against the paper's rule as scalar loops, its double quantization against a search for the nearest value."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from op_checks.bounds import U, exact, gamma, within
from op_checks.layers import numbers, wide

__all__ = ["check_absmax", "check_nf4_linear", "check_nf4_quantize"]

F = np.float32
# App. E of arXiv:2305.14314, typed in once more: a wrong digit in the package must not go unseen.
LEVELS = [
    F(v)
    for v in (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    )
]  # fmt: skip


def scalar_quantize(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule one number at a time: x * (1 / absmax) in float32, then the nearest level, the lower of two."""
    out, width = weight.shape
    packed, absmax = np.zeros((out, width // 2), np.uint8), np.zeros((out, width // block), F)
    for o in range(out):
        for i in range(width):
            g = i // block
            top = max(abs(v) for v in weight[o, g * block : (g + 1) * block])
            absmax[o, g] = top
            scaled = F(weight[o, i] * (F(1) / max(top, F(1e-38))))
            code = 0
            while code < 15 and scaled > F((LEVELS[code] + LEVELS[code + 1]) / F(2)):
                code += 1
            packed[o, i // 2] |= code << (0 if i % 2 else 4)
    return packed, absmax


def scalar_dequantize(packed: np.ndarray, absmax: np.ndarray, block: int) -> np.ndarray:
    """float32 products of the block's absmax and the code's level."""
    weight = np.zeros((len(packed), 2 * packed.shape[1]), F)
    for i in range(weight.shape[1]):
        code = packed[:, i // 2] & 15 if i % 2 else packed[:, i // 2] >> 4
        weight[:, i] = absmax[:, i // block] * np.array(LEVELS, F)[code]
    return weight


def special_blocks(block: int) -> np.ndarray:
    """Zeros, one value, denormals, the largest float, every midpoint, every level, last place largest."""
    rows = [np.zeros(block), np.full(block, -0.0), np.full(block, 0.3), np.full(block, -7.5)]
    rows += [np.linspace(-1e-42, 2e-42, block), np.linspace(-1e-38, 2e-39, block), np.linspace(-3e38, 3e38, block)]
    middle = [(a + b) / F(2) for a, b in pairwise(LEVELS)]
    for near in (-1, 0, 1):  # on a midpoint, and one unit in the last place to either side
        moved = [np.nextafter(m, F(near * 2)) if near else m for m in middle]
        rows.append(np.resize([1.0, *moved], block))
    for top in (F(1.1), F(1.3), F(1.7), F(3.1)):  # where x / top and x * (1 / top) end on two sides of a midpoint
        rows.append(np.resize([top, *(m * top for m in middle)], block))
    rows += [np.resize(LEVELS, block), np.linspace(0, 1, block)]
    return np.array(rows, F)


def check_nf4_quantize(ops, seed, rows, blocks, block):
    """Codes, absmax and dequantized weights, every bit."""
    (weight,) = numbers(seed, (rows, blocks * block))
    special = special_blocks(block)
    for case in (weight, special, np.concatenate([special[:, ::-1], special], axis=1)):
        want_q, want_a = scalar_quantize(case, block)
        qweight, absmax = ops.nf4_quantize(case, block)
        exact("nf4_quantize qweight", qweight, want_q)
        exact("nf4_quantize absmax", absmax, want_a)
        got = ops.nf4_dequantize(qweight, absmax, block)
        assert np.array_equal(got, scalar_dequantize(want_q, want_a, block)), "nf4_dequantize: differs"
        # the paper's bound: half the widest gap, -1 .. -0.696, and the roundings of x * (1 / absmax) and of reading
        size = np.repeat(want_a.astype(np.float64), block, axis=1)
        assert (np.abs(got.astype(np.float64) - case) <= size * (0.15191 + 4 * U) + 1e-38).all()
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ones = np.ones((16, 1), F)
    assert np.array_equal(ops.nf4_dequantize(every, ones, 32), scalar_dequantize(every, ones, 32))


def check_nf4_linear(ops, seed, N, blocks, M, block):
    """Dequantized weights carry one rounding each, which the reference shares, so only the dot products round."""
    C = blocks * block
    x, weight, dout = numbers(seed, (N, C), (M, C), (N, M))
    packed, absmax = scalar_quantize(weight, block)
    W = scalar_dequantize(packed, absmax, block).astype(np.float64)
    X, D = wide(x, dout)
    out, cache = ops.nf4_linear_forward(x, packed, absmax, block)
    within("nf4_linear_forward", out, np.einsum("nc,mc->nm", X, W), gamma(C) * (np.abs(X) @ np.abs(W).T))
    within("nf4_linear_backward", ops.nf4_linear_backward(dout, cache), D @ W, gamma(M) * (np.abs(D) @ np.abs(W)))


def dynamic_values() -> np.ndarray:
    """The 256 values in float64: for each decade the middles of an even grid over its upper nine tenths."""
    values = [0.0, 1.0]
    for e in range(7):
        cells = 2**e
        for k in range(cells):
            middle = (0.1 + 0.9 * (k + 0.5) / cells) * 10.0 ** (e - 6)
            values += [middle, -middle]
    return np.sort(values)


def check_absmax(ops, seed, n):
    """Codes are the nearest value's, but for what one of 65,536 points stands for; read back within half a gap.

    A point of the table is at most 1/65535 from what it stands for, and a value of the map within 2 units in the last
    place of the float64 one.
    """
    values = dynamic_values()
    rng = np.random.default_rng(seed)
    absmax = np.abs(rng.standard_normal((n, 3))).astype(F) * F(1 + 3 * (seed % 2))
    codes, nested, offset = ops.absmax_quantize(absmax)
    assert codes.shape == absmax.shape and nested.shape == (-(-absmax.size // 256),) and offset.shape == (1,)
    assert (codes.dtype, nested.dtype, offset.dtype) == (np.uint8, np.float32, np.float32)
    mean = absmax.astype(np.float64).mean()
    assert abs(offset[0] - mean) <= U * mean * 1.01
    flat, read = codes.reshape(-1), ops.absmax_dequantize(codes, nested, offset).reshape(-1)
    for b in range(len(nested)):
        part = slice(256 * b, 256 * b + 256)
        centred = absmax.reshape(-1)[part].astype(np.float64) - np.float64(offset[0])
        top = np.abs(centred).max()
        assert abs(nested[b] - top) <= 4 * U * (top + mean)
        if top <= 8 * U * mean:  # nothing but rounding
            continue
        scaled = centred / top
        gap = np.abs(scaled[:, None] - values).min(axis=1)  # to the nearest value
        chosen = np.abs(scaled - values[flat[part]])
        slack = 1 / 65535 + 16 * U * (1 + mean / top)
        assert (chosen <= gap + 2 * slack).all(), "absmax_quantize: another value is nearer"
        want = values[flat[part]] * np.float64(nested[b]) + np.float64(offset[0])
        assert (np.abs(read[part] - want) <= 6 * U * (top + mean)).all(), "absmax_dequantize: differs"
    some = rng.integers(0, absmax.size, 5)
    part = ops.absmax_dequantize(codes.reshape(-1)[some], nested, offset, some)
    exact("absmax_dequantize of some", part, read[some])
    same_codes, same_nested, same_offset = ops.absmax_quantize(np.full((4, 3), F(0.7)))
    assert not same_nested.any() and not same_codes.any()
    assert np.array_equal(ops.absmax_dequantize(same_codes, same_nested, same_offset), np.full((4, 3), F(0.7)))
