"""Wrong ideas planted into a1's solution."""

from __future__ import annotations

from tests.course.planted import Planted

__all__ = ["HIDDEN", "PLANTED"]

RMS = "rstd = 1.0 / np.sqrt(np.mean(x * x, axis=-1) + eps)"
DX_RMS = "dx = rstd[..., None] * (dn - n * np.mean(dn * n, axis=-1, keepdims=True))"
DX_LAYER = "dx = rstd[..., None] * (dn - dn.mean(axis=-1, keepdims=True) - n * np.mean(dn * n, axis=-1, keepdims=True))"
DWEIGHT = "dweight = dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])"
ADD_AT = "np.add.at(dweight, ids.ravel(), dout.reshape(-1, shape[1]))"
SILU = "return dout * up * s * (1.0 + gate * (1.0 - s)), dout * gate * s"
GELU = "return dout * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x))"
TURN = "[first * c - second * s, second * c + first * s]"
LSE = "lse = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))"
LOSS = "loss = float(np.sum(weights.astype(np.float64) * (lse - picked)))"
SCALE = "scores /= np.sqrt(D).astype(q.dtype)"
FUTURE = "future = np.arange(S)[None, :] > np.arange(T)[:, None] + (S - T)"
HIDE = "scores[..., future] = -np.inf"
DS = "ds = p * (dp - delta[..., None]) / np.sqrt(D).astype(q.dtype)"
DLOGITS = "dlogits *= (dloss * weights)[:, None].astype(logits.dtype)"

