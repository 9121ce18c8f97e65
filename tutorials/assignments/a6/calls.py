"""What a6 asks of the student's int4_ops.py and int4.py; runs beside them."""

from __future__ import annotations

import sys

import numpy as np

from minedge.compress import int4
from minedge.ops import get

OPS = get("numpy")


def quantize(student, weight, group_size):
    qweight, scales = student.int4_ops.int4_quantize(weight, group_size)
    return {"qweight": qweight, "scales": scales}


def pack_codes(student, codes):
    return {"qweight": student.int4._pack(codes)}


def unpack_codes(student, qweight):
    return {"codes": student.int4._unpack(qweight)}


def signed_codes(student, qweight):
    return {"codes": student.int4_ops._codes(qweight)}


def dequantize(student, qweight, scales, group_size):
    return {"weight": student.int4_ops.int4_dequantize(qweight, scales, group_size)}


def linear_forward(student, x, qweight, scales, group_size):
    out, cache = student.int4_ops.int4_linear_forward(x, qweight, scales, group_size)
    return {"out": out, "cache": list(cache)}


def linear_backward(student, dout, cache):
    return {"dx": student.int4_ops.int4_linear_backward(dout, tuple(cache))}


def int8_quantize(student, x):
    xq, xscales = student.int4_ops.int8_quantize(x)
    return {"xq": xq, "xscales": xscales}


def partials(student, xq, qweight):
    return {"partial": student.int4_ops.int4_int8_partials(xq, qweight)}


def int8_linear(student, x, qweight, scales, group_size):
    return {"out": student.int4_ops.int4_int8_linear(x, qweight, scales, group_size)}


def mse_scales(student, weight, group_size):
    """The squared error of each group by what `_mse_rows` returns; the library packs and unpacks for it."""
    module = sys.modules["student_int4"]
    old = module._pack, module._unpack
    module._pack, module._unpack = int4._pack, int4._unpack
    try:
        qweight, scales = student.int4._mse_rows(weight, group_size, OPS)
    finally:
        module._pack, module._unpack = old
    read = OPS.int4_dequantize(qweight, scales, group_size)
    error = np.square(weight.astype(np.float64) - read).reshape(len(weight), -1, group_size).sum(-1)
    return {"error": error}
