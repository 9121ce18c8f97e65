"""Four-bit weights against the rule written as scalar loops, and against sums in int64."""

from __future__ import annotations

import numpy as np

from op_checks.bounds import U, exact, gamma, within
from op_checks.layers import numbers, wide

__all__ = [
    "check_int4_linear", "check_int4_quantize", "check_int4_tile", "check_int8_linear", "check_partials",
    "special_groups",
]  # fmt: skip

F = np.float32


def special_groups(group_size: int) -> np.ndarray:
    """Groups that trip careless code: zeros, -0.0, one value, two opposite values, denormals, overflowing scale, last
    place largest.
    """
    rows = [np.zeros(group_size), np.full(group_size, -0.0), np.full(group_size, 0.3), np.full(group_size, -7.5)]
    rows.append(np.where(np.arange(group_size) % 2, 1.0, -1.0))
    rows.append(np.where(np.arange(group_size) % 2, -1.0, 1.0))
    rows.append(np.linspace(-1e-42, 2e-42, group_size))
    rows.append(np.linspace(-3e38, 3e38, group_size))
    rows.append(np.linspace(0, 1, group_size))
    rows.append((np.arange(group_size) % 16 - 8) + 0.5)  # halves: truncation and rounding part ways
    return np.array(rows, dtype=np.float32)


