"""Loss, optimizer, masks and noise against formulas written once more."""

from __future__ import annotations

import math
import zlib

import numpy as np

from op_checks.bounds import EXP, U, exact, gamma, within
from op_checks.layers import numbers, wide

__all__ = [
    "check_adamw", "check_cross_entropy", "check_linear_both", "check_masks", "check_noise", "check_sum_squares",
    "scalar_normal",
]  # fmt: skip


def check_cross_entropy(ops, seed, N, V, scale=3.0):
    r"""lse = top + log sum exp(l - top): the differences err by u |l - top|, weighted by p; exp EXP u, the sum V u,
    log EXP u of itself, the last sum u |lse|. loss adds u |lse - l_target|, its sum over rows is float64.

    dlogits = w (p - onehot): p errs by its exponent's e_lse + u |l - lse| and EXP u; the factor and the product 3u.
    """
    logits, dummy = numbers(seed, (N, V), (N,))
    logits = logits * np.float32(scale)
    weights = np.abs(dummy) / np.float32(N)
    targets = np.random.default_rng(seed).integers(0, V, N)
    (L, W) = wide(logits, weights)
    lse = np.logaddexp.reduce(L, axis=1)
    p = np.exp(L - lse[:, None])
    top = L.max(axis=1, keepdims=True)
    log = np.abs(lse - top[:, 0])
    e_lse = (p * (top - L)).sum(axis=1) * U + (EXP + V) * U + EXP * U * log + U * np.abs(lse)
    nll = np.array([lse[i] - L[i, targets[i]] for i in range(N)])
    loss, cache = ops.cross_entropy_forward(logits, targets, weights)
    assert isinstance(loss, float), f"cross_entropy_forward: expected a Python float, got {type(loss)}"
    within("cross_entropy_forward", loss, math.fsum(W * nll), (W * (e_lse + U * np.abs(nll))).sum())
    onehot = targets[:, None] == np.arange(V)
    dloss = 0.7
    bound = p * (e_lse[:, None] + U * np.abs(L - lse[:, None]) + (EXP + 4) * U) + 4 * U * onehot
    bound = dloss * W[:, None] * bound
    within("cross_entropy_backward", ops.cross_entropy_backward(dloss, cache), dloss * W[:, None] * (p - onehot), bound)


def check_adamw(ops, seed, n, step, grad_scale=1.0):
    r"""m: two products and a sum, constants rounded to float32: 5u of |b1 m| + |(1 - b1) g|; v likewise 7u, all terms
    positive. The step lr m_hat / (sqrt(v_hat) + eps): m's error, half of v's, and 10 more roundings; the decayed
    weight 4u.
    """
    param, grad, m, v = numbers(seed, (n,), (n,), (n,), (n,))
    lr, b1, b2, eps, decay = 1e-2, 0.9, 0.95, 1e-8, 0.1
    param, m, v = param.copy(), m.copy(), (v * v).astype(np.float32)
    P, Gr, M, Va = wide(param, grad, m, v)
    ops.adamw_(param, grad, m, v, lr, b1, b2, eps, decay, step, grad_scale)
    g = grad_scale * Gr
    new_m, new_v = b1 * M + (1 - b1) * g, b2 * Va + (1 - b2) * g**2
    size_m = np.abs(b1 * M) + np.abs((1 - b1) * g)
    within("adamw_ m", m, new_m, 6 * U * size_m)
    within("adamw_ v", v, new_v, 8 * U * new_v)
    root = np.sqrt(new_v / (1 - b2**step)) + eps
    move = lr * new_m / (1 - b1**step) / root
    bound = 4 * U * np.abs(P) + 20 * U * lr * size_m / (1 - b1**step) / root + U * np.abs(move)
    within("adamw_ param", param, P - lr * decay * P - move, bound)


def check_sum_squares(ops, seed, n):
    """float64 accumulation: n roundings of 2^-53."""
    (x,) = numbers(seed, (n,))
    want = math.fsum(float(a) ** 2 for a in x)
    assert abs(ops.sum_squares(x) - want) <= (n + 2) * 2.0**-53 * want, "sum_squares: not accumulated in float64"


