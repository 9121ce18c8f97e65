r"""Every kernel that needs an exponential: SwiGLU, GELU, attention, cross-entropy.

They share one file with `_exp` because Numba's disk cache notices a change only in the file where a kernel itself
stands. The C library's expf does not vectorise; `_exp` has no branch and no table, so that the compiler works on 8 or
16 numbers at once.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from minedge.ops.numba_ops.runtime import bits_to_float, float_to_bits, kernel

__all__ = [
    "attention_backward_",
    "attention_forward_",
    "cross_entropy_backward_",
    "cross_entropy_forward_",
    "gelu_backward_",
    "gelu_forward_",
    "swiglu_backward_",
    "swiglu_forward_",
]

F = np.float32
ZERO, HALF, ONE, TWO, THREE = F(0), F(0.5), F(1), F(2), F(3)
LOWEST, HIGHEST = F(-104.0), F(89.0)  # beyond them float32's exp is 0 and infinity
LOG2_E = F(1 / math.log(2))
LN2_HIGH = F(355 / 512)  # ln 2 in 9 bits: n * LN2_HIGH is exact
LN2_LOW = F(math.log(2) - 355 / 512)
ROUND = F(1.5 * 2**23)  # adding it rounds to a whole number, which then stands in the low bits
ROUND_BITS = np.int32(0x4B400000)
T2, T3, T4, T5, T6, T7 = (F(1 / math.factorial(k)) for k in range(2, 8))
BIAS, MANTISSA, BIT = np.int32(127), np.int32(23), np.int32(1)
GELU_SCALE, GELU_CUBIC = F(math.sqrt(2 / math.pi)), F(0.044715)


@njit(error_model="numpy")
def _exp(x):
    """e^x = 2^n e^r, |r| <= ln(2)/2, with e^r by its Taylor sum to r^7.

    The remainder is under 7e-9, so rounding dominates: the relative error stays below 2 * 2^-24. NaN in, NaN out.
    """
    x = LOWEST if x < LOWEST else x  # both comparisons are false for NaN
    x = HIGHEST if x > HIGHEST else x
    shifted = x * LOG2_E + ROUND
    whole = shifted - ROUND
    r = (x - whole * LN2_HIGH) - whole * LN2_LOW
    p = (((((T7 * r + T6) * r + T5) * r + T4) * r + T3) * r + T2) * (r * r) + r + ONE
    n = float_to_bits(shifted) - ROUND_BITS
    half = n >> BIT  # two factors: 2^n itself may lie outside float32's normal range
    return p * bits_to_float((half + BIAS) << MANTISSA) * bits_to_float((n - half + BIAS) << MANTISSA)


@njit(error_model="numpy")
def _sigmoid(x):
    return ONE / (ONE + _exp(-x))


@njit(error_model="numpy")
def _sum8(x, n):
    """x[0] + .. + x[n-1] in eight partial sums, which the compiler keeps in one vector register."""
    a = b = c = d = e = f = g = h = ZERO
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        a += x[i]
        b += x[i + 1]
        c += x[i + 2]
        d += x[i + 3]
        e += x[i + 4]
        f += x[i + 5]
        g += x[i + 6]
        h += x[i + 7]
    for i in range(whole, n):
        a += x[i]
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


@kernel("i i f1 f1 f1!")
def swiglu_forward_(start, stop, gate, up, out):
    for i in range(start, stop):
        out[i] = gate[i] * _sigmoid(gate[i]) * up[i]


@kernel("i i f1 f1 f1 f1! f1!")
def swiglu_backward_(start, stop, dout, gate, up, dgate, dup):
    for i in range(start, stop):
        s = _sigmoid(gate[i])
        dgate[i] = dout[i] * up[i] * s * (ONE + gate[i] * (ONE - s))
        dup[i] = dout[i] * gate[i] * s


@kernel("i i f1 f1!")
def gelu_forward_(start, stop, x, out):
    for i in range(start, stop):  # (1 + tanh(y)) / 2 = sigmoid(2 y)
        y = GELU_SCALE * (x[i] + GELU_CUBIC * x[i] * x[i] * x[i])
        out[i] = x[i] * _sigmoid(TWO * y)


@kernel("i i f1 f1 f1!")
def gelu_backward_(start, stop, dout, x, dx):
    for i in range(start, stop):  # with s as above, (1 - tanh(y)^2) / 2 = 2 s (1 - s)
        square = x[i] * x[i]
        s = _sigmoid(TWO * GELU_SCALE * (x[i] + GELU_CUBIC * x[i] * x[i] * x[i]))
        dx[i] = dout[i] * (s + x[i] * (TWO * s * (ONE - s)) * GELU_SCALE * (ONE + THREE * GELU_CUBIC * square))


@njit(error_model="numpy")
def _rows_times(row, columns, n, out):
    """out[j] = sum over d of row[d] * columns[d, j] for j < n. Four d at a time, in an order that n does not change."""
    depth = row.shape[0]
    for j in range(n):
        out[j] = ZERO
    whole = depth // 4 * 4
    for d in range(0, whole, 4):
        a, b, c, e = row[d], row[d + 1], row[d + 2], row[d + 3]
        for j in range(n):
            out[j] += (a * columns[d, j] + b * columns[d + 1, j]) + (c * columns[d + 2, j] + e * columns[d + 3, j])
    for d in range(whole, depth):
        for j in range(n):
            out[j] += row[d] * columns[d, j]


@kernel("i i f4 f3 f3 i i f4! f3!")
def attention_forward_(start, stop, q, kt, v, batch_heads, group, out, lse):
    """kt (B * KV, D, S), v (B * KV, S, D). `start .. stop` runs over (B, KV); batch_heads is KV."""
    T, D, S = q.shape[1], q.shape[3], v.shape[1]
    scores = np.empty(S, np.float32)
    row = np.empty(D, np.float32)
    scale = ONE / np.sqrt(F(D))
    for part in range(start, stop):
        b, kv = part // batch_heads, part % batch_heads
        for h in range(kv * group, (kv + 1) * group):
            for t in range(T):
                n = t + 1 + S - T  # keys that query t sees
                _rows_times(q[b, t, h], kt[part], n, scores)
                top = F(-np.inf)
                for j in range(n):
                    scores[j] *= scale
                    top = scores[j] if scores[j] > top else top
                for j in range(n):
                    scores[j] = _exp(scores[j] - top)
                total = _sum8(scores, n)
                _rows_times(scores[:n], v[part], D, row)
                for d in range(D):
                    out[b, t, h, d] = row[d] / total
                lse[b, h, t] = top + F(math.log(total))


@njit(error_model="numpy")
def _add_outer(columns, rows, n, out):
    """out[j, d] += sum over four r of columns[r, j] * rows[r, d] for j < n."""
    for j in range(n):
        a, b, c, e = columns[0, j], columns[1, j], columns[2, j], columns[3, j]
        for d in range(rows.shape[1]):
            out[j, d] += (a * rows[0, d] + b * rows[1, d]) + (c * rows[2, d] + e * rows[3, d])


@kernel("i i f4 f4 f3 f3 f3 f4 f3 i i f4! f3! f3!")
def attention_backward_(start, stop, dout, q, k, kt, vt, out, lse, batch_heads, group, dq, dk, dv):
    """k (B * KV, S, D); kt, vt (B * KV, D, S); dk, dv (B * KV, S, D), zero at entry. Four queries at a time."""
    T, D, S = q.shape[1], q.shape[3], k.shape[1]
    p, ds = np.empty((4, S), np.float32), np.empty((4, S), np.float32)
    queries, douts = np.empty((4, D), np.float32), np.empty((4, D), np.float32)
    scale = ONE / np.sqrt(F(D))
    for part in range(start, stop):
        b, kv = part // batch_heads, part % batch_heads
        for h in range(kv * group, (kv + 1) * group):  # the heads of a group add up in dk and dv
            for first in range(0, T, 4):
                last = min(first + 4, T)
                for r in range(4):  # zero for keys in a query's future, and for queries that the last four may lack
                    for j in range(last + S - T):
                        p[r, j] = ds[r, j] = ZERO
                    for d in range(D):
                        queries[r, d] = q[b, first + r, h, d] if first + r < T else ZERO
                        douts[r, d] = dout[b, first + r, h, d] if first + r < T else ZERO
                for t in range(first, last):
                    n, r = t + 1 + S - T, t - first
                    _rows_times(queries[r], kt[part], n, p[r])
                    _rows_times(douts[r], vt[part], n, ds[r])
                    delta = ZERO
                    for d in range(D):
                        delta += douts[r, d] * out[b, t, h, d]
                    for j in range(n):
                        p[r, j] = _exp(p[r, j] * scale - lse[b, h, t])
                        ds[r, j] = p[r, j] * (ds[r, j] - delta) * scale
                    _rows_times(ds[r, :n], k[part], D, dq[b, t, h])
                _add_outer(ds, queries, last + S - T, dk[part])
                _add_outer(p, douts, last + S - T, dv[part])


@kernel("i i f2 i1 f1! f1!")
def cross_entropy_forward_(start, stop, logits, targets, lse, picked):
    V = logits.shape[1]
    row = np.empty(V, np.float32)
    for i in range(start, stop):
        top = logits[i, 0]
        for j in range(V):
            top = logits[i, j] if logits[i, j] > top else top
        for j in range(V):
            row[j] = _exp(logits[i, j] - top)
        lse[i] = top + F(math.log(_sum8(row, V)))
        picked[i] = logits[i, targets[i] if targets[i] >= 0 else targets[i] + V]


@kernel("i i f2 i1 f1 f1 f2!")
def cross_entropy_backward_(start, stop, logits, targets, lse, factor, dlogits):
    V = logits.shape[1]
    for i in range(start, stop):
        for j in range(V):
            dlogits[i, j] = _exp(logits[i, j] - lse[i])
        dlogits[i, targets[i] if targets[i] >= 0 else targets[i] + V] -= ONE
        for j in range(V):
            dlogits[i, j] *= factor[i]
