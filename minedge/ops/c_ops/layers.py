"""Layers in C: checks, then one call each. numpy_ops/layers.py says what they compute.

Every op takes the index of the instruction set first; `c_ops.load` binds it.
"""

from __future__ import annotations

import math

import numpy as np

from minedge.ops.c_ops.checks import f32, ids64, need, same_shape
from minedge.ops.c_ops.native import find_bad_id, floats, lib, longs, product

__all__ = ["OPS"]

Array = np.ndarray
F32 = np.float32


def _width(x: Array, vector: Array, x_name: str, name: str) -> int:
    """Width C of x (..., C), which `vector` (C,) must share."""
    if x.ndim < 1 or vector.shape != x.shape[-1:]:
        raise ValueError(f"{name}: expected the width of {x_name}, {x.shape[-1:]}, got {vector.shape}")
    need(vector.shape[0] > 0, f"{x_name}: expected at least one column")
    return vector.shape[0]


def embedding_forward(isa: int, ids: Array, weight: Array) -> tuple[Array, tuple]:
    weight = f32(weight, "weight")
    need(weight.ndim == 2, f"weight: expected (V, C), got {weight.shape}")
    index = ids64(ids, weight.shape[0], "ids", find_bad_id)
    width = weight.shape[1]
    out = np.empty((*ids.shape, width), F32)
    lib.me_embedding_forward(isa, floats(out), longs(index), floats(weight), index.size, width)
    return out, (ids, weight.shape)


def embedding_backward(isa: int, dout: Array, cache: tuple) -> Array:
    ids, shape = cache
    dout = f32(dout, "dout")
    need(dout.shape == (*ids.shape, shape[1]), f"dout: expected {(*ids.shape, shape[1])}, got {dout.shape}")
    index = ids64(ids, shape[0], "ids", find_bad_id)
    dweight = np.zeros(shape, F32)
    lib.me_embedding_backward(isa, floats(dweight), longs(index), floats(dout), index.size, shape[1])
    return dweight


def linear_forward(isa: int, x: Array, weight: Array) -> tuple[Array, tuple]:
    x, weight = f32(x, "x"), f32(weight, "weight")
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x, weight: expected (..., in) and (out, in), got {x.shape} and {weight.shape}")
    out = np.empty((*x.shape[:-1], weight.shape[0]), F32)
    product(isa, out, x, weight, False, True, math.prod(x.shape[:-1]), *weight.shape)
    return out, (x, weight)


def linear_backward(isa: int, dout: Array, cache: tuple, need_dweight: bool = True) -> tuple[Array, Array | None]:
    x, weight = cache
    dout, x, weight = f32(dout, "dout"), f32(x, "x"), f32(weight, "weight")
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x, weight: expected (..., in) and (out, in), got {x.shape} and {weight.shape}")
    expected = (*x.shape[:-1], weight.shape[0])
    need(dout.shape == expected, f"dout: expected {expected}, got {dout.shape}")
    rows = math.prod(x.shape[:-1])
    wide, narrow = weight.shape
    dx = np.empty(x.shape, F32)
    product(isa, dx, dout, weight, False, False, rows, narrow, wide)
    if not need_dweight:
        return dx, None
    dweight = np.empty(weight.shape, F32)
    product(isa, dweight, dout, x, True, False, wide, narrow, rows)
    return dx, dweight


