"""Four-bit weights in C; numpy_ops/int4.py says what is computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minedge.ops.c_ops.checks import dense, f32, need
from minedge.ops.c_ops.native import floats, halves, lib, packed_product, signed_bytes, unsigned_bytes, words

__all__ = ["OPS", "tiles_in"]

Array = np.ndarray
F32 = np.float32
U8, I8, F16 = np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.float16)
BLOCK, TILE = 32, 16
LINE = 64  # bytes of a cache line
Empty = Callable[[tuple[int, ...], np.dtype], Array]  # what makes an uninitialized array


def _packed(qweight: Array, scales: Array, group_size: int) -> tuple[Array, Array, int, int]:
    """(qweight, scales, out, in), checked against each other."""
    qweight, scales = dense(qweight, U8, "qweight"), dense(scales, F16, "scales")
    need(group_size in (32, 64, 128), f"group_size: expected 32, 64 or 128, got {group_size}")
    need(qweight.ndim == 2, f"qweight: expected (out, in/2), got {qweight.shape}")
    out, width = qweight.shape[0], qweight.shape[1] * 2
    if width % group_size or scales.shape != (out, width // group_size):
        raise ValueError(
            f"qweight, scales: expected (out, in/2) and (out, in/{group_size}), got {qweight.shape} and {scales.shape}"
        )
    return qweight, scales, out, width


def int4_quantize(isa: int, weight: Array, group_size: int) -> tuple[Array, Array]:
    weight = f32(weight, "weight")
    need(group_size in (32, 64, 128), f"group_size: expected 32, 64 or 128, got {group_size}")
    if weight.ndim != 2 or weight.shape[1] % group_size:
        raise ValueError(f"weight: expected (out, in) with in a multiple of {group_size}, got {weight.shape}")
    out, width = weight.shape
    qweight, scales = np.empty((out, width // 2), U8), np.empty((out, width // group_size), F16)
    lib.me_int4_quantize(isa, unsigned_bytes(qweight), halves(scales), floats(weight), group_size, out, width)
    return qweight, scales


def int4_dequantize(isa: int, qweight: Array, scales: Array, group_size: int) -> Array:
    qweight, scales, out, width = _packed(qweight, scales, group_size)
    weight = np.empty((out, width), F32)
    lib.me_int4_dequantize(isa, floats(weight), unsigned_bytes(qweight), halves(scales), group_size, out, width)
    return weight


def int4_linear_forward(isa: int, x: Array, qweight: Array, scales: Array, group_size: int) -> tuple[Array, tuple]:
    x = f32(x, "x")
    qweight, scales, out, width = _packed(qweight, scales, group_size)
    need(x.ndim >= 1 and x.shape[-1] == width, f"x: expected (..., {width}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out), F32)
    weight = unsigned_bytes(qweight), halves(scales), group_size
    packed_product(lib.me_int4_gemm, isa, y, x, weight, False, math.prod(x.shape[:-1]), out, width)
    return y, (qweight, scales, group_size)


def int4_linear_backward(isa: int, dout: Array, cache: tuple) -> Array:
    dout, group_size = f32(dout, "dout"), cache[2]
    qweight, scales, out, width = _packed(*cache)
    need(dout.ndim >= 1 and dout.shape[-1] == out, f"dout: expected (..., {out}), got {dout.shape}")
    dx = np.empty((*dout.shape[:-1], width), F32)
    weight = unsigned_bytes(qweight), halves(scales), group_size
    packed_product(lib.me_int4_gemm, isa, dx, dout, weight, True, math.prod(dout.shape[:-1]), out, width)
    return dx


def int8_quantize(isa: int, x: Array) -> tuple[Array, Array]:
    x = f32(x, "x")
    if x.ndim < 1 or x.shape[-1] % BLOCK or x.shape[-1] == 0:
        raise ValueError(f"x: expected (..., in) with in a multiple of {BLOCK}, got {x.shape}")
    width = x.shape[-1]
    xq, xscales = np.empty(x.shape, I8), np.empty((*x.shape[:-1], width // BLOCK), F32)
    lib.me_int8_quantize(isa, signed_bytes(xq), floats(xscales), floats(x), x.size // width, width)
    return xq, xscales


def _sums(xq: Array) -> Array:
    """8 * the sum of each block: what the -8 of every code adds up to, whatever the weights."""
    rows, width = xq.size // xq.shape[-1], xq.shape[-1]
    xsums = np.empty((rows, width // BLOCK), np.int32)
    lib.me_int8_sums(words(xsums), signed_bytes(xq), rows, width)
    return xsums


def int4_int8_linear(isa: int, x: Array, qweight: Array, scales: Array, group_size: int) -> Array:
    qweight, scales, out, width = _packed(qweight, scales, group_size)
    xq, xscales = int8_quantize(isa, x)
    need(x.shape[-1] == width, f"x: expected (..., {width}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out), F32)
    lib.me_int4_int8_linear(
        isa, floats(y), words(_sums(xq)), signed_bytes(xq), floats(xscales), unsigned_bytes(qweight), halves(scales),
        group_size, x.size // width, out, width,
    )  # fmt: skip
    return y


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Uninitialized, from the start of a cache line: a vector of a tile then never lies across two."""
    size = math.prod(shape) * dtype.itemsize
    space = np.empty(size + LINE - 16, U8)  # what is asked of the system begins at a multiple of 16
    start = -space.__array_interface__["data"][0] % LINE
    start = start if start + size <= space.size else 0
    return space[start : start + size].view(dtype).reshape(shape)


