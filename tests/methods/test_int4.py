"""Int4: bytes against GGML's, the error against its bound, odd groups, and the verb on whole models."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minedge
from minedge import lora, prune, quant
from minedge.compress.int4 import GROUP_SIZES, Int4, mse_quantize
from minedge.errors import UsageError
from minedge.ops import get
from tests.methods import checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens


@pytest.fixture(params=BACKENDS)
def ops(request):
    return get(request.param)


def test_bytes_are_ggml_q4_0(ops):
    checks.int4_bytes_are_ggml_q4_0(ops)


def test_every_byte_round_trips(ops):
    checks.int4_every_byte_round_trips(ops)


def finite_weights(width: int):
    largest = 2.0**18  # d stays within float16
    return arrays(np.float32, (2, width), elements=st.floats(-largest, largest, width=32))


@given(weight=st.sampled_from(GROUP_SIZES).flatmap(lambda g: st.tuples(st.just(g), finite_weights(2 * g))))
@settings(max_examples=200, deadline=None)
def test_error_is_within_half_a_step_or_one_where_it_clips(weight):
    group_size, values = weight
    checks.int4_error_is_bounded(NUMPY, values, group_size)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_error_bound_on_gaussian_weights(ops, group_size):
    weight = np.random.default_rng(0).normal(size=(64, 1280)).astype(np.float32)
    checks.int4_error_is_bounded(ops, weight, group_size)


def test_clipping_reaches_the_bound():
    """A weight opposite the largest and as large as it reads as 7/8 of itself: an error of one whole step."""
    weight = np.zeros((1, 32), np.float32)
    weight[0, :2] = -8, 8
    qweight, scales = NUMPY.int4_quantize(weight, 32)
    assert NUMPY.int4_dequantize(qweight, scales, 32)[0, :2].tolist() == [-8, 7]


@pytest.mark.parametrize(
    "value, read",
    [(0.0, 0.0), (-0.0, 0.0), (0.25, 0.25), (-3.0, -3.0), (1e-38, 0.0), (1e-45, 0.0), (-1e-40, 0.0)],
)
def test_groups_of_one_value(ops, value, read):
    """All equal reads back exactly where float16 holds an eighth of it; zeros and denormals read as zeros, not NaN."""
    weight = np.full((2, 64), value, np.float32)
    got = ops.int4_dequantize(*ops.int4_quantize(weight, 32), 32)
    np.testing.assert_array_equal(got, np.full((2, 64), read, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, 6e5])
def test_weights_without_a_scale_are_refused(value):
    base = model()
    name = "model.layers.1.mlp.up_proj"
    weight = base.params[f"{name}.weight"].copy()
    weight[3, 7] = value
    with pytest.raises(UsageError, match=name):
        quant.int4(base.with_params({**base.params, f"{name}.weight": weight}))


def test_int8_activations_follow_their_rule(ops):
    """d = max / 127, q = x / d rounded, halves away from zero; a product is the sum of d * scale * sum(q * code)."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(5, 128)).astype(np.float32)
    x[0, :32] = 0
    x[1, :4] = 127, 0.5, -0.5, 2.5  # d = 1: the halves show
    x[1, 4:32] = 1
    qweight, scales = ops.int4_quantize(rng.normal(size=(7, 128)).astype(np.float32), 64)
    xq, xs = ops.int8_quantize(x)
    assert xq[1, :4].tolist() == [127, 1, -1, 3]
    assert not xq[0, :32].any() and xs[0, 0] == 0
    np.testing.assert_array_equal(xs, np.abs(x.reshape(5, 4, 32)).max(-1) / np.float32(127))
    codes = np.empty((7, 128), np.int64)
    packed = qweight.reshape(7, 4, 16).astype(np.int64)
    codes.reshape(7, 4, 32)[..., :16], codes.reshape(7, 4, 32)[..., 16:] = packed % 16 - 8, packed // 16 - 8
    partial = (xq.astype(np.int64).reshape(5, 1, 4, 32) * codes.reshape(1, 7, 4, 32)).sum(-1)
    np.testing.assert_array_equal(ops.int4_int8_partials(xq, qweight), partial)
    terms = partial * np.repeat(scales.astype(np.float64), 2, axis=1)[None] * xs.astype(np.float64)[:, None]
    out = ops.int4_int8_linear(x, qweight, scales, 64)
    # four terms, two roundings each and three additions: within 8 units of their absolute sum
    assert (np.abs(out - terms.sum(-1)) <= 8 * 2.0**-24 * np.abs(terms).sum(-1)).all()