def bias_forward(isa: int, x: Array, bias: Array) -> tuple[Array, tuple]:
    x, bias = f32(x, "x"), f32(bias, "bias")
    width = _width(x, bias, "x", "bias")
    out = np.empty(x.shape, F32)
    lib.me_bias_forward(isa, floats(out), floats(x), floats(bias), x.size // width, width)
    return out, ()


def bias_backward(isa: int, dout: Array, cache: tuple) -> tuple[Array, Array]:
    flat = f32(dout, "dout")
    need(flat.ndim >= 1 and flat.shape[-1] > 0, f"dout: expected (..., C), got {flat.shape}")
    width = flat.shape[-1]
    rows = flat.size // width
    dbias, parts = np.empty(width, F32), np.empty((lib.me_parts(rows), width), F32)
    lib.me_bias_backward(isa, floats(dbias), floats(parts), floats(flat), rows, width)
    return dout, dbias


def rms_norm_forward(isa: int, x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    x, weight = f32(x, "x"), f32(weight, "weight")
    width = _width(x, weight, "x", "weight")
    out, rstd = np.empty(x.shape, F32), np.empty(x.shape[:-1], F32)
    lib.me_rms_norm_forward(isa, floats(out), floats(rstd), floats(x), floats(weight), eps, rstd.size, width)
    return out, (x, weight, rstd)


def rms_norm_backward(isa: int, dout: Array, cache: tuple) -> tuple[Array, Array]:
    x, weight, rstd = cache
    dout, x, weight, rstd = f32(dout, "dout"), f32(x, "x"), f32(weight, "weight"), f32(rstd, "rstd")
    width = _width(x, weight, "x", "weight")
    same_shape(dout, x, "dout", "x")
    need(rstd.shape == x.shape[:-1], f"rstd: expected {x.shape[:-1]}, got {rstd.shape}")
    dx, dweight, parts = np.empty(x.shape, F32), np.empty(width, F32), np.empty((lib.me_parts(rstd.size), width), F32)
    lib.me_rms_norm_backward(
        isa,
        floats(dx),
        floats(dweight),
        floats(parts),
        floats(dout),
        floats(x),
        floats(weight),
        floats(rstd),
        rstd.size,
        width,
    )
    return dx, dweight


def layer_norm_forward(isa: int, x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, tuple]:
    x, weight, bias = f32(x, "x"), f32(weight, "weight"), f32(bias, "bias")
    width = _width(x, weight, "x", "weight")
    same_shape(bias, weight, "bias", "weight")
    out, mean, rstd = np.empty(x.shape, F32), np.empty(x.shape[:-1], F32), np.empty(x.shape[:-1], F32)
    lib.me_layer_norm_forward(
        isa, floats(out), floats(mean), floats(rstd), floats(x), floats(weight), floats(bias), eps, rstd.size, width
    )
    return out, (x, weight, mean, rstd)


def layer_norm_backward(isa: int, dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    x, weight, mean, rstd = cache
    dout, x, weight, mean, rstd = (
        f32(dout, "dout"), f32(x, "x"), f32(weight, "weight"), f32(mean, "mean"), f32(rstd, "rstd"),
    )  # fmt: skip
    width = _width(x, weight, "x", "weight")
    same_shape(dout, x, "dout", "x")
    need(
        mean.shape == rstd.shape == x.shape[:-1], f"mean, rstd: expected {x.shape[:-1]}, got {mean.shape}, {rstd.shape}"
    )
    dx, dweight, dbias = np.empty(x.shape, F32), np.empty(width, F32), np.empty(width, F32)
    parts = np.empty((2, lib.me_parts(rstd.size), width), F32)
    lib.me_layer_norm_backward(
        isa, floats(dx), floats(dweight), floats(dbias), floats(parts), floats(dout), floats(x), floats(weight),
        floats(mean), floats(rstd), rstd.size, width,
    )  # fmt: skip
    return dx, dweight, dbias


def _rotate(isa: int, x: Array, cos: Array, sin: Array, sign: float, name: str) -> Array:
    x, cos, sin = f32(x, name), f32(cos, "cos"), f32(sin, "sin")
    if x.ndim != 4 or x.shape[3] % 2 or cos.shape != (x.shape[1], x.shape[3] // 2) or sin.shape != cos.shape:
        raise ValueError(
            f"{name}, cos, sin: expected (B, T, H, D), D even, and twice (T, D/2), "
            f"got {x.shape}, {cos.shape}, {sin.shape}"
        )
    out = np.empty(x.shape, F32)
    lib.me_rotary(isa, floats(out), floats(x), floats(cos), floats(sin), sign, *x.shape)
    return out


def rotary_forward(isa: int, x: Array, cos: Array, sin: Array) -> tuple[Array, tuple]:
    return _rotate(isa, x, cos, sin, 1.0, "x"), (cos, sin)


def rotary_backward(isa: int, dout: Array, cache: tuple) -> Array:
    cos, sin = cache
    return _rotate(isa, dout, cos, sin, -1.0, "dout")


def swiglu_forward(isa: int, gate: Array, up: Array) -> tuple[Array, tuple]:
    gate, up = f32(gate, "gate"), f32(up, "up")
    same_shape(up, gate, "up", "gate")
    out = np.empty(gate.shape, F32)
    lib.me_swiglu_forward(isa, floats(out), floats(gate), floats(up), out.size)
    return out, (gate, up)


def swiglu_backward(isa: int, dout: Array, cache: tuple) -> tuple[Array, Array]:
    gate, up = cache
    dout, gate, up = f32(dout, "dout"), f32(gate, "gate"), f32(up, "up")
    same_shape(up, gate, "up", "gate")
    same_shape(dout, gate, "dout", "gate")
    dgate, dup = np.empty(gate.shape, F32), np.empty(gate.shape, F32)
    lib.me_swiglu_backward(isa, floats(dgate), floats(dup), floats(dout), floats(gate), floats(up), gate.size)
    return dgate, dup


def gelu_forward(isa: int, x: Array) -> tuple[Array, tuple]:
    x = f32(x, "x")
    out = np.empty(x.shape, F32)
    lib.me_gelu_forward(isa, floats(out), floats(x), x.size)
    return out, (x,)


def gelu_backward(isa: int, dout: Array, cache: tuple) -> Array:
    (x,) = cache
    dout, x = f32(dout, "dout"), f32(x, "x")
    same_shape(dout, x, "dout", "x")
    dx = np.empty(x.shape, F32)
    lib.me_gelu_backward(isa, floats(dx), floats(dout), floats(x), x.size)
    return dx


OPS = {
    f.__name__: f
    for f in (
        embedding_forward, embedding_backward, linear_forward, linear_backward, bias_forward, bias_backward,
        rms_norm_forward, rms_norm_backward, layer_norm_forward, layer_norm_backward, rotary_forward,
        rotary_backward, swiglu_forward, swiglu_backward, gelu_forward, gelu_backward,
    )
}  # fmt: skip
