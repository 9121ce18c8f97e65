"""Hand-written gradients against differences of the forward passes: float64, random directions, more than 200 shapes
in total.
"""

from __future__ import annotations

import numpy as np
import pytest

import minedge.ops
from minedge.gradcheck import check_backward

SHAPES_PER_OP = 19
TOLERANCE = 1e-6


def _cases(rng):
    """One random shape for each differentiable op: name -> (forward, backward, arguments, differentiable arguments)."""
    ops = minedge.ops.get("numpy")
    normal = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    size = lambda high: int(rng.integers(1, high))  # noqa: E731
    B, T, H, C, V = size(4), size(7), size(4), size(40), size(30)
    half, KV, G = size(6), size(3), size(4)
    S = T + int(rng.integers(0, 4))
    D = 2 * half
    ids = rng.integers(0, V, (B, T))
    angle = normal(T, half)
    weights = rng.random(T)
    packed, scales = ops.int4_quantize(normal(H, 64), 32)
    codes, absmax = ops.nf4_quantize(normal(H, 64), 32)
    return {
        "embedding": (ops.embedding_forward, ops.embedding_backward, (ids, normal(V, C)), ["weight"]),
        "linear": (ops.linear_forward, ops.linear_backward, (normal(B, T, C), normal(V, C)), None),
        "bias": (ops.bias_forward, ops.bias_backward, (normal(B, T, C), normal(C)), None),
        "rms_norm": (ops.rms_norm_forward, ops.rms_norm_backward, (normal(B, T, C), normal(C), 1e-5), None),
        # two channels at least: over one, every centred value is zero and so is every gradient
        "layer_norm": (
            ops.layer_norm_forward,
            ops.layer_norm_backward,
            (normal(B, T, C + 1), normal(C + 1), normal(C + 1), 1e-5),
            None,
        ),
        "rotary": (ops.rotary_forward, ops.rotary_backward, (normal(B, T, H, D), np.cos(angle), np.sin(angle)), ["x"]),
        "swiglu": (ops.swiglu_forward, ops.swiglu_backward, (3 * normal(B, T, C), normal(B, T, C)), None),
        "gelu": (ops.gelu_forward, ops.gelu_backward, (2 * normal(B, T, C),), None),
        "attention": (
            ops.attention_forward,
            ops.attention_backward,
            (normal(B, T, KV * G, D), normal(B, S, KV, D), normal(B, S, KV, D)),
            None,
        ),
        "cross_entropy": (
            ops.cross_entropy_forward,
            ops.cross_entropy_backward,
            (normal(T, V + 1), rng.integers(0, V + 1, T), weights),
            ["logits"],
        ),
        "int4_linear": (
            ops.int4_linear_forward,
            ops.int4_linear_backward,
            (normal(B, T, 64), packed, scales, 32),
            ["x"],
        ),
        "nf4_linear": (ops.nf4_linear_forward, ops.nf4_linear_backward, (normal(B, T, 64), codes, absmax, 32), ["x"]),
    }


@pytest.mark.parametrize("shape", range(SHAPES_PER_OP))
@pytest.mark.parametrize("op", list(_cases(np.random.default_rng(0))))
def test_backward_is_the_derivative_of_forward(op, shape):
    rng = np.random.default_rng([shape, *op.encode()])
    forward, backward, args, wrt = _cases(rng)[op]
    report = check_backward(forward, backward, args, wrt=wrt, rng=rng, n_directions=2, tolerance=TOLERANCE)
    report.raise_if_wrong()


def test_a_gradient_wrong_by_one_percent_is_found():
    ops = minedge.ops.get("numpy")

    def backward(dout, cache):
        dx, dweight = ops.rms_norm_backward(dout, cache)
        return dx * 1.01, dweight

    args = (np.random.default_rng(1).standard_normal((3, 8)), np.ones(8), 1e-5)
    report = check_backward(ops.rms_norm_forward, backward, args)
    assert report.errors["x"] > 1e-4 and report.errors["weight"] < TOLERANCE and not report


def test_checker_reports_shape_count_mutation_and_dtype():
    x = np.arange(1.0, 4.0)
    double = lambda x: (2 * x, ())  # noqa: E731
    assert "shape" in str(check_backward(double, lambda dout, cache: 2 * dout[:2], [x]))
    assert "returned 2 gradients" in str(check_backward(double, lambda dout, cache: (dout, dout), [x]))
    with pytest.raises(TypeError, match="float64"):
        check_backward(double, lambda dout, cache: 2 * dout, [x.astype(np.float32)])

    def spoils(x):
        x += 1
        return 2 * x, ()

    assert "changed in place" in str(check_backward(spoils, lambda dout, cache: 2 * dout, [x]))


def test_checker_does_not_pass_nan():
    report = check_backward(lambda x: (x * x, x), lambda dout, x: dout * np.nan, [np.ones(3)])
    assert not report.ok
