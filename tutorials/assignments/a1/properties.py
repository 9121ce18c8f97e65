"""What is tested in a1. The references are minedge's own ops; every backward is held to measured slopes."""

from __future__ import annotations

import numpy as np

from minedge.course.properties import Gradient, Property
from minedge.ops import numpy_ops as ops

EPS = 1e-5
LEADING = ((1,), (3,), (2, 3), (2, 1, 4))
ATTENTION = ((1, 1, 1, 1, 1, 2), (1, 3, 3, 1, 1, 4), (2, 4, 4, 2, 2, 4), (1, 2, 5, 2, 2, 4), (2, 3, 4, 4, 2, 6))


def norm_cases(rng, *vectors):
    for leading, width in zip(LEADING, (2, 5, 8, 3), strict=True):
        x = 0.7 + 1.3 * rng.standard_normal((*leading, width))
        yield {"x": x, **{name: rng.standard_normal(width) for name in vectors}, "eps": EPS}
    tiny = 1e-3 * rng.standard_normal((4, 6))  # eps counts here
    yield {"x": tiny, **{name: rng.standard_normal(6) for name in vectors}, "eps": EPS}


def rms_cases(rng):
    return norm_cases(rng, "weight")


def layer_cases(rng):
    return norm_cases(rng, "weight", "bias")


def linear_cases(rng):
    for leading, (wide, narrow) in zip(LEADING, ((2, 3), (4, 4), (3, 5), (1, 6)), strict=True):
        yield {"x": rng.standard_normal((*leading, wide)), "weight": rng.standard_normal((narrow, wide))}


def embedding_cases(rng):
    for shape, vocab, width in (((1,), 2, 3), ((4,), 3, 2), ((2, 5), 4, 3)):
        yield {"ids": rng.integers(0, vocab, shape), "weight": rng.standard_normal((vocab, width))}


