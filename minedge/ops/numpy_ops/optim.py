r"""AdamW's update and the sum of squares that clipping needs: the specification."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["adamw_", "sum_squares"]

Array = NDArray[np.floating]


def adamw_(
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
    r"""One AdamW step in place on `param`, `m` and `v` (arXiv:1711.05101, Alg. 2). `step` counts from 1.

    g = grad_scale * grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    param = param - lr * weight_decay * param;  param = param - lr * (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) +
    eps)

    `grad_scale` is where gradient clipping enters, so that no scaled copy of the gradient is made.
    """
    g = grad * param.dtype.type(grad_scale)
    m *= beta1
    m += (1.0 - beta1) * g
    v *= beta2
    v += (1.0 - beta2) * g * g
    m_hat = m / (1.0 - beta1**step)
    v_hat = v / (1.0 - beta2**step)
    param -= lr * weight_decay * param
    param -= lr * m_hat / (np.sqrt(v_hat) + eps)


def sum_squares(x: Array) -> float:
    """sum(x^2), added up in float64."""
    flat = x.ravel().astype(np.float64)
    return float(flat @ flat)
