"""AdamW and the sum of squares in C; numpy_ops/optim.py says what they compute."""

from __future__ import annotations

import numpy as np

from minedge.ops.c_ops.checks import f32, f32_inplace, need, no_overlap, same_shape
from minedge.ops.c_ops.native import doubles, floats, lib

__all__ = ["OPS"]

Array = np.ndarray


def adamw_(
    isa: int,
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    param, m, v = f32_inplace(param, "param"), f32_inplace(m, "m"), f32_inplace(v, "v")
    grad = f32(grad, "grad")
    for array, name in ((grad, "grad"), (m, "m"), (v, "v")):
        same_shape(array, param, name, "param")
    need(step >= 1, f"step: expected 1 or more, got {step}")
    no_overlap(param=param, grad=grad, m=m, v=v)
    step_size, v_scale = lr / (1.0 - beta1**step), 1.0 / (1.0 - beta2**step)
    lib.me_adamw(
        isa, floats(param), floats(m), floats(v), floats(grad), lr * weight_decay, step_size, beta1, beta2, v_scale,
        eps, float(grad_scale), param.size,
    )  # fmt: skip


def sum_squares(isa: int, x: Array) -> float:
    x = f32(x, "x")
    terms = np.empty((x.size + 4095) // 4096, np.float64)
    return lib.me_sum_squares(isa, doubles(terms), floats(x), x.size)


OPS = {f.__name__: f for f in (adamw_, sum_squares)}