def test_int8_product_is_near_the_exact_one(ops):
    """Rounding an activation costs at most d / 2, so the product at most sum d / 2 * |w| (and float32 rounding)."""
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(4, 96)).astype(np.float32), rng.normal(size=(9, 96)).astype(np.float32)
    qweight, scales = ops.int4_quantize(weight, 32)
    read = ops.int4_dequantize(qweight, scales, 32).astype(np.float64)
    half_step = np.repeat(np.abs(x.reshape(4, 3, 32)).max(-1) / 127 / 2, 32, axis=1)
    bound = half_step @ np.abs(read).T * (1 + 1e-4) + 96 * 2.0**-24 * np.abs(x) @ np.abs(read).T
    assert (np.abs(ops.int4_int8_linear(x, qweight, scales, 32) - x @ read.T) <= bound).all()


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_mse_scale_is_never_worse_in_any_group(group_size):
    weight = np.random.default_rng(4).standard_t(4, size=(40, 256)).astype(np.float32)
    weight[0, :128] = 0

    def errors(qweight, scales):
        gap = weight - NUMPY.int4_dequantize(qweight, scales, group_size).astype(np.float64)
        return np.square(gap).reshape(-1, group_size).sum(-1)

    usual = errors(*NUMPY.int4_quantize(weight, group_size))
    searched = errors(*mse_quantize(weight, group_size, NUMPY))
    assert (searched <= usual).all()
    assert searched.sum() < 0.97 * usual.sum()


# --- whole models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_packed_model_computes_with_its_dequantized_weights(backend, architecture, embeddings):
    """The same logits as a dense model that holds the dequantized weights, up to rounding: nothing else has changed."""
    base = model(architecture, backend)
    before = fingerprint(base)
    packed = quant.int4(base, embeddings=embeddings)
    assert fingerprint(base) == before
    kinds = {name: kind.kind for name, kind in packed.linears.items()}
    assert kinds == {n: "int4" if embeddings or n != base.config.arch.embed else "dense" for n in kinds}
    weights = {f"{n}.weight": kind.dense(packed.params, n, packed.ops) for n, kind in packed.linears.items()}
    dense = base.with_params({**base.params, **weights})
    np.testing.assert_allclose(packed.logits(tokens()), dense.logits(tokens()), rtol=1e-4, atol=1e-4)


def test_bytes_are_those_of_the_buffers():
    base = model()
    packed = quant.int4(base)
    before, after = base.nbytes(), packed.nbytes()
    assert after["linear"] / before["linear"] == (0.5 + 2 / 32) / 4 < 0.15
    assert after["embedding"] == before["embedding"]
    assert after["total"] == sum(a.nbytes for a in packed.params.values())
    assert quant.int4(base, embeddings=True).nbytes()["embedding"] == before["embedding"] * (0.5 + 2 / 32) / 4
    # what was not quantized is shared, not copied
    assert np.shares_memory(packed.params["model.norm.weight"], base.params["model.norm.weight"])


def test_rows_of_a_packed_embedding_are_rows_of_its_weight():
    packed = quant.int4(model(), embeddings=True)
    kind, name, ids = packed.linears["model.embed_tokens"], "model.embed_tokens", tokens()
    rows = kind.rows(ids, packed.params, name, NUMPY)
    np.testing.assert_array_equal(rows, kind.dense(packed.params, name, NUMPY)[ids])


def test_untied_head_is_a_linear_weight():
    packed = quant.int4(model(tie_embeddings=False))
    assert packed.linears["lm_head"].kind == "int4"
    assert packed.linears["model.embed_tokens"].kind == "dense"


def test_widths_that_do_not_divide_stay_dense_with_one_warning():
    base = model()
    with pytest.warns(UserWarning, match=r"group_size 64 does not divide width 96 of model\.layers\.0\.mlp\.down_proj"):
        packed = quant.int4(base, group_size=64)
    assert {n for n, k in packed.linears.items() if k.kind == "dense" and "layers" in n} == {
        f"model.layers.{i}.mlp.down_proj" for i in range(2)
    }
    with pytest.raises(UsageError, match="does not divide"):
        quant.int4(base, group_size=64, strict=True)


