"""Layers against formulas written once more in float64, with the bound each float32 implementation must keep.

Legend: u the rounding unit, N rows, C channels. Every check takes the ops to test, a seed and sizes, and raises
AssertionError.
"""

from __future__ import annotations

import numpy as np

from op_checks.bounds import EXP, TINY, U, exact, gamma, within

__all__ = [
    "check_bias",
    "check_embedding",
    "check_gelu",
    "check_layer_norm",
    "check_linear",
    "check_rms_norm",
    "check_rotary",
    "check_swiglu",
    "numbers",
]

EPS = 1e-5


def numbers(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Read-only float32 normal numbers, as weights are."""
    rng = np.random.default_rng(seed)
    out = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for a in out:
        a.flags.writeable = False
    return out


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in arrays]


def check_embedding(ops, seed, N, C, V):
    """Forward copies. Backward: element v sums at most count(v) numbers."""
    weight, dout = numbers(seed, (V, C), (N, 2, C))
    ids = np.random.default_rng(seed).integers(0, V, (N, 2))
    out, cache = ops.embedding_forward(ids, weight)
    exact("embedding_forward", out, np.array([[weight[i] for i in row] for row in ids]))
    onehot = (ids.reshape(-1)[:, None] == np.arange(V)).astype(np.float64)  # (2N, V)
    (d,) = wide(dout.reshape(-1, C))
    bound = onehot.sum(axis=0)[:, None] * U * (onehot.T @ np.abs(d))
    within("embedding_backward", ops.embedding_backward(dout, cache), onehot.T @ d, bound)


def check_linear(ops, seed, N, C, M):
    """Dot products of length C (forward), M (dx), N (dweight): n u sum |a_i b_i| each."""
    x, weight, dout = numbers(seed, (N, C), (M, C), (N, M))
    X, W, D = wide(x, weight, dout)
    out, cache = ops.linear_forward(x, weight)
    within("linear_forward", out, np.einsum("nc,mc->nm", X, W), gamma(C) * (np.abs(X) @ np.abs(W).T))
    dx, dweight = ops.linear_backward(dout, cache)
    within("linear_backward dx", dx, np.einsum("nm,mc->nc", D, W), gamma(M) * (np.abs(D) @ np.abs(W)))
    within("linear_backward dweight", dweight, np.einsum("nm,nc->mc", D, X), gamma(N) * (np.abs(D).T @ np.abs(X)))
    dx2, none = ops.linear_backward(dout, cache, need_dweight=False)
    assert none is None, "linear_backward: dweight was not wanted"
    exact("linear_backward dx without dweight", dx2, dx)


def check_bias(ops, seed, N, C):
    """One correctly rounded sum forward; a sum of N numbers backward."""
    x, bias, dout = numbers(seed, (N, C), (C,), (N, C))
    out, cache = ops.bias_forward(x, bias)
    X, B, D = wide(x, bias, dout)
    exact("bias_forward", out, (X + B).astype(np.float32))
    dx, dbias = ops.bias_backward(dout, cache)
    exact("bias_backward dx", dx, dout)
    within("bias_backward dbias", dbias, D.sum(axis=0), gamma(N) * np.abs(D).sum(axis=0))


def check_rms_norm(ops, seed, N, C):
    r"""mean(x^2) sums C positive terms: relative (C + 2) u, so rstd (C/2 + 4) u, n = x rstd one more, out one more.

    dx_i = rstd (dn_i - n_i mean(dn n)). The mean: C + 2 roundings on terms good to (C/2 + 7) u; n_i and rstd bring C
    + 10: so each of the two terms is good to (5C/2 + 22) u of its magnitude, the mean's magnitude being mean |dn n|.
    dweight sums N products dout n.
    """
    x, weight, dout = numbers(seed, (N, C), (C,), (N, C))
    X, W, D = wide(x, weight, dout)
    out, cache = ops.rms_norm_forward(x, weight, EPS)
    rstd = np.array([(sum(v * v for v in row) / C + EPS) ** -0.5 for row in X])[:, None]
    n = X * rstd
    within("rms_norm_forward", out, n * W, (C / 2 + 6) * U * np.abs(n * W))
    dx, dweight = ops.rms_norm_backward(dout, cache)
    # By the Jacobian itself: d out_i / d x_j = w_i (delta_ij rstd - x_i x_j rstd^3 / C)
    jacobian = rstd[:, :, None] * np.eye(C) - np.einsum("ni,nj->nij", X, X) * rstd[:, :, None] ** 3 / C
    want = np.einsum("ni,i,nij->nj", D, W, jacobian)
    dn = np.abs(D * W)
    size = rstd * (dn + np.abs(n) * np.mean(dn * np.abs(n), axis=1, keepdims=True))
    within("rms_norm_backward dx", dx, want, (2.5 * C + 22) * U * size)
    within("rms_norm_backward dweight", dweight, (D * n).sum(axis=0), (N + C / 2 + 8) * U * np.abs(D * n).sum(axis=0))


def check_layer_norm(ops, seed, N, C, shift=0.0):
    r"""The mean errs by em = (C + 1) u mean|x|. Centred values c err by em (all alike) + u |c|; their mean square by
    (C + 5) u relative plus em^2, so rstd by rr = (C/2 + 5) u + (em rstd)^2. n = c rstd errs by en = rstd em + |n| (rr
    + 2u).

    With `shift` large against the spread, E[x^2] - E[x]^2 would lose every digit; this bound does not allow that.
    """
    x, weight, bias, dout = numbers(seed, (N, C), (C,), (C,), (N, C))
    x = (x + np.float32(shift)).astype(np.float32)
    X, W, B, D = wide(x, weight, bias, dout)
    out, cache = ops.layer_norm_forward(x, weight, bias, EPS)
    mean = np.array([sum(row) / C for row in X])[:, None]
    c = X - mean
    rstd = (np.mean(c * c, axis=1, keepdims=True) + EPS) ** -0.5
    n = c * rstd
    em = (C + 1) * U * np.mean(np.abs(X), axis=1, keepdims=True)
    rr = (C / 2 + 5) * U + (em * rstd) ** 2
    en = rstd * em + np.abs(n) * (rr + 2 * U)
    within("layer_norm_forward", out, n * W + B, np.abs(W) * en + 3 * U * (np.abs(n * W) + np.abs(B)))
    dx, dweight, dbias = ops.layer_norm_backward(dout, cache)
    # By the Jacobian itself: d n_i / d x_j = rstd (delta_ij - 1/C - n_i n_j / C)
    jacobian = rstd[:, :, None] * (np.eye(C) - 1 / C - np.einsum("ni,nj->nij", n, n) / C)
    want = np.einsum("ni,i,nij->nj", D, W, jacobian)
    dn = np.abs(D * W)
    mean_dn, mean_dnn = dn.mean(axis=1, keepdims=True), (dn * np.abs(n)).mean(axis=1, keepdims=True)
    size = dn + mean_dn + np.abs(n) * mean_dnn
    bound = rstd * ((rr + (C + 12) * U) * size + en * mean_dnn + np.abs(n) * (dn * en).mean(axis=1, keepdims=True))
    within("layer_norm_backward dx", dx, want, bound)
    bound = (np.abs(D) * en).sum(axis=0) + (N + 2) * U * np.abs(D * n).sum(axis=0)
    within("layer_norm_backward dweight", dweight, (D * n).sum(axis=0), bound)
    within("layer_norm_backward dbias", dbias, D.sum(axis=0), gamma(N) * np.abs(D).sum(axis=0))


def check_rotary(ops, seed, B, T, H, half):
    """Turning by complex multiplication: two products and a sum, 2u of their magnitudes. Backward turns back."""
    x, dout = numbers(seed, (B, T, H, 2 * half), (B, T, H, 2 * half))
    angle = np.random.default_rng(seed).uniform(-np.pi, np.pi, (T, half))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    turn = (cos.astype(np.float64) + 1j * sin)[:, None, :]  # (T, 1, half)

    def reference(a, factor):
        z = (a[..., :half].astype(np.float64) + 1j * a[..., half:]) * factor
        first, second = np.abs(a[..., :half]).astype(np.float64), np.abs(a[..., half:]).astype(np.float64)
        c, s = np.abs(factor.real), np.abs(factor.imag)
        bound = 2 * U * np.concatenate([first * c + second * s, second * c + first * s], axis=-1)
        return np.concatenate([z.real, z.imag], axis=-1), bound

    out, cache = ops.rotary_forward(x, cos, sin)
    within("rotary_forward", out, *reference(x, turn))
    within("rotary_backward", ops.rotary_backward(dout, cache), *reference(dout, turn.conj()))


def check_swiglu(ops, seed, n, scale=3.0):
    r"""sigmoid = 1 / (1 + exp(-g)): EXP u + 2u relative, then two products. dgate = dout up (s + g s (1 - s)): s (1 -
    s) is good to (EXP + 4) u of s, whichever way 1 - s is made, and two terms of opposite sign may cancel, so their
    magnitudes count.
    """
    gate, up, dout = numbers(seed, (n,), (n,), (n,))
    gate = gate * np.float32(scale)
    G, P, D = wide(gate, up, dout)
    s, rest = np.exp(-np.logaddexp(0, -G)), np.exp(-np.logaddexp(0, G))  # sigmoid(G) and 1 - sigmoid(G)
    out, cache = ops.swiglu_forward(gate, up)
    within("swiglu_forward", out, G * s * P, (EXP + 5) * U * np.abs(G * s * P) + TINY * np.abs(G * P))
    dgate, dup = ops.swiglu_backward(dout, cache)
    want = D * P * s * (1 + G * rest)
    bound = (EXP + 4 + 6) * U * np.abs(D * P * s) * (1 + np.abs(G)) + TINY * np.abs(D * P) * (1 + np.abs(G))
    within("swiglu_backward dgate", dgate, want, bound)
    within("swiglu_backward dup", dup, D * G * s, (EXP + 5) * U * np.abs(D * G * s) + TINY * np.abs(D * G))


def check_gelu(ops, seed, n, scale=2.0):
    r"""y = K (x + c x^3): both terms have one sign, so y is good to 8u. tanh moves by (1 - t^2) 8u |y| <= 4u, plus
    EXP u of itself: t errs by (EXP + 4) u =: et. out = x/2 (1 + t): |x|/2 et plus 3 roundings of |x|.

    dx = dout ((1 + t)/2 + x/2 (1 - t^2) y'): the first term errs by et/2 + u; in the second 1 - t^2 errs by 2 et +
    2u, times |x y'| / 2, and its 8 roundings weigh |x/2 (1 - t^2) y'| <= |x y'| / 2.
    """
    x, dout = numbers(seed, (n,), (n,))
    x = x * np.float32(scale)
    X, D = wide(x, dout)
    K, c = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(K * (X + c * X**3))
    et = (EXP + 4) * U
    out, cache = ops.gelu_forward(x)
    within("gelu_forward", out, X * (1 + t) / 2, np.abs(X) * (et / 2 + 3 * U))
    h = 1e-5  # derivative of the float64 forward by differences: h^2 f''' / 6 and u64 / h stay below 1e-10
    value = lambda z: z * (1 + np.tanh(K * (z + c * z**3))) / 2  # noqa: E731
    want = D * (8 * (value(X + h) - value(X - h)) - (value(X + 2 * h) - value(X - 2 * h))) / (12 * h)
    slope = K * (1 + 3 * c * X * X)
    bound = np.abs(D) * (et / 2 + 3 * U + np.abs(X) * slope / 2 * (2 * et + 10 * U))
    within("gelu_backward", ops.gelu_backward(dout, cache), want, bound + 1e-9 * np.abs(D))