def int4_tile(isa: int, qweight: Array, scales: Array) -> tuple[Array, Array]:
    return tiles_in(_aligned, qweight, scales)


def tiles_in(empty: Empty, qweight: Array, scales: Array) -> tuple[Array, Array]:
    """`int4_tile`, its results in what `empty` makes. One loop serves all instruction sets."""
    need(scales.ndim == 2 and scales.shape[1] > 0, f"scales: expected (out, in/group_size), got {scales.shape}")
    qweight, scales, out, width = _packed(qweight, scales, 2 * qweight.shape[-1] // scales.shape[1])
    tiles, groups = -(-out // TILE), scales.shape[1]
    codes, tile_scales = empty((tiles, width // BLOCK, 4, TILE, 4), U8), empty((tiles, groups, TILE), F16)
    lib.me_int4_tile(
        unsigned_bytes(codes), halves(tile_scales), unsigned_bytes(qweight), halves(scales), width // groups, out, width
    )
    return codes, tile_scales


def int4_tile_linear(isa: int, x: Array, codes: Array, tile_scales: Array, out_features: int) -> Array:
    codes, tile_scales = dense(codes, U8, "codes"), dense(tile_scales, F16, "tile_scales")
    tiles = -(-out_features // TILE)
    if codes.ndim != 5 or codes.shape[0] != tiles or codes.shape[2:] != (4, TILE, 4):
        raise ValueError(f"codes: expected ({tiles}, in/{BLOCK}, 4, {TILE}, 4), got {codes.shape}")
    blocks = codes.shape[1]
    if tile_scales.ndim != 3 or tile_scales.shape[0] != tiles or tile_scales.shape[2] != TILE:
        raise ValueError(f"tile_scales: expected ({tiles}, in/group_size, {TILE}), got {tile_scales.shape}")
    group_size = next((g for g in (32, 64, 128) if tile_scales.shape[1] * g == blocks * BLOCK), 0)
    if not group_size:
        raise ValueError(
            f"codes, tile_scales: expected groups of 32, 64 or 128 columns, got {tile_scales.shape[1]} groups for "
            f"{blocks * BLOCK} columns"
        )
    xq, xscales = int8_quantize(isa, x)
    need(x.shape[-1] == blocks * BLOCK, f"x: expected (..., {blocks * BLOCK}), got {x.shape}")
    y = np.empty((*x.shape[:-1], out_features), F32)
    lib.me_int4_tile_linear(
        isa, floats(y), words(_sums(xq)), signed_bytes(xq), floats(xscales), unsigned_bytes(codes), halves(tile_scales),
        group_size, x.size // x.shape[-1], out_features, x.shape[-1],
    )  # fmt: skip
    return y


def int4_int8_partials(isa: int, xq: Array, qweight: Array) -> Array:
    xq, qweight = dense(xq, I8, "xq"), dense(qweight, U8, "qweight")
    if (
        xq.ndim != 2
        or qweight.ndim != 2
        or xq.shape[1] % BLOCK
        or qweight.shape[1] * 2 != xq.shape[1]
        or xq.shape[1] == 0
    ):
        raise ValueError(
            f"xq, qweight: expected (N, in) and (out, in/2), in a multiple of 32, got {xq.shape}, {qweight.shape}"
        )
    N, width = xq.shape
    partials = np.empty((N, qweight.shape[0], width // BLOCK), np.int32)
    lib.me_int4_int8_partials(
        isa, words(partials), words(_sums(xq)), signed_bytes(xq), unsigned_bytes(qweight), N, qweight.shape[0], width
    )
    return partials


OPS = {
    f.__name__: f
    for f in (
        int4_quantize, int4_dequantize, int4_linear_forward, int4_linear_backward, int8_quantize, int4_int8_linear,
        int4_int8_partials, int4_tile, int4_tile_linear,
    )
}  # fmt: skip