@pytest.mark.parametrize("group_size", [0, 16, 33, -32, 32.0, "32", True, None])
def test_other_group_sizes_are_refused(group_size):
    with pytest.raises(UsageError, match="group_size: expected 32, 64, 128"):
        quant.int4(model(), group_size=group_size)


def test_quantizing_twice():
    """Refused, as the table of compositions says, unless something else is packed: the embedding here."""
    packed = quant.int4(model())
    for group_size in (32, 64):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UsageError, match="quantized already"):
                quant.int4(packed, group_size=group_size)
    both = quant.int4(packed, embeddings=True)
    assert {kind.kind for kind in both.linears.values()} == {"int4"}
    assert all(np.shares_memory(both.params[name], a) for name, a in packed.params.items() if ".qweight" in name)
    whole = quant.int8(model())
    assert fingerprint(quant.int8(whole)) == fingerprint(whole)  # unchanged, as the table says


def test_unknown_scale_rule():
    with pytest.raises(UsageError, match='scale: expected "max" or "mse"'):
        quant.int4(model(), scale="mean")


def test_trainable_names_keep_what_is_left():
    packed = quant.int4(model())
    assert packed.trainable_names == {n for n, a in packed.params.items() if a.dtype == np.float32}
    with pytest.raises(UsageError, match="codes"):
        packed.trainable(frozenset({"model.layers.0.mlp.up_proj.qweight"}))


def test_adapters_stay_on_top():
    base = model()
    adapted = lora.add(base, r=4)
    packed = quant.int4(adapted)
    kind = packed.linears["model.layers.0.self_attn.q_proj"]
    assert (kind.kind, kind.base.kind, kind.r) == ("lora", "int4", 4)
    assert packed.trainable_names == adapted.trainable_names
    assert packed.logits(tokens()).tobytes() == quant.int4(base).logits(tokens()).tobytes()


def test_pruned_zeros_stay_exactly_zero():
    base = model()
    pruned = prune.magnitude(base, 0.5)
    packed = quant.int4(pruned, scale="mse")
    for name in (n for n in base.linears if "layers" in n):
        read = packed.linears[name].dense(packed.params, name, NUMPY).ravel()
        assert not read[~checks.bits(pruned, name)].any()
        assert f"{name}.mask" not in packed.params


@pytest.mark.parametrize("change", ["plain", "embeddings", "lora", "mse"])
def test_saved_and_loaded(tmp_path, change):
    base = model()
    packed = quant.int4(base, embeddings=change == "embeddings", scale="mse" if change == "mse" else "max")
    if change == "lora":
        packed = lora.add(packed, r=2)
    packed.save(tmp_path / "m")
    again = minedge.load(tmp_path / "m", backend="numpy")
    assert again.linears == packed.linears
    assert again.logits(tokens()).tobytes() == packed.logits(tokens()).tobytes()
    assert again.nbytes() == packed.nbytes()


def test_a_large_matrix_is_dense_a_tile_at_a_time(monkeypatch):
    """Five tiles, the last one short: forward has the bits of one product, backward adds up in another order."""
    rng, ops, kind = np.random.default_rng(0), get("c"), Int4(32)
    weight, x = rng.normal(size=(70, 64)).astype(np.float32), rng.normal(size=(2, 5, 64)).astype(np.float32)
    packed = kind.pack("m", weight, ops)
    out, cache = kind.forward(x, packed, "m", ops)
    dx, _ = kind.backward(out, cache, packed, "m", ops, frozenset())
    monkeypatch.setattr(sys.modules["minedge.compress.int4"], "TILE", 64 * 16)
    tiled, cache = kind.forward(x, packed, "m", ops)
    assert tiled.tobytes() == out.tobytes()
    bound = 2 * 70 * 2.0**-24 * (np.abs(out) @ np.abs(kind.dense(packed, "m", ops)))
    assert (np.abs(kind.backward(out, cache, packed, "m", ops, frozenset())[0] - dx) <= bound).all()
