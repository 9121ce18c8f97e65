"""NaN, infinity, denormals and -0: the documented outcome, the same on every tier.

Not defined, so not tested: NaN or infinity in a key or value that a query must not see (NumPy multiplies it by a
probability of 0, which is NaN; loops skip it).
"""

from __future__ import annotations

import numpy as np
import pytest
from tiers import EXPECTED

import minedge.ops

F = np.float32
NAN, INF, TINY = np.nan, np.inf, F(1e-42)
pytestmark = [pytest.mark.parametrize("backend", EXPECTED), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def _same(got, want):
    np.testing.assert_array_equal(np.asarray(got, F), np.asarray(want, F))


def test_norms_spread_nan_over_their_row_only(backend):
    ops = minedge.ops.get(backend)
    x = np.ones((3, 8), F)
    x[1, 2] = NAN
    for out in (
        ops.rms_norm_forward(x, np.ones(8, F), 1e-5)[0],
        ops.layer_norm_forward(x, np.ones(8, F), np.zeros(8, F), 1e-5)[0],
    ):
        assert np.isnan(out[1]).all() and np.isfinite(out[[0, 2]]).all()


def test_norm_of_zeros_and_denormals_is_finite(backend):
    ops = minedge.ops.get(backend)
    x = np.array([[0.0, -0.0, 0, 0], [TINY, -TINY, 0, TINY]], F)
    out, cache = ops.rms_norm_forward(x, np.ones(4, F), 1e-5)
    assert (np.abs(out) <= np.abs(x) * F(317)).all()
    assert np.isfinite(ops.rms_norm_backward(np.ones((2, 4), F), cache)[0]).all()


def test_activations_at_the_ends(backend):
    """silu(-inf) and gelu(-inf) are -inf * 0 = NaN in the stated formula; large negative numbers give 0, large
    positive themselves.
    """
    ops = minedge.ops.get(backend)
    x = np.array([INF, -INF, NAN, 200.0, -200.0, 0.0], F)
    _same(ops.swiglu_forward(x, np.ones(6, F))[0], [INF, NAN, NAN, 200, 0, 0])
    _same(ops.gelu_forward(x)[0], [INF, NAN, NAN, 200, 0, 0])
    finite = x[3:]
    dgate, dup = ops.swiglu_backward(np.ones(3, F), (finite, np.ones(3, F)))
    np.testing.assert_allclose(dgate, [1, 0, 0.5], atol=1e-30)
    np.testing.assert_allclose(dup, [200, 0, 0], atol=1e-30)
    np.testing.assert_allclose(ops.gelu_backward(np.ones(3, F), (finite,)), [1, 0, 0.5], atol=1e-30)


def test_activations_keep_denormals(backend):
    """Nothing flushes denormals to zero: silu(1) * tiny is sigmoid(1) * tiny to one unit."""
    ops = minedge.ops.get(backend)
    out = ops.swiglu_forward(np.ones(9, F), np.full(9, TINY))[0]
    np.testing.assert_allclose(out, np.full(9, TINY * F(0.7310586)), rtol=0, atol=3e-45)
    out = ops.bias_forward(np.full((1, 9), TINY), np.full(9, TINY))[0]
    _same(out, np.full((1, 9), TINY + TINY))


def test_cross_entropy_at_the_ends(backend):
    """A row with -inf for impossible words is fine; +inf or NaN makes its row NaN; huge logits do not overflow."""
    ops = minedge.ops.get(backend)
    logits = np.array([[0, -INF, 0], [3e38, -3e38, 0], [INF, 0, 0], [NAN, 0, 0]], F)
    targets = np.zeros(4, np.int64)
    for i, want in enumerate([np.log(2), 0.0, NAN, NAN]):
        weights = np.ones(1, F)
        loss, cache = ops.cross_entropy_forward(logits[i : i + 1], targets[:1], weights)
        np.testing.assert_allclose(loss, want, rtol=1e-6, atol=1e-7)
        gradient = ops.cross_entropy_backward(1.0, cache)
        assert np.isfinite(gradient).all() == np.isfinite(want)
    assert ops.cross_entropy_backward(1.0, (logits[:1], targets[:1], weights, np.array([np.log(2)], F)))[0, 1] == 0


def test_attention_row_of_a_nan_query_is_nan_alone(backend):
    ops = minedge.ops.get(backend)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 5, 2, 8)).astype(F) for _ in range(3))
    q[0, 2, 1, 3] = NAN
    out, _ = ops.attention_forward(q, k, v)
    where = np.isnan(out).any(axis=-1)[0]
    assert where[2, 1] and where.sum() == 1


def test_attention_with_scores_in_the_thousands_does_not_overflow(backend):
    ops = minedge.ops.get(backend)
    q = np.full((1, 4, 1, 8), 100.0, F)
    k = np.linspace(-100, 100, 32).reshape(1, 4, 1, 8).astype(F)
    out, cache = ops.attention_forward(q, k, k)
    assert np.isfinite(out).all()
    assert all(np.isfinite(g).all() for g in ops.attention_backward(q, cache))


def test_int8_of_nan_and_infinity(backend):
    ops = minedge.ops.get(backend)
    x = np.zeros((3, 32), F)
    x[0, 3], x[1, 3], x[2, 3] = NAN, INF, TINY
    reference = minedge.ops.get("numpy").int8_quantize(x)
    for got, want in zip(ops.int8_quantize(x), reference, strict=True):
        _same(got, want)
    assert (reference[0][:2] == 0).all()


def test_int4_of_nan_and_infinity(backend):
    """Codes are 8 where the scaled value is NaN; nothing raises, and every tier gives the same bytes."""
    ops = minedge.ops.get(backend)
    x = np.linspace(-1, 1, 3 * 32, dtype=F).reshape(3, 32)
    x[0, 3], x[1, 3], x[2, 3] = NAN, INF, -INF
    (q, s), (want_q, want_s) = ops.int4_quantize(x, 32), minedge.ops.get("numpy").int4_quantize(x, 32)
    _same(q, want_q)
    _same(s, want_s)


def test_masked_places_become_plus_zero_whatever_they_held(backend):
    ops = minedge.ops.get(backend)
    weight = np.array([NAN, -INF, -0.0, TINY, -1.0, NAN, -0.0, TINY], F)
    got = ops.mask_apply(weight, np.array([0b11100000], np.uint8))
    assert got.tobytes() == np.array([0, 0, 0, 0, 0, NAN, -0.0, TINY], F).tobytes()


def test_nf4_of_nan_and_infinity(backend):
    """The block's absmax says so (a model with one is refused); nothing raises, and every tier gives the same bytes."""
    ops = minedge.ops.get(backend)
    x = np.linspace(-1, 1, 3 * 32, dtype=F).reshape(3, 32)
    x[0, 3], x[1, 3], x[2, 3] = NAN, INF, -INF
    (q, a), (want_q, want_a) = ops.nf4_quantize(x, 32), minedge.ops.get("numpy").nf4_quantize(x, 32)
    _same(q, want_q)
    _same(a, want_a)
    assert np.isnan(want_a[0, 0]) and (want_a[1:] == INF).all()