def check_masks(ops, seed, rows, cols):
    """A kept weight keeps every bit (NaN and -0.0 too), a pruned one becomes +0.0; packing loses nothing."""
    (weight,) = numbers(seed, (rows, cols))
    weight = weight.copy()
    weight.flat[:: max(1, weight.size // 3)] = (np.nan, -0.0, -np.inf, 1e-42)[seed % 4]
    random = np.random.default_rng(seed).random((rows, cols))
    for density in (0.0, 0.5, 1.0):
        _check_mask(ops, weight, random < density)


def _check_mask(ops, weight, mask):
    groups = [mask.flat[j : j + 8] for j in range(0, mask.size, 8)]
    bits = np.array([sum(int(kept) << i for i, kept in enumerate(group)) for group in groups]).astype(np.uint8)
    want = weight.copy()
    for i in range(mask.size):
        if not mask.flat[i]:
            want.flat[i] = 0.0
    exact("mask_apply", ops.mask_apply(weight, bits), want)
    packed = ops.sparse_pack(weight, bits)
    kept = [weight.flat[i] for i in range(weight.size) if mask.flat[i]]
    exact("sparse_pack", packed, np.array(kept, dtype=np.float32))
    exact("sparse_unpack", ops.sparse_unpack(packed, bits, weight.shape), want)
    half = weight.astype(np.float16)
    again = ops.sparse_unpack(ops.sparse_pack(half, bits), bits, half.shape)
    exact("sparse_pack and back, float16", again, want.astype(np.float16))
    inplace = weight.copy()
    ops.mask_apply_(inplace, bits)
    exact("mask_apply_", inplace, want)


def scalar_normal(seed: int, step: int, sample: int, tensor: int, i: int) -> np.float32:
    """Element i of the stream: Philox4x32-10 on Python integers, then the stated float32 operations one at a time."""
    from minedge.ops.numpy_ops.noise import LOG2_COEFFICIENTS, NORMAL_COEFFICIENTS

    f = np.float32
    c, k = (i // 4, tensor, step, sample), (seed % 2**32, seed // 2**32)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = ((second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32)
        k = ((k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32)
    u = f(c[i % 4] >> 9) * f(2.0**-23) + f(2.0**-24)
    v = f(1) - u
    mantissa, e = math.frexp(float(u * v))  # u v = mantissa 2^e, mantissa in [1/2, 1)
    if f(mantissa) < f(math.sqrt(0.5)):
        mantissa, e = 2 * mantissa, e - 1
    t = f(mantissa) - f(1)
    total = LOG2_COEFFICIENTS[5]
    for coefficient in LOG2_COEFFICIENTS[4::-1]:
        total = total * t + coefficient
    y = total * t + f(e + 13)
    total = NORMAL_COEFFICIENTS[13]
    for coefficient in NORMAL_COEFFICIENTS[12::-1]:
        total = total * y + coefficient
    return (u - v) * total


def check_noise(ops, seed, count, start, rows=3):
    """Every bit of the stream, wherever it is cut, and the stated order of the update: products and sum each rounded
    to float32.
    """
    name = zlib.crc32(b"model.norm.weight")
    key = (seed * 0x9E3779B97F4A7C15) % 2**64
    at = (key, 5, 1, name)
    want = np.array([scalar_normal(*at, start + i) for i in range(count)], np.float32)
    exact("normal", ops.normal(*at, start, count), want)
    (weight,) = numbers(seed, (rows, count))
    z = np.concatenate([want, ops.normal(*at, start + count, (rows - 1) * count)]).reshape(rows, count)
    scale, decay = np.float32(1e-3), np.float32(0.999)
    exact("perturb", ops.perturb(weight, 1e-3, *at, start), weight + scale * z)
    plus, minus = ops.perturb_both(weight, 1e-3, *at, start)
    exact("perturb_both, +", plus, weight + scale * z)
    exact("perturb_both, -", minus, weight - scale * z)
    inplace = weight.copy()
    ops.perturb_(inplace, 0.999, 1e-3, *at, start)
    exact("perturb_", inplace, decay * weight + scale * z)


def check_linear_both(ops, seed, N, C, M):
    """Dot products of length C with the rounded w + scale z and w - scale z: n u sum |a_i b_i|; and bit for bit what
    the tier's own perturbed copies give.
    """
    x, weight = numbers(seed, (2, N, C), (M, C))
    at = (seed, 5, 1, zlib.crc32(b"lm_head.weight"))
    z = ops.normal(*at, 0, M * C).reshape(M, C)
    out = ops.linear_both(x, weight, 0.5, *at)
    for side, sign in enumerate((1, -1)):
        moved = weight + np.float32(0.5 * sign) * z
        X, W = wide(x[side], moved)
        within("linear_both", out[side], np.einsum("nc,mc->nm", X, W), gamma(C) * (np.abs(X) @ np.abs(W).T))
        exact("linear_both against copies", out[side], ops.linear_forward(x[side], moved)[0])