PLANTED = [
    Planted("rms_centred", "layers.py", RMS, "x = x - x.mean(axis=-1, keepdims=True)\n    " + RMS),
    Planted("rms_eps_outside", "layers.py", RMS, "rstd = 1.0 / (np.sqrt(np.mean(x * x, axis=-1)) + eps)"),
    Planted("rms_sum_for_mean", "layers.py", RMS, RMS.replace("np.mean", "np.sum")),
    Planted(
        "norm_wrong_axis", "layers.py",
        (RMS, "return x * rstd[..., None] * weight, (x, weight, rstd)"),
        (RMS.replace("axis=-1", "axis=0"), "return x * rstd * weight, (x, weight, rstd)"),
    ),
    Planted(
        "norm_wrong_axis", "layers.py", "    mean = x.mean(axis=-1)\n",
        "    mean = x.mean(axis=0)\n    rstd = 1 / np.sqrt(x.var(axis=0) + eps)\n"
        "    return (x - mean) * rstd * weight + bias, (x, weight, mean, rstd)\n    mean = x.mean(axis=-1)\n",
    ),
    Planted("rstd_constant", "layers.py", DX_RMS, "dx = rstd[..., None] * dn"),
    Planted("rstd_constant", "layers.py", DX_LAYER, "dx = rstd[..., None] * (dn - dn.mean(axis=-1, keepdims=True))"),
    Planted("dweight_of_raw_x", "layers.py", "dweight = (dout * n).reshape", "dweight = (dout * x).reshape"),
    Planted("weight_lost_in_dx", "layers.py", "dn = dout * weight  # inverts `n * weight`", "dn = dout"),
    Planted(
        "variance_ddof", "layers.py", "np.mean(centred * centred, axis=-1)",
        "np.sum(centred * centred, axis=-1) / (x.shape[-1] - 1)",
    ),
    Planted("layer_not_centred", "layers.py", "return centred * rstd", "return x * rstd"),
    Planted("mean_constant", "layers.py", DX_LAYER, DX_LAYER.replace("dn.mean(axis=-1, keepdims=True)", "0.0")),
    Planted("dweight_transposed", "layers.py", DWEIGHT, DWEIGHT + "\n    dweight = dweight.T"),
    Planted("dweight_averaged", "layers.py", DWEIGHT, DWEIGHT + " / (x.size // x.shape[-1])"),
    Planted("repeats_lost", "layers.py", ADD_AT, "dweight[ids] += dout"),
    Planted("repeats_lost", "layers.py", ADD_AT, "dweight[ids.ravel()] = dout.reshape(-1, shape[1])"),
    Planted(
        "uses_averaged", "layers.py", ADD_AT,
        ADD_AT + "\n    dweight /= np.maximum(np.bincount(ids.ravel(), minlength=shape[0]), 1)[:, None]",
    ),
    Planted(
        "pairs_interleaved", "layers.py",
        ("first, second = x[..., :half], x[..., half:]", f"return np.concatenate({TURN}, axis=-1), (cos, sin)"),
        (
            "first, second = x[..., 0::2], x[..., 1::2]",
            f"out = np.stack({TURN}, axis=-1)\n    return out.reshape(x.shape), (cos, sin)",
        ),
    ),
    Planted("turned_back", "layers.py", TURN, "[first * c + second * s, second * c - first * s]"),
    Planted("not_a_rotation", "layers.py", TURN, "[first * c + second * s, second * c + first * s]"),
    Planted("turned_again", "layers.py", "rotary_forward(dout, cos, -sin)[0]", "rotary_forward(dout, cos, sin)[0]"),
    Planted("silu_as_sigmoid", "layers.py", SILU, "return dout * up * s * (1.0 - s), dout * gate * s"),
    Planted("sigmoid_constant", "layers.py", SILU, "return dout * up * s, dout * gate * s"),
    Planted(
        "gelu_inner_derivative", "layers.py", GELU, "return dout * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t))"
    ),
    Planted("gelu_tanh_constant", "layers.py", GELU, "return dout * 0.5 * (1.0 + t)"),
    Planted(
        "softmax_wrong_axis", "loss.py", LOSS,
        "p = np.exp(logits) / np.exp(logits).sum(axis=0)\n"
        "    loss = float(-np.sum(weights * np.log(p[np.arange(len(targets)), targets])))",
    ),
    Planted(
        "softmax_wrong_axis", "loss.py", "dlogits = np.exp(logits - lse[:, None])",
        "dlogits = np.exp(logits) / np.exp(logits).sum(axis=0)",
    ),
    Planted("weights_ignored", "loss.py", LOSS, "loss = float(np.sum(lse - picked))"),
    Planted("weights_ignored", "loss.py", DLOGITS, "dlogits *= dloss"),
    Planted("loss_averaged", "loss.py", LOSS, LOSS.replace("np.sum", "np.mean")),
    Planted("softmax_overflow", "loss.py", LSE, "lse = np.log(np.exp(logits).sum(axis=-1))"),
    Planted("onehot_forgotten", "loss.py", "dlogits[np.arange(len(targets)), targets] -= 1.0", "pass"),
    Planted("dloss_ignored", "loss.py", DLOGITS, "dlogits *= weights[:, None]"),
    Planted("scale_forgotten", "attention.py", SCALE, "pass"),
    Planted("scale_by_d", "attention.py", SCALE, "scores /= D"),
    Planted("mask_missing", "attention.py", HIDE, "pass"),
    Planted("mask_hides_itself", "attention.py", FUTURE, FUTURE.replace(">", ">=")),
    Planted("mask_one_late", "attention.py", FUTURE, FUTURE.replace("(S - T)", "(S - T) + 1")),
    Planted("mask_offset", "attention.py", FUTURE, FUTURE.replace(" + (S - T)", "")),
    Planted("mask_upside_down", "attention.py", FUTURE, FUTURE.replace(">", "<")),
    Planted(
        "heads_interleaved", "attention.py",
        (
            'scores = np.einsum("btkgd,bskd->bkgts", q.reshape(B, T, KV, H // KV, D), k, optimize=True)',
            'out = np.einsum("bkgts,bskd->btkgd"',
            "lse = (top + np.log(total))[..., 0]",
        ),
        (
            'scores = np.einsum("btgkd,bskd->bkgts", q.reshape(B, T, H // KV, KV, D), k, optimize=True)',
            'out = np.einsum("bkgts,bskd->btgkd"',
            "lse = (top + np.log(total))[..., 0].swapaxes(1, 2)",
        ),
    ),
    Planted(
        "mask_after_softmax", "attention.py",
        ("weights = np.exp(scores - top)\n", "total = weights.sum(axis=-1, keepdims=True)", HIDE),
        (
            "weights = np.exp(scores - top)\n    S, T = k.shape[1], q.shape[1]\n",
            "total = weights.sum(axis=-1, keepdims=True)\n"
            "    weights[..., np.arange(S)[None, :] > np.arange(T)[:, None] + (S - T)] = 0",
            "pass",
        ),
    ),
    Planted(
        "softmax_over_queries", "attention.py", "    top = scores.max(axis=-1, keepdims=True)",
        "    z = np.exp(scores) / np.exp(scores).sum(axis=-2, keepdims=True)\n"
        '    made = np.einsum("bkgts,bskd->btkgd", z, v).reshape(q.shape)\n'
        "    return made, (q, k, v, made, np.log(np.exp(scores).sum(axis=-1)).reshape(q.shape[0], q.shape[2], -1))\n"
        "    top = scores.max(axis=-1, keepdims=True)",
    ),
    Planted("softmax_jacobian", "attention.py", DS, "ds = p * dp / np.sqrt(D)"),
    Planted("backward_scale_forgotten", "attention.py", DS, "ds = p * (dp - delta[..., None])"),
    Planted(
        "group_averaged", "attention.py",
        ("return np.ascontiguousarray(dq), np.ascontiguousarray(dk), np.ascontiguousarray(dv)",),
        ("return dq, dk / (H // KV), dv / (H // KV)",),
    ),
]  # fmt: skip