def rotary_cases(rng):
    for batch, length, heads, width in ((1, 2, 1, 2), (1, 3, 1, 4), (2, 4, 3, 6)):
        angle = (1 + np.arange(length))[:, None] * rng.uniform(0.2, 1.0, width // 2)
        x = rng.standard_normal((batch, length, heads, width))
        yield {"x": x, "cos": np.cos(angle), "sin": np.sin(angle)}


def swiglu_cases(rng):
    for shape in ((1, 2), (3, 4), (2, 3, 5)):
        yield {"gate": 2 * rng.standard_normal(shape), "up": rng.standard_normal(shape)}


def gelu_cases(rng):
    for shape in ((1, 2), (3, 4), (2, 3, 5)):
        yield {"x": 1.5 * rng.standard_normal(shape)}


def loss_cases(rng):
    for rows, vocab in ((1, 2), (3, 3), (4, 7)):
        logits = 2 * rng.standard_normal((rows, vocab))
        yield {"logits": logits, "targets": rng.integers(0, vocab, rows), "weights": rng.uniform(0.2, 2.0, rows)}


def large_logits(rng):
    for rows, vocab in ((2, 3), (3, 5)):
        logits = 1000.0 + 5 * rng.standard_normal((rows, vocab))
        yield {"logits": logits, "targets": rng.integers(0, vocab, rows), "weights": np.full(rows, 1 / rows)}


def attention_cases(rng):
    """B, T, S, H, KV, D."""
    for batch, queries, keys, heads, shared, width in ATTENTION:
        q = rng.standard_normal((batch, queries, heads, width))
        k, v = (rng.standard_normal((batch, keys, shared, width)) for _ in "kv")
        yield {"q": q, "k": k, "v": v}


def rms_forward(x, weight, eps):
    out, cache = ops.rms_norm_forward(x, weight, eps)
    return {"out": out, "rstd": cache[2]}


def layer_forward(x, weight, bias, eps):
    out, (_, _, mean, rstd) = ops.layer_norm_forward(x, weight, bias, eps)
    return {"out": out, "mean": mean, "rstd": rstd}


def loss_forward(logits, targets, weights):
    loss, cache = ops.cross_entropy_forward(logits, targets, weights)
    return {"loss": loss, "lse": cache[3]}


def attended(q, k, v):
    out, cache = ops.attention_forward(q, k, v)
    return {"out": out, "lse": cache[4]}


def named(backward, *names):
    """The library's backward with its results by name."""

    def expected(dout, cache):
        grads = backward(dout, tuple(cache))
        return dict(zip(names, grads if isinstance(grads, tuple) else (grads,), strict=True))

    return expected


def frozen_cases(rng):
    for case in linear_cases(rng):
        dout = rng.standard_normal((*case["x"].shape[:-1], case["weight"].shape[0]))
        yield {"dout": dout, "cache": [case["x"], case["weight"]]}


def frozen(dout, cache):
    return {"dx": ops.linear_backward(dout, tuple(cache), need_dweight=False)[0], "dweight": None}


PROPERTIES = [
    Property("a1.1", "rms_norm_forward", rms_cases, rms_forward, "x over its root mean square, times weight"),
    Gradient(
        "a1.1", "rms_norm_backward", rms_cases, ops.rms_norm_forward,
        named(ops.rms_norm_backward, "dx", "dweight"), ("x", "weight"), "the gradient matches the measured slope",
    ),
    Property("a1.2", "layer_norm_forward", layer_cases, layer_forward, "x centred and scaled, times weight plus bias"),
    Gradient(
        "a1.2", "layer_norm_backward", layer_cases, ops.layer_norm_forward,
        named(ops.layer_norm_backward, "dx", "dweight", "dbias"), ("x", "weight", "bias"),
        "the gradient matches the measured slope",
    ),
    Gradient(
        "a1.3", "linear_backward", linear_cases, ops.linear_forward,
        named(ops.linear_backward, "dx", "dweight"), ("x", "weight"), "the gradient matches the measured slope",
    ),
    Property("a1.3", "linear_backward_frozen", frozen_cases, frozen, "no gradient of a frozen weight is made"),
    Gradient(
        "a1.3", "embedding_backward", embedding_cases, ops.embedding_forward,
        named(ops.embedding_backward, "dweight"), ("weight",), "a row gathers the gradients of all its uses",
    ),
    Property(
        "a1.4", "rotary_forward", rotary_cases, lambda x, cos, sin: {"out": ops.rotary_forward(x, cos, sin)[0]},
        "each pair is turned by its position's angle",
    ),
    Gradient(
        "a1.4", "rotary_backward", rotary_cases, ops.rotary_forward, named(ops.rotary_backward, "dx"), ("x",),
        "the gradient matches the measured slope",
    ),
    Gradient(
        "a1.5", "swiglu_backward", swiglu_cases, ops.swiglu_forward,
        named(ops.swiglu_backward, "dgate", "dup"), ("gate", "up"), "the gradient matches the measured slope",
    ),
    Gradient(
        "a1.5", "gelu_backward", gelu_cases, ops.gelu_forward, named(ops.gelu_backward, "dx"), ("x",),
        "the gradient matches the measured slope",
    ),
    Property("a1.6", "cross_entropy_forward", loss_cases, loss_forward, "weighted sum of -log softmax at the targets"),
    Property(
        "a1.6", "cross_entropy_forward", large_logits, loss_forward, "logits near 1000 do not overflow",
        label="cross_entropy_forward on large logits",
    ),
    Gradient(
        "a1.6", "cross_entropy_backward", loss_cases, ops.cross_entropy_forward,
        named(ops.cross_entropy_backward, "dlogits"), ("logits",), "the gradient matches the measured slope",
    ),
    Property("a1.7", "attention_forward", attention_cases, attended, "softmax(q k^T / sqrt(D) + causal mask) v"),
    Gradient(
        "a1.8", "attention_backward", attention_cases, ops.attention_forward,
        named(ops.attention_backward, "dq", "dk", "dv"), ("q", "k", "v"), "the gradient matches the measured slope",
    ),
]  # fmt: skip
