r"""Layers of a decoder as forward/backward pairs: the specification.

Legend: B batch, T tokens, C channels, H heads, D head_dim, V vocabulary; `...` stands for any leading dimensions.
Every `f_forward` returns `(out, cache)`; the matching `f_backward(dout, cache)` returns the gradients of f's array
arguments in their order. Nothing is mutated. float32 and float64 both work: gradient checks run in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "bias_backward",
    "bias_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "swiglu_backward",
    "swiglu_forward",
]

Array = NDArray[np.floating]
GELU_SCALE = float(np.sqrt(2.0 / np.pi))
GELU_CUBIC = 0.044715


def embedding_forward(ids: NDArray[np.integer], weight: Array) -> tuple[Array, tuple]:
    """Look up rows: `out[...] = weight[ids[...]]`. ids (...), weight (V, C) -> out (..., C)."""
    return weight[ids], (ids, weight.shape)


def embedding_backward(dout: Array, cache: tuple) -> Array:
    """A row used many times gathers every gradient: `dweight[v] = sum of dout where ids == v`. -> (V, C)."""
    ids, shape = cache
    # BEGIN SOLUTION a1.3
    dweight = np.zeros(shape, dtype=dout.dtype)
    np.add.at(dweight, ids.ravel(), dout.reshape(-1, shape[1]))
    return dweight
    # END SOLUTION


def linear_forward(x: Array, weight: Array) -> tuple[Array, tuple]:
    """`out = x @ weight.T`. x (..., in), weight (out, in) -> out (..., out)."""
    return x @ weight.T, (x, weight)


def linear_backward(dout: Array, cache: tuple, need_dweight: bool = True) -> tuple[Array, Array | None]:
    """`dx = dout @ weight`, `dweight = dout.T @ x` summed over the leading dimensions; None where the weight is
    frozen.
    """
    x, weight = cache
    # BEGIN SOLUTION a1.3
    dx = dout @ weight
    if not need_dweight:
        return dx, None
    dweight = dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dx, dweight
    # END SOLUTION


def bias_forward(x: Array, bias: Array) -> tuple[Array, tuple]:
    """`out = x + bias`. x (..., C), bias (C,)."""
    return x + bias, ()


def bias_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """-> dx (the same array as dout), dbias (C,)."""
    return dout, dout.reshape(-1, dout.shape[-1]).sum(axis=0)


def rms_norm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    r"""`out = x * rstd * weight` with `rstd = 1 / sqrt(mean(x^2) + eps)` over the last axis (arXiv:1910.07467).

    x (..., C), weight (C,) -> out (..., C); the cache keeps rstd (...,).
    """
    # BEGIN SOLUTION a1.1
    rstd = 1.0 / np.sqrt(np.mean(x * x, axis=-1) + eps)
    rstd = rstd.astype(x.dtype)
    return x * rstd[..., None] * weight, (x, weight, rstd)
    # END SOLUTION


def rms_norm_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """With n = x * rstd: `dx = rstd * (dn - n * mean(dn * n))`, `dweight = sum(dout * n)`."""
    x, weight, rstd = cache
    # BEGIN SOLUTION a1.1
    n = x * rstd[..., None]
    dn = dout * weight  # inverts `n * weight`
    dx = rstd[..., None] * (dn - n * np.mean(dn * n, axis=-1, keepdims=True))
    dweight = (dout * n).reshape(-1, x.shape[-1]).sum(axis=0)
    return dx, dweight
    # END SOLUTION


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, tuple]:
    r"""`out = (x - mean) * rstd * weight + bias`, `rstd = 1 / sqrt(mean((x - mean)^2) + eps)` (arXiv:1607.06450).

    The variance comes from centred values: E[x^2] - E[x]^2 cancels where the mean is large. The cache keeps x, weight,
    mean and rstd, the last two without the axis they are taken over: (...,).
    """
    # BEGIN SOLUTION a1.2
    mean = x.mean(axis=-1)
    centred = x - mean[..., None]
    rstd = (1.0 / np.sqrt(np.mean(centred * centred, axis=-1) + eps)).astype(x.dtype)
    return centred * rstd[..., None] * weight + bias, (x, weight, mean, rstd)
    # END SOLUTION


def layer_norm_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """With n = (x - mean) * rstd: `dx = rstd * (dn - mean(dn) - n * mean(dn * n))`. -> dx, dweight, dbias."""
    x, weight, mean, rstd = cache
    # BEGIN SOLUTION a1.2
    n = (x - mean[..., None]) * rstd[..., None]
    dn = dout * weight
    dx = rstd[..., None] * (dn - dn.mean(axis=-1, keepdims=True) - n * np.mean(dn * n, axis=-1, keepdims=True))
    flat = (-1, x.shape[-1])
    return dx, (dout * n).reshape(flat).sum(axis=0), dout.reshape(flat).sum(axis=0)
    # END SOLUTION


def rotary_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple]:
    """Turn the pair (x[i], x[i + D/2]) by the angle of its position (arXiv:2104.09864, pairs split in halves as
    Hugging Face does).

    x (B, T, H, D), cos and sin (T, D/2) -> out (B, T, H, D).
    """
    # BEGIN SOLUTION a1.4
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    c, s = cos[:, None, :].astype(x.dtype), sin[:, None, :].astype(x.dtype)  # (T, 1, D/2): broadcast over heads
    return np.concatenate([first * c - second * s, second * c + first * s], axis=-1), (cos, sin)
    # END SOLUTION


def rotary_backward(dout: Array, cache: tuple) -> Array:
    """A rotation's transpose turns back: the forward with -sin."""
    cos, sin = cache
    # BEGIN SOLUTION a1.4
    return rotary_forward(dout, cos, -sin)[0]
    # END SOLUTION


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple]:
    """`out = silu(gate) * up`, `silu(g) = g / (1 + exp(-g))` (arXiv:2002.05202)."""
    return gate * _sigmoid(gate) * up, (gate, up)


def swiglu_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """`silu'(g) = s * (1 + g * (1 - s))` with s = sigmoid(g). -> dgate, dup."""
    gate, up = cache
    # BEGIN SOLUTION a1.5
    s = _sigmoid(gate)
    return dout * up * s * (1.0 + gate * (1.0 - s)), dout * gate * s
    # END SOLUTION


def gelu_forward(x: Array) -> tuple[Array, tuple]:
    """`out = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))` (arXiv:1606.08415, the tanh form that GPT-2 uses)."""
    inner = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    return 0.5 * x * (1.0 + np.tanh(inner)), (x,)


def gelu_backward(dout: Array, cache: tuple) -> Array:
    """`d/dx = (1 + t)/2 + x/2 * (1 - t^2) * sqrt(2/pi) * (1 + 3 * 0.044715 x^2)`, t the forward's tanh."""
    (x,) = cache
    # BEGIN SOLUTION a1.5
    t = np.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x))
    return dout * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x))
    # END SOLUTION


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) from exp(-|x|), which cannot overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)
