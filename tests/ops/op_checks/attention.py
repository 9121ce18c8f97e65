"""Attention against loops over batch, head and query in float64."""

from __future__ import annotations

import numpy as np

from op_checks.bounds import EXP, U, gamma, within
from op_checks.layers import numbers, wide

__all__ = ["check_attention", "check_attention_view"]


def check_attention(ops, seed, B, T, S, KV, G, D, scale=1.0):
    r"""Forward. A score errs by es = (D + 3) u sum|q k| / sqrt(D); in p = exp(s - top) / total that is 2 max(es)
    relative, the difference s - top adds u |s - top|, exp EXP u, the total S u: together rho. out = sum p v: (rho +
    (S + 2) u) sum p |v|. lse errs by el = max(es) + (S + EXP + 2) u + u |lse|.

    Backward. p = exp(s - lse): rho_b = es + el + u |s - lse| + EXP u. dp errs by gamma(D) sum|dout v|, delta by the
    error of out times |dout| plus gamma(D) sum|dout out|. ds = p (dp - delta) / sqrt(D) collects them, plus 4u of p
    (|dp| + |delta|). dq, dk, dv are sums of ds k (S terms), ds q and p dout (T G terms).
    """
    H = KV * G
    q, k, v, dout = numbers(seed, (B, T, H, D), (B, S, KV, D), (B, S, KV, D), (B, T, H, D))
    q = q * np.float32(scale)
    Q, K, V, DO = wide(q, k, v, dout)
    want = {name: np.zeros(a.shape) for name, a in (("out", q), ("dq", q), ("dk", k), ("dv", v))}
    bound = {name: np.zeros(a.shape) for name, a in want.items()}
    root = np.sqrt(D)
    for b in range(B):
        for h in range(H):
            kv = h // G
            for t in range(T):
                n = t + 1 + S - T
                keys, values, x, d = K[b, :n, kv], V[b, :n, kv], Q[b, t, h], DO[b, t, h]
                s = np.array([sum(x * key) for key in keys]) / root
                lse = np.logaddexp.reduce(s)
                p = np.exp(s - lse)
                es = (D + 3) * U * (np.abs(keys) @ np.abs(x)) / root
                spread = U * (s.max() - s)
                rho = 2 * es.max() + spread + (EXP + S + 3) * U
                want["out"][b, t, h] = p @ values
                bound["out"][b, t, h] = (p * (rho + (S + 2) * U)) @ np.abs(values)
                el = es.max() + (S + EXP + 2) * U + U * abs(lse)
                rho = es + el + U * np.abs(s - lse) + EXP * U
                dp, out = values @ d, want["out"][b, t, h]
                jacobian = np.diag(p) - np.outer(p, p)  # of softmax
                ds = jacobian @ dp / root
                e_dp = gamma(D) * (np.abs(values) @ np.abs(d))
                e_delta = np.abs(d) @ bound["out"][b, t, h] + gamma(D) * (np.abs(d) @ np.abs(out))
                e_ds = p / root * (rho * np.abs(dp - d @ out) + e_dp + e_delta + 4 * U * (np.abs(dp) + abs(d @ out)))
                want["dq"][b, t, h] = ds @ keys
                bound["dq"][b, t, h] = (e_ds + gamma(S + 1) * np.abs(ds)) @ np.abs(keys)
                want["dk"][b, :n, kv] += np.outer(ds, x)
                bound["dk"][b, :n, kv] += np.outer(e_ds + gamma(T * G + 1) * np.abs(ds), np.abs(x))
                want["dv"][b, :n, kv] += np.outer(p, d)
                bound["dv"][b, :n, kv] += np.outer(p * (rho + gamma(T * G + 1)), np.abs(d))
    out, cache = ops.attention_forward(q, k, v)
    within("attention_forward", out, want["out"], bound["out"])
    assert cache[4].shape == (B, H, T), f"attention_forward: lse has shape {cache[4].shape}"
    for name, grad in zip(("dq", "dk", "dv"), ops.attention_backward(dout, cache), strict=True):
        within(f"attention_backward {name}", grad, want[name], bound[name])


def check_attention_view(ops, seed, B, S, KV, D):
    """Keys and values may be the first S places of a longer cache, whose other places hold anything: same bits as a
    copy.
    """
    q, long_k, long_v = numbers(seed, (B, 1, 2 * KV, D), (B, S + 5, KV, D), (B, S + 5, KV, D))
    long_k, long_v = long_k.copy(), long_v.copy()
    long_k[:, S:] = long_v[:, S:] = np.nan
    out, _ = ops.attention_forward(q, long_k[:, :S], long_v[:, :S])
    again, _ = ops.attention_forward(q, long_k[:, :S].copy(), long_v[:, :S].copy())
    assert np.array_equal(out, again), "attention_forward: a view of a longer cache gives other numbers than its copy"
    assert np.isfinite(out).all(), "attention_forward: read beyond the view"