def scalar_quantize(weight: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule one number at a time: d = signed maximum / -8; code = min(15, trunc(x * (1/d) + 8.5)), in float32."""
    out_features, in_features = weight.shape
    codes = np.zeros((out_features, in_features), np.uint8)
    scales = np.zeros((out_features, in_features // group_size), np.float16)
    with np.errstate(all="ignore"):
        for o in range(out_features):
            for g in range(in_features // group_size):
                group = weight[o, g * group_size : (g + 1) * group_size]
                signed_max = max(group, key=abs)  # Python's max keeps the first of equals
                d = F(signed_max) / F(-8)
                inverse = F(1) / d if d != 0 else F(0)
                for i, x in enumerate(group):
                    value = F(F(x) * inverse) + F(8.5)
                    codes[o, g * group_size + i] = 8 if np.isnan(value) else int(np.clip(value, 0, 15))
                scales[o, g] = np.float16(d)
    packed = np.zeros((out_features, in_features // 2), np.uint8)
    for column in range(in_features):
        block, place = divmod(column, 32)
        packed[:, block * 16 + place % 16] |= codes[:, column] << (4 if place >= 16 else 0)
    return packed, scales


def scalar_dequantize(packed: np.ndarray, scales: np.ndarray, group_size: int) -> np.ndarray:
    weight = np.zeros((packed.shape[0], 2 * packed.shape[1]))
    for column in range(weight.shape[1]):
        block, place = divmod(column, 32)
        byte = packed[:, block * 16 + place % 16].astype(np.int64)
        code = (byte // 16 if place >= 16 else byte % 16) - 8
        weight[:, column] = scales[:, column // group_size].astype(np.float64) * code
    return weight


def check_int4_quantize(ops, seed, rows, groups, group_size):
    """Codes, scales and dequantized weights, every bit: d has 11 bits and code - 8 has 4, so their product is exact
    in float32.
    """
    (weight,) = numbers(seed, (rows, groups * group_size))
    special = special_groups(group_size)
    for case in (weight, special, np.concatenate([special[:, ::-1], special], axis=1)):
        want_q, want_s = scalar_quantize(case, group_size)
        qweight, scales = ops.int4_quantize(case, group_size)
        exact("int4_quantize qweight", qweight, want_q)
        exact("int4_quantize scales", scales, want_s)
        finite = np.isfinite(want_s).all(axis=1)
        want = scalar_dequantize(want_q[finite], want_s[finite], group_size).astype(np.float32)
        got = ops.int4_dequantize(qweight[finite], scales[finite], group_size)
        # as numbers, not bits: the sign of a zero is free
        assert np.array_equal(got, want), "int4_dequantize: differs from scale * (code - 8)"
    every_byte = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ones = np.ones((16, 1), np.float16)
    want = scalar_dequantize(every_byte, ones, 32).astype(np.float32)
    assert np.array_equal(ops.int4_dequantize(every_byte, ones, 32), want), "int4_dequantize: a byte reads wrongly"


def check_int4_linear(ops, seed, N, groups, M, group_size):
    """Dequantized weights are exact, so only the dot products round: n u sum |a_i b_i|."""
    C = groups * group_size
    x, weight, dout = numbers(seed, (N, C), (M, C), (N, M))
    packed, scales = scalar_quantize(weight, group_size)
    W = scalar_dequantize(packed, scales, group_size)
    X, D = wide(x, dout)
    out, cache = ops.int4_linear_forward(x, packed, scales, group_size)
    within("int4_linear_forward", out, np.einsum("nc,mc->nm", X, W), gamma(C) * (np.abs(X) @ np.abs(W).T))
    within("int4_linear_backward", ops.int4_linear_backward(dout, cache), D @ W, gamma(M) * (np.abs(D) @ np.abs(W)))


def scalar_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d = max|x| / 127 per 32; q = x * (1/d) rounded, halves away from zero; in float32."""
    q, d = np.zeros(x.shape, np.int8), np.zeros((x.shape[0], x.shape[1] // 32), np.float32)
    with np.errstate(all="ignore"):
        for n in range(x.shape[0]):
            for b in range(d.shape[1]):
                block = x[n, 32 * b : 32 * b + 32]
                d[n, b] = F(max(abs(v) for v in block)) / F(127)
                inverse = F(1) / d[n, b] if d[n, b] != 0 else F(0)
                for i, value in enumerate(block):
                    scaled = F(value) * inverse
                    scaled = F(0) if np.isnan(scaled) else F(np.clip(scaled, -127, 127))
                    magnitude = int(F(abs(scaled) + F(0.5)))
                    q[n, 32 * b + i] = magnitude if scaled >= 0 else -magnitude
    return q, d


def check_int8_linear(ops, seed, N, groups, M, group_size):
    """Integer sums are exact; blocks add up with two products and one sum each: (blocks + 3) u sum |terms|."""
    C = groups * group_size
    x, weight = numbers(seed, (N, C), (M, C))
    x = x.copy()
    x[0, :32] = np.arange(32) - 15.5  # halves after scaling by chance, and an exact zero block where there is room
    if C > 32:
        x[0, 32:64] = 0
    packed, scales = scalar_quantize(weight, group_size)
    want_q, want_d = scalar_int8(x)
    xq, xscales = ops.int8_quantize(x)
    exact("int8_quantize", xq, want_q)
    exact("int8_quantize scales", xscales, want_d)
    halves = np.concatenate([[127.0], np.arange(-15, 16) + 0.5]).astype(np.float32)[None]  # d = 1
    exact("int8_quantize of halves", ops.int8_quantize(halves)[0], scalar_int8(halves)[0])
    codes = scalar_dequantize(packed, np.ones_like(scales), group_size)
    partial = np.einsum("nbi,mbi->nmb", want_q.reshape(N, -1, 32).astype(float), codes.reshape(M, -1, 32))
    block_scales = np.repeat(scales.astype(np.float64), group_size // 32, axis=1)
    terms = partial * block_scales[None] * want_d[:, None, :]
    out = ops.int4_int8_linear(x, packed, scales, group_size)
    within("int4_int8_linear", out, terms.sum(axis=2), (C // 32 + 3) * U * np.abs(terms).sum(axis=2))


def check_partials(ops, seed, N, blocks, M):
    """int64 sums, with the extremes: -128 and 127 against codes -8 and 7."""
    rng = np.random.default_rng(seed)
    xq = rng.integers(-128, 128, (N, 32 * blocks)).astype(np.int8)
    packed = rng.integers(0, 256, (M, 16 * blocks)).astype(np.uint8)
    xq[0], packed[0] = -128, 0
    xq[-1, ::2], packed[-1, ::2] = 127, 255
    codes = scalar_dequantize(packed, np.ones((M, blocks), np.float16), 32).astype(np.int64)
    want = np.einsum("nbi,mbi->nmb", xq.astype(np.int64).reshape(N, blocks, 32), codes.reshape(M, blocks, 32))
    exact("int4_int8_partials", ops.int4_int8_partials(xq, packed), want.astype(np.int32))


def check_int4_tile(ops, seed, N, groups, M, group_size):
    """Tiles byte by byte from their definition; their product against float64, as check_int8_linear's, and where the
    tier has both products itself, against the other one's bits. Infinities, NaN, codes of -8 and scales of 0 included.
    """
    rng, blocks = np.random.default_rng(seed), groups * group_size // 32
    packed = rng.integers(0, 256, (M, 16 * blocks)).astype(np.uint8)
    scales = rng.standard_normal((M, groups)).astype(np.float16)
    packed[rng.random(packed.shape) < 0.1] = 0
    scales[rng.random(scales.shape) < 0.1] = 0
    codes, tile_scales = ops.int4_tile(packed, scales)
    tiles = (M + 15) // 16
    want, want_scales = np.zeros((tiles, blocks, 4, 16, 4), np.uint8), np.zeros((tiles, groups, 16), np.float16)
    for row in range(M):
        for column in range(16 * blocks):
            block, byte = divmod(column, 16)
            want[row // 16, block, byte // 4, row % 16, byte % 4] = packed[row, column]
        want_scales[row // 16, :, row % 16] = scales[row]
    exact("int4_tile codes", codes, want)
    exact("int4_tile scales", tile_scales, want_scales)
    (x,) = numbers(seed + 1, (N, 32 * blocks))
    out = ops.int4_tile_linear(x, codes, tile_scales, M)
    xq, d = scalar_int8(x)
    unit = scalar_dequantize(packed, np.ones_like(scales), group_size).reshape(M, -1, 32)
    partial = np.einsum("nbi,mbi->nmb", xq.reshape(N, -1, 32).astype(float), unit)
    terms = partial * np.repeat(scales.astype(np.float64), group_size // 32, axis=1)[None] * d[:, None, :]
    within("int4_tile_linear", out, terms.sum(axis=2), (blocks + 3) * U * np.abs(terms).sum(axis=2))
    if ops.origin["int4_tile_linear"] == "native":
        x = np.where(rng.random(x.shape) < 0.02, rng.choice(F([np.nan, np.inf, -np.inf, 1e-41, 3e38]), x.shape), x)
        with np.errstate(all="ignore"):
            got, rows = (
                ops.int4_tile_linear(x, codes, tile_scales, M),
                ops.int4_int8_linear(x, packed, scales, group_size),
            )
        exact("int4_tile_linear", got.view(np.uint32), rows.view(np.uint32))
