"""What a6 tests. The references are the library's own functions; cases are drawn anew for every seed."""

from __future__ import annotations

import numpy as np

from minedge.compress import int4
from minedge.course.properties import Gradient, Property
from minedge.ops import get
from minedge.ops.numpy_ops import int4 as ops

NUMPY = get("numpy")
F32 = np.float32
SHAPES = ((2, 64, 32), (1, 32, 32), (3, 128, 64), (5, 256, 128))  # out, in, group_size


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(F32)


def quantize_cases(rng):
    for out, width, group in SHAPES:
        yield {"weight": normal(rng, out, width), "group_size": group}
    ties = rng.integers(-7, 8, (4, 64)).astype(F32)  # d = +-1: codes at and between whole numbers, many exact halves
    ties[:, ::32] = F32(8) * rng.choice([-1, 1], (4, 2))
    ties[:, 1::2] /= 2
    yield {"weight": ties, "group_size": 32}
    zeros = normal(rng, 3, 64)
    zeros[1, :32] = zeros[2] = 0
    yield {"weight": zeros, "group_size": 32}
    clipped = np.abs(normal(rng, 2, 64))  # the side opposite the largest value, nearly as large
    clipped[:, 0::32], clipped[:, 1::32] = -4, 3.99
    yield {"weight": clipped, "group_size": 32}
    outlier = normal(rng, 2, 128)
    outlier[:, 5::32] *= 40
    yield {"weight": outlier, "group_size": 128}
    yield {"weight": normal(rng, 2, 64) * F32(1e-42), "group_size": 32}  # denormals: 1/d is infinite
    yield {"weight": normal(rng, 64, 256), "group_size": 32}


def quantize(weight, group_size):
    qweight, scales = ops.int4_quantize(weight, group_size)
    return {"qweight": qweight, "scales": scales}


def code_cases(rng):
    for out, width in ((1, 32), (2, 64), (3, 160)):
        yield {"codes": rng.integers(0, 16, (out, width)).astype(np.uint8)}


def byte_cases(rng):
    for out, width in ((1, 32), (2, 64), (3, 160)):
        yield {"qweight": rng.integers(0, 256, (out, width // 2)).astype(np.uint8)}
    yield {"qweight": rng.permutation(256).astype(np.uint8).reshape(4, 64)}  # every byte


def packed_cases(rng):
    for out, width, group in ((2, 64, 32), (3, 128, 64), (2, 256, 128), (7, 96, 32)):
        yield {
            "qweight": rng.integers(0, 256, (out, width // 2)).astype(np.uint8),
            "scales": normal(rng, out, width // group).astype(np.float16), "group_size": group,
        }  # fmt: skip


def linear_cases(rng):
    for batch, case in zip(((4,), (2, 3), (), (1,)), packed_cases(rng), strict=True):
        yield {"x": rng.standard_normal((*batch, case["qweight"].shape[1] * 2)), **case}


def int8_cases(rng):
    for shape in ((1, 64), (32,), (2, 3, 96)):
        yield {"x": normal(rng, *shape)}
    x = rng.integers(-254, 255, (3, 64)).astype(F32) / 2  # d = 1: half of all are exact halves
    x[:, ::32] = 127
    yield {"x": x}
    x = normal(rng, 2, 64)
    x[0, :32] = 0
    yield {"x": x}
    yield {"x": -np.abs(normal(rng, 2, 64))}


def int8_quantize(x):
    xq, xscales = ops.int8_quantize(x)
    return {"xq": xq, "xscales": xscales}


def partial_cases(rng):
    for rows, out, width in ((1, 2, 64), (3, 4, 128), (2, 5, 32)):
        yield {
            "xq": rng.integers(-127, 128, (rows, width)).astype(np.int8),
            "qweight": rng.integers(0, 256, (out, width // 2)).astype(np.uint8),
        }  # fmt: skip
    yield {"xq": np.full((1, 64), -128, np.int8), "qweight": np.zeros((2, 32), np.uint8)}  # the largest sums there are


def int8_linear_cases(rng):
    for batch, case in zip(((4,), (2, 3), (), (1,)), packed_cases(rng), strict=True):
        yield {"x": normal(rng, *batch, case["qweight"].shape[1] * 2), **case}


def mse_cases(rng):
    for out, width, group in SHAPES:
        yield {"weight": normal(rng, out, width), "group_size": group}
    weight = normal(rng, 3, 64)
    weight[0, :32] = 0
    weight[1, 3] = 30
    yield {"weight": weight, "group_size": 32}


def mse_scales(weight, group_size):
    qweight, scales = int4._mse_rows(weight, group_size, NUMPY)
    gap = weight.astype(np.float64) - ops.int4_dequantize(qweight, scales, group_size)
    return {"error": np.square(gap).reshape(len(weight), -1, group_size).sum(-1)}


def linear_forward(x, qweight, scales, group_size):
    out, cache = ops.int4_linear_forward(x, qweight, scales, group_size)
    return {"out": out, "cache": list(cache)}


PROPERTIES = [
    Property("a6.1", "quantize", quantize_cases, quantize, "codes and scales as GGML's Q4_0 has them, bit for bit", 0),
    Property("a6.2", "pack_codes", code_cases, lambda codes: {"qweight": int4._pack(codes)}, "codes j and j + 16"),
    Property("a6.2", "unpack_codes", byte_cases, lambda qweight: {"codes": int4._unpack(qweight)}, "the way back"),
    Property("a6.2", "signed_codes", byte_cases, lambda qweight: {"codes": ops._codes(qweight)}, "code - 8, int8"),
    Property(
        "a6.3", "dequantize", packed_cases, lambda **case: {"weight": ops.int4_dequantize(**case)},
        "scale * (code - 8)", 1e-6,
    ),
    Property("a6.3", "linear_forward", linear_cases, linear_forward, "x @ weight.T", 1e-6),
    Gradient(
        "a6.3", "linear_backward", linear_cases, ops.int4_linear_forward,
        lambda dout, cache: {"dx": ops.int4_linear_backward(dout, tuple(cache))}, ("x",), "dx; codes have no gradient",
    ),
    Property("a6.4", "int8_quantize", int8_cases, int8_quantize, "127 steps a side, halves away from zero", 1e-7),
    Property(
        "a6.5", "partials", partial_cases, lambda xq, qweight: {"partial": ops.int4_int8_partials(xq, qweight)},
        "the integers, exactly",
    ),
    Property(
        "a6.5", "int8_linear", int8_linear_cases, lambda **case: {"out": ops.int4_int8_linear(**case)},
        "both scales put back, block by block", 1e-5,
    ),
    Property("a6.6", "mse_scales", mse_cases, mse_scales, "each group's smallest squared error", 1e-6),
]  # fmt: skip
