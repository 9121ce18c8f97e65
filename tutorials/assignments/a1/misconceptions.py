"""Wrong ideas that a1 knows, each as code that computes what the idea gives. Legend as in the library's attention."""

from __future__ import annotations

import numpy as np

from minedge.course.properties import Misconception
from minedge.ops import numpy_ops as ops


def rms(x, weight, eps, centre="", outside=False, total=False, axis=-1):
    base = x - x.mean(axis=axis, keepdims=True) if centre else x
    square = (np.sum if total else np.mean)(base * base, axis=axis, keepdims=True)
    rstd = 1 / (np.sqrt(square) + eps) if outside else 1 / np.sqrt(square + eps)
    return {"out": (base if centre == "both" else x) * rstd * weight, "rstd": np.squeeze(rstd, axis)}


def layer(x, weight, bias, eps, ddof=0, axis=-1, centre=True):
    mean = x.mean(axis=axis, keepdims=True)
    rstd = 1 / np.sqrt(x.var(axis=axis, keepdims=True, ddof=ddof) + eps)
    n = (x - mean if centre else x) * rstd
    return {"out": n * weight + bias, "mean": np.squeeze(mean, axis), "rstd": np.squeeze(rstd, axis)}


def summed(array):
    return array.reshape(-1, array.shape[-1]).sum(axis=0)


def rms_constant(dout, cache):
    x, weight, rstd = cache
    return {"dx": dout * weight * rstd[..., None], "dweight": summed(dout * x * rstd[..., None])}


def rms_raw(dout, cache):
    x = cache[0]
    return {**good(ops.rms_norm_backward, "dx", "dweight")(dout, cache), "dweight": summed(dout * x)}


def rms_weight_lost(dout, cache):
    x, _, rstd = cache
    n = x * rstd[..., None]
    dx = rstd[..., None] * (dout - n * np.mean(dout * n, axis=-1, keepdims=True))
    return {"dx": dx, "dweight": summed(dout * n)}


def layer_lost(mean_term, square_term):
    def wrong(dout, cache):
        x, weight, mean, rstd = cache
        n, dn = (x - mean[..., None]) * rstd[..., None], dout * weight
        dx = dn - mean_term * dn.mean(axis=-1, keepdims=True)
        dx = dx - square_term * n * np.mean(dn * n, axis=-1, keepdims=True)
        return {"dx": rstd[..., None] * dx, "dweight": summed(dout * n), "dbias": summed(dout)}

    return wrong


def good(backward, *names):
    def right(dout, cache):
        grads = backward(dout, tuple(cache))
        return dict(zip(names, grads if isinstance(grads, tuple) else (grads,), strict=True))

    return right


def linear(change):
    def wrong(dout, cache):
        x, weight = cache
        rows, columns = dout.reshape(-1, dout.shape[-1]), x.reshape(-1, x.shape[-1])
        return {"dx": dout @ weight, "dweight": change(rows.T @ columns, len(rows))}

    return wrong


def last_use_wins(dout, cache):
    ids, shape = cache
    dweight = np.zeros(tuple(shape))
    dweight[ids] = dout
    return {"dweight": dweight}


def uses_counted_out(dout, cache):
    ids, shape = cache
    dweight, uses = np.zeros(tuple(shape)), np.zeros(shape[0])
    np.add.at(dweight, ids.ravel(), dout.reshape(-1, shape[1]))
    np.add.at(uses, ids.ravel(), 1)
    return {"dweight": dweight / np.maximum(uses, 1)[:, None]}


def interleaved(x, cos, sin):
    even, odd, c, s = x[..., ::2], x[..., 1::2], cos[:, None], sin[:, None]
    return {"out": np.stack([even * c - odd * s, odd * c + even * s], axis=-1).reshape(x.shape)}