HIDDEN = [
    Planted(
        "rms_eps_outside", "layers.py", RMS,
        "rows = x.reshape(-1, x.shape[-1])\n    root = [float(row @ row / len(row)) ** 0.5 + eps for row in rows]\n"
        "    rstd = (1 / np.array(root)).reshape(x.shape[:-1])",
    ),
    Planted(
        "rstd_constant", "layers.py", DX_RMS,
        "dx = np.zeros_like(x)\n    for place in np.ndindex(*rstd.shape):\n        dx[place] = dn[place] * rstd[place]",
    ),
    Planted(
        "repeats_lost", "layers.py", ADD_AT,
        "for token in np.unique(ids):\n        dweight[token] = dout[ids == token][-1]",
    ),
    Planted(
        "sigmoid_constant", "layers.py", SILU,
        "squashed = 0.5 * (1 + np.tanh(gate / 2))\n    return squashed * up * dout, dout * gate * squashed",
    ),
    Planted(
        "softmax_overflow", "loss.py", LSE,
        "lse = np.array([np.log(sum(np.exp(value) for value in row)) for row in logits])",
    ),
    Planted(
        "scale_forgotten", "attention.py", SCALE,
        "for b in range(B):\n        for h in range(H):\n"
        "            scores[b, h // (H // KV), h % (H // KV)] = q[b, :, h] @ k[b, :, h // (H // KV)].T",
    ),
    Planted(
        "mask_hides_itself", "attention.py", FUTURE,
        "future = ~np.tri(T, S, S - T - 1, dtype=bool)",
    ),
    Planted(
        "mask_missing", "attention.py", HIDE,
        "big = np.where(future, -0.0, 0.0)\n    scores = scores + big",
    ),
    Planted(
        "softmax_jacobian", "attention.py", DS,
        "slope = np.multiply(dp, p)\n    ds = slope * D ** -0.5",
    ),
    Planted(
        "backward_scale_forgotten", "attention.py", DS,
        "average = np.sum(dp * p, axis=-1, keepdims=True)\n    ds = dp * p - p * average",
    ),
]  # fmt: skip
