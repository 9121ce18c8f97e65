"""Where float32 has no rounding to do, no tier may round: small integers give the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import EXPECTED

import minedge.ops

SIZES = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 33])


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("backend", EXPECTED)
@given(N=SIZES, C=SIZES, M=SIZES, seed=st.integers(0, 99))
def test_products_and_sums_of_small_integers_are_exact(backend, N, C, M, seed):
    ops = minedge.ops.get(backend)
    x, weight, dout = integers(seed, N, C), integers(seed + 1, M, C), integers(seed + 2, N, M)
    i = lambda a: a.astype(np.int64)  # noqa: E731
    out, cache = ops.linear_forward(x, weight)
    assert np.array_equal(out, i(x) @ i(weight).T)
    dx, dweight = ops.linear_backward(dout, cache)
    assert np.array_equal(dx, i(dout) @ i(weight))
    assert np.array_equal(dweight, i(dout).T @ i(x))
    assert np.array_equal(ops.bias_backward(x, ())[1], i(x).sum(axis=0))
    ids = np.random.default_rng(seed).integers(0, M, N)
    want = np.zeros((M, C), np.int64)
    for row, token in enumerate(ids):
        want[token] += i(x)[row]
    assert np.array_equal(ops.embedding_backward(x, (ids, (M, C))), want)
    assert ops.sum_squares(x) == int((i(x) ** 2).sum())


@pytest.mark.parametrize("backend", EXPECTED)
@given(T=SIZES, half=SIZES, seed=st.integers(0, 99))
def test_quarter_turns_are_exact(backend, T, half, seed):
    ops = minedge.ops.get(backend)
    x = integers(seed, 2, T, 3, 2 * half)
    quarter = np.random.default_rng(seed).integers(0, 4, (T, half))
    cos = np.array([1, 0, -1, 0], np.float32)[quarter]
    sin = np.array([0, 1, 0, -1], np.float32)[quarter]
    turned = (x[..., :half] + 1j * x[..., half:]) * (1j**quarter)[:, None, :].round()
    out, cache = ops.rotary_forward(x, cos, sin)
    assert np.array_equal(out, np.concatenate([turned.real, turned.imag], axis=-1))
    assert np.array_equal(ops.rotary_backward(out, cache), x)


@pytest.mark.parametrize("backend", EXPECTED)
@given(T=st.sampled_from([1, 2, 4, 7, 8, 16, 17]), D=st.sampled_from([4, 16, 64]), seed=st.integers(0, 99))
def test_attention_over_two_to_the_k_equal_scores_is_the_exact_mean(backend, T, D, seed):
    """With q = 0 every score is 0, exp(0) = 1, and 1 / n is exact where n is a power of two."""
    ops = minedge.ops.get(backend)
    q, k, v = np.zeros((1, T, 2, D), np.float32), integers(seed, 1, T, 1, D), integers(seed + 1, 1, T, 1, D)
    out, _ = ops.attention_forward(q, k, v)
    for t in range(T):
        n = t + 1
        if n & (n - 1) == 0:
            mean = v[0, :n, 0].astype(np.int64).sum(axis=0) / n
            assert np.array_equal(out[0, t, 0], mean) and np.array_equal(out[0, t, 1], mean)


@pytest.mark.parametrize("backend", EXPECTED)
@given(N=SIZES, M=SIZES, group_size=st.sampled_from([32, 64, 128]), seed=st.integers(0, 99))
def test_int4_products_of_small_integers_are_exact(backend, N, M, group_size, seed):
    """Integer weights from -8 to 7, each group holding -8, quantize with d = 1 to themselves."""
    ops = minedge.ops.get(backend)
    weight = np.random.default_rng(seed).integers(-8, 8, (M, 2 * group_size)).astype(np.float32)
    weight[:, ::group_size] = -8
    packed, scales = ops.int4_quantize(weight, group_size)
    assert np.array_equal(scales, np.ones((M, 2), np.float16))
    assert np.array_equal(ops.int4_dequantize(packed, scales, group_size), weight)
    x = integers(seed, N, 2 * group_size)
    want = x.astype(np.int64) @ weight.astype(np.int64).T
    assert np.array_equal(ops.int4_linear_forward(x, packed, scales, group_size)[0], want)
    dx = ops.int4_linear_backward(want.astype(np.float32), (packed, scales, group_size))
    assert np.array_equal(dx, want @ weight)
    x[:, ::32] = 127  # now d = 1 for the activations too
    want = x.astype(np.int64) @ weight.astype(np.int64).T
    assert np.array_equal(ops.int4_int8_linear(x, packed, scales, group_size), want)


@pytest.mark.parametrize("backend", EXPECTED)
def test_q4_0_bytes_are_those_of_gguf(backend):
    gguf = pytest.importorskip("gguf")
    from op_checks.int4 import special_groups

    ops = minedge.ops.get(backend)
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    special = np.tile(special_groups(32)[[0, 2, 3, 4, 5, 8, 9]], (1, 8))  # gguf warns of overflow and denormals
    weight = np.concatenate([rows, special])
    packed, scales = ops.int4_quantize(weight, 32)
    blocks = np.concatenate([scales[..., None].view(np.uint8), packed.reshape(len(weight), -1, 16)], axis=-1)
    want = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(blocks.reshape(len(weight), -1), want)
    back = gguf.quants.dequantize(want, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(ops.int4_dequantize(packed, scales, 32), back)