def turned(x, cos, sin, first=-1, second=1):
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], cos[:, None], sin[:, None]
    return {"out": np.concatenate([a * c + first * b * s, b * c + second * a * s], axis=-1)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu_parts(x):
    inner = ops.layers.GELU_SCALE * (x + ops.layers.GELU_CUBIC * x**3)
    return np.tanh(inner), ops.layers.GELU_SCALE * (1 + 3 * ops.layers.GELU_CUBIC * x**2)


def gelu_flat(dout, cache):
    t, _ = gelu_parts(cache[0])
    return {"dx": dout * (0.5 * (1 + t) + 0.5 * cache[0] * (1 - t * t))}


def gelu_product_lost(dout, cache):
    return {"dx": dout * 0.5 * (1 + gelu_parts(cache[0])[0])}


def lse_over(logits, axis):
    top = logits.max(axis=axis, keepdims=True)
    return np.squeeze(top + np.log(np.exp(logits - top).sum(axis=axis, keepdims=True)), axis)


def loss_of(logits, targets, weights, axis=-1):
    lse = lse_over(logits, axis)
    picked = logits[np.arange(len(targets)), targets]
    return {"loss": float(np.sum(weights * (lse[targets] if axis == 0 else lse) - weights * picked)), "lse": lse}


def softmax_columns(logits, targets, weights):
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    return {"loss": float(-np.sum(weights * np.log(p[np.arange(len(targets)), targets])))}


def unweighted(logits, targets, weights):
    return {"loss": float(np.sum(lse_over(logits, -1) - logits[np.arange(len(targets)), targets]))}


def averaged(logits, targets, weights):
    return {"loss": loss_of(logits, targets, weights)["loss"] / len(targets)}


def overflowing(logits, targets, weights):
    lse = np.log(np.exp(logits).sum(axis=-1))
    return {"loss": float(np.sum(weights * (lse - logits[np.arange(len(targets)), targets]))), "lse": lse}


def dlogits(dout, cache, onehot=1.0, axis=-1, scale=None, weighted=True):
    logits, targets, weights, _ = cache
    p = np.exp(logits - logits.max(axis=axis, keepdims=True))
    p /= p.sum(axis=axis, keepdims=True)
    p[np.arange(len(targets)), targets] -= onehot
    return {"dlogits": p * (dout if scale is None else scale) * (weights[:, None] if weighted else 1.0)}


def scores_of(q, k, scale=None, mask="causal", interleave=False):
    (_, T, H, D), (S, KV) = q.shape, k.shape[1:3]
    heads = np.arange(H) % KV if interleave else np.arange(H) // (H // KV)
    scores = np.einsum("bthd,bshd->bhts", q, k[:, :, heads]) * (D**-0.5 if scale is None else scale(D))
    i, j = np.arange(T)[:, None], np.arange(S)[None, :]
    hidden = {
        "causal": j > i + (S - T), "none": np.zeros((T, S), bool), "strict": j >= i + (S - T), "start": j > i,
        "past": j < i + (S - T), "late": j > i + (S - T) + 1,
    }[mask]  # fmt: skip
    return np.where(hidden, -np.inf, scores), heads


def attention(q, k, v, zeroed=False, axis=-1, **options):
    scores, heads = scores_of(q, k, **options)
    if zeroed:  # the mask after softmax: the future still counts in the denominator
        hidden = np.isinf(scores)
        full, _ = scores_of(q, k, **{**options, "mask": "none"})
        p = np.where(hidden, 0, np.exp(full) / np.exp(full).sum(axis=-1, keepdims=True))
        return {"out": np.einsum("bhts,bshd->bthd", p, v[:, :, heads])}
    p = np.exp(scores - scores.max(axis=axis, keepdims=True))
    total = p.sum(axis=axis, keepdims=True)
    found = {"out": np.einsum("bhts,bshd->bthd", p / total, v[:, :, heads])}
    return {**found, "lse": lse_over(scores, -1)} if axis == -1 else found


def attention_back(dout, cache, jacobian=True, scaled=("dq", "dk"), grouped=True, by_lse=True, **options):
    q, k, v, out, lse = cache
    (B, _, H, D), (S, KV) = q.shape, k.shape[1:3]
    scores, heads = scores_of(q, k, **options)
    p = np.exp(scores - (lse if by_lse else lse_over(scores, -1))[..., None])
    dp = np.einsum("bthd,bshd->bhts", dout, v[:, :, heads])
    delta = (dout * out).sum(axis=-1).transpose(0, 2, 1)[..., None] if jacobian else 0.0
    ds = p * (dp - delta)

    def gather(wide):  # (B, S, H, D) -> (B, S, KV, D)
        parts = wide.reshape(B, S, KV, H // KV, D)
        return parts.sum(axis=3) if grouped else parts.mean(axis=3)

    dq = np.einsum("bhts,bshd->bthd", ds, k[:, :, heads]) * (D**-0.5 if "dq" in scaled else 1.0)
    dk = gather(np.einsum("bhts,bthd->bshd", ds, q)) * (D**-0.5 if "dk" in scaled else 1.0)
    return {"dq": dq, "dk": dk, "dv": gather(np.einsum("bhts,bthd->bshd", p, dout))}


def with_(function, **options):
    return lambda **case: function(**case, **options)


def both(name, hint, **options):
    """One error in the scores shows forward and backward."""
    return [
        Misconception(name, "attention_forward", hint, with_(attention, **options)),
        Misconception(name, "attention_backward", hint, with_(attention_back, **options)),
    ]


MISCONCEPTIONS = [
    *(
        Misconception(
            "rms_centred", "rms_norm_forward",
            "the mean was subtracted. RMSNorm does not centre: it divides by the root of the mean of x^2 itself.",
            with_(rms, centre=centre),
        )
        for centre in ("both", "root")
    ),
    Misconception(
        "rms_eps_outside", "rms_norm_forward",
        "eps was added after the square root; it belongs inside: 1 / sqrt(mean + eps).", with_(rms, outside=True),
    ),
    Misconception(
        "rms_sum_for_mean", "rms_norm_forward",
        "the squares were summed, not averaged: the result shrinks with the width C.", with_(rms, total=True),
    ),
    Misconception(
        "norm_wrong_axis", "rms_norm_forward",
        "the mean was taken over the first axis; a norm works on the last one, each token by itself.",
        with_(rms, axis=0),
    ),
    Misconception(
        "norm_wrong_axis", "layer_norm_forward",
        "the mean was taken over the first axis; a norm works on the last one, each token by itself.",
        with_(layer, axis=0),
    ),
    Misconception(
        "rstd_constant", "rms_norm_backward",
        "rstd was treated as a constant. It depends on every entry of x, which adds a term to dx.", rms_constant,
    ),
    Misconception(
        "dweight_of_raw_x", "rms_norm_backward",
        "dweight was taken with x; weight multiplies the normed x * rstd, so that is what it gathers.", rms_raw,
    ),
    Misconception(
        "weight_lost_in_dx", "rms_norm_backward",
        "dx lacks the weight: the gradient of the normed values is dout * weight.", rms_weight_lost,
    ),
    Misconception(
        "variance_ddof", "layer_norm_forward",
        "the variance was divided by C - 1; LayerNorm divides by C (the mean of the squares).", with_(layer, ddof=1),
    ),
    Misconception(
        "layer_not_centred", "layer_norm_forward", "the mean was not subtracted from x.", with_(layer, centre=False)
    ),
    Misconception(
        "mean_constant", "layer_norm_backward",
        "the mean was treated as a constant: dx lacks the term that takes away the mean of the gradient.",
        layer_lost(0, 1),
    ),
    Misconception(
        "rstd_constant", "layer_norm_backward",
        "rstd was treated as a constant. It depends on every entry of x, which adds a term to dx.", layer_lost(1, 0),
    ),
    Misconception(
        "dweight_transposed", "linear_backward", "dweight came out as (in, out); weights lie (out, in).",
        linear(lambda dweight, rows: dweight.T),
    ),
    Misconception(
        "dweight_averaged", "linear_backward",
        "dweight was averaged over the tokens; a weight used by every token gathers the sum.",
        linear(lambda dweight, rows: dweight / rows),
    ),
    Misconception(
        "repeats_lost", "embedding_backward",
        "of a token that occurs several times only one gradient was kept: dweight[ids] = .. and dweight[ids] += .. "
        "write each row once. See np.add.at.", last_use_wins,
    ),
    Misconception(
        "uses_averaged", "embedding_backward", "a row's gradients were averaged over its uses; they add up.",
        uses_counted_out,
    ),
    Misconception(
        "pairs_interleaved", "rotary_forward",
        "neighbours (2i, 2i + 1) were paired; here entry i is paired with entry i + D/2.", interleaved,
    ),
    Misconception(
        "turned_back", "rotary_forward", "the pairs were turned the other way: the signs of sin are exchanged.",
        with_(turned, first=1, second=-1),
    ),
    Misconception(
        "not_a_rotation", "rotary_forward",
        "both sine terms have the same sign; a rotation has one plus and one minus.", with_(turned, first=1, second=1),
    ),
    Misconception(
        "turned_again", "rotary_backward",
        "the gradient was turned forwards once more; the transpose of a rotation turns back.",
        lambda dout, cache: {"dx": ops.rotary_forward(dout, *cache)[0]},
    ),
    Misconception(
        "silu_as_sigmoid", "swiglu_backward",
        "dgate has the derivative of sigmoid alone; silu(g) = g * sigmoid(g) is a product, so there are two terms.",
        lambda dout, cache: {
            "dgate": dout * cache[1] * sigmoid(cache[0]) * (1 - sigmoid(cache[0])),
            "dup": dout * cache[0] * sigmoid(cache[0]),
        },
    ),
    Misconception(
        "sigmoid_constant", "swiglu_backward",
        "in dgate sigmoid(g) was treated as a constant; it depends on g, which adds a second term.",
        lambda dout, cache: {
            "dgate": dout * cache[1] * sigmoid(cache[0]), "dup": dout * cache[0] * sigmoid(cache[0])
        },
    ),
    Misconception(
        "gelu_inner_derivative", "gelu_backward",
        "the chain rule stopped at tanh: the derivative of its inner function is missing.", gelu_flat,
    ),
    Misconception(
        "gelu_tanh_constant", "gelu_backward",
        "tanh was treated as a constant; it depends on x, which adds a second term.", gelu_product_lost,
    ),
    Misconception(
        "softmax_wrong_axis", "cross_entropy_forward",
        "softmax ran over the rows; each row is a distribution over the vocabulary, the last axis.", softmax_columns,
    ),
    Misconception(
        "softmax_wrong_axis", "cross_entropy_backward",
        "softmax ran over the rows; each row is a distribution over the vocabulary, the last axis.",
        with_(dlogits, axis=0),
    ),
    Misconception(
        "weights_ignored", "cross_entropy_forward", "the rows' weights were left out.", unweighted
    ),
    Misconception(
        "weights_ignored", "cross_entropy_backward", "the rows' weights were left out.", with_(dlogits, weighted=False)
    ),
    Misconception(
        "loss_averaged", "cross_entropy_forward",
        "the sum was divided by the number of rows; the caller's weights already make the mean.", averaged,
    ),
    Misconception(
        "softmax_overflow", "cross_entropy_forward",
        "exp overflowed: subtract the row's maximum before exp and add it back to the logarithm.", overflowing,
    ),
    Misconception(
        "onehot_forgotten", "cross_entropy_backward",
        "the target's 1 was not taken off: the gradient of -logits[target] is missing.", with_(dlogits, onehot=0.0),
    ),
    Misconception(
        "dloss_ignored", "cross_entropy_backward",
        "dloss was left out: the loss may be scaled or added to others before the gradient arrives.",
        with_(dlogits, scale=1.0),
    ),
    *both(
        "scale_forgotten", "the scores were not divided by sqrt(D): their spread grows with the head's width.",
        scale=lambda D: 1.0,
    ),
    *both("scale_by_d", "the scores were divided by D; it is the square root of D.", scale=lambda D: 1 / D),
    *both("mask_missing", "the causal mask is missing: queries see keys of their own future.", mask="none"),
    *both("mask_hides_itself", "the mask is off by one: a query also sees the key at its own position.", mask="strict"),
    *both("mask_one_late", "the mask is off by one: a query sees one key of its future.", mask="late"),
    *both(
        "mask_offset", "with more keys than queries the mask starts at the wrong place: query i stands at i + (S - T).",
        mask="start",
    ),
    *both("mask_upside_down", "the mask hides the past and shows the future.", mask="past"),
    *both(
        "heads_interleaved", "query head h read key head h % KV; neighbours form a group: h // (H / KV).",
        interleave=True,
    ),
    Misconception(
        "mask_after_softmax", "attention_forward",
        "the mask was applied after softmax: hidden keys still count in the denominator, so rows do not sum to 1.",
        with_(attention, zeroed=True),
    ),
    Misconception(
        "softmax_over_queries", "attention_forward",
        "softmax ran over the queries; each query's row over the keys sums to 1.", with_(attention, axis=-2),
    ),
    Misconception(
        "softmax_jacobian", "attention_backward",
        "the derivative of softmax was taken as p alone: the row's mean sum(p * dp) has to be taken off dp.",
        with_(attention_back, jacobian=False),
    ),
    Misconception(
        "backward_scale_forgotten", "attention_backward",
        "dq and dk lack the 1 / sqrt(D) that the scores were scaled by.", with_(attention_back, scaled=()),
    ),
    Misconception(
        "group_averaged", "attention_backward",
        "the heads of a group were averaged; they share a key head, so their gradients add up.",
        with_(attention_back, grouped=False),
    ),
]  # fmt: skip
