"""Int8: bytes against GGML's, every verb over it, LoRA training, files."""

from __future__ import annotations

import numpy as np
import pytest

import minedge
from minedge import lora, mezo, prune, quant
from minedge.compress import int8
from minedge.compress.int4 import Int4
from minedge.compress.int8 import Int8
from minedge.errors import MinedgeFormatError, UsageError
from minedge.model.linears import Dense, kind_from_dict
from minedge.ops import get
from tests.methods import checks, int8_checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_are_ggml_q8_0(backend):
    int8_checks.int8_bytes_are_ggml_q8_0(get(backend), 100_000 if backend == "numpy" else 2_000)


def test_kind_is_its_equations():
    int8_checks.int8_kind_is_its_equations(int8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_model(backend, architecture, monkeypatch):
    m = model(architecture, backend)
    before = fingerprint(m)
    packed = quant.int8(m)
    assert fingerprint(m) == before
    embed = m.config.arch.embed
    assert {n for n, k in packed.linears.items() if k != Int8()} == {embed}
    dense = quant.dequantize(packed)
    np.testing.assert_allclose(packed.logits(tokens()), dense.logits(tokens()), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(int8, "TILE", 64 * 7)
    np.testing.assert_allclose(packed.logits(tokens()), dense.logits(tokens()), rtol=1e-4, atol=1e-4)
    assert fingerprint(quant.int8(packed)) == fingerprint(packed)
    everything = quant.int8(m, embeddings=True)
    for part in ("embedding", "linear"):
        assert everything.nbytes()[part] == m.nbytes()[part] * (1 + 2 / 32) / 4
    assert abs(everything.loss(tokens()) - m.loss(tokens())) < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_lora_trains_over_it(backend):
    """The base is frozen, and a small step against the adapter's gradient lowers the loss by its slope."""
    packed = quant.int8(model(backend=backend), embeddings=True)
    adapted = with_random_adapters(lora.add(packed, r=4, target="all"))
    loss, grads = adapted.loss_and_grads(tokens())
    assert set(grads) == adapted.trainable_names
    assert all(n not in adapted.trainable_names for n in packed.params)
    slope = sum(float(np.square(g.astype(np.float64)).sum()) for g in grads.values())
    scale = np.float32(0.05 / np.sqrt(slope))
    stepped = adapted.with_params({**adapted.params, **{n: adapted.params[n] - scale * g for n, g in grads.items()}})
    assert loss - stepped.loss(tokens()) == pytest.approx(slope * scale, rel=0.3)


@pytest.mark.parametrize("tile", [1 << 20, 32 * 5])
def test_gradients_by_differences(tile, monkeypatch):
    monkeypatch.setattr(int8, "TILE", tile)
    checks.lora_backward_inverts_forward(lora, Int8())


def test_mezo_over_it():
    adapted = lora.add(quant.int8(model()), r=2).trainable()
    before = {n: a.copy() for n, a in adapted.params.items()}
    mezo.MeZO(lr=1e-3).step(adapted, tokens())
    assert {n for n, a in adapted.params.items() if a.tobytes() != before[n].tobytes()} == adapted.trainable_names


def test_adapters_stay_on_top_and_pruned_weights_stay_zero():
    adapted = with_random_adapters(lora.add(prune.magnitude(model(), 0.5), r=2))
    packed = quant.int8(adapted)
    assert packed.linears[Q].base == Int8()
    weight = packed.linears[Q].base.dense(packed.params, Q, NUMPY)
    assert not weight[adapted.params[f"{Q}.weight"] == 0].any()
    assert np.abs(packed.logits(tokens()) - adapted.logits(tokens())).max() < 0.2


def test_int4_from_it():
    """What int4 makes of 8-bit weights is nearly what it makes of the original ones."""
    m = model()
    twice, once = quant.int4(quant.int8(m)), quant.int4(m)
    assert twice.linears[Q] == Int4(32)
    weight = m.params[f"{Q}.weight"].astype(np.float64)
    error = [np.square(k.linears[Q].dense(k.params, Q, NUMPY) - weight).mean() for k in (twice, once)]
    assert error[0] < 1.05 * error[1]


def test_merging_says_what_it_costs():
    adapted = with_random_adapters(lora.add(quant.int8(model()), r=2))
    with pytest.warns(UserWarning, match=r"merging into int8 weights loses up to \d+%"):
        merged = lora.merge(adapted)
    assert merged.linears[Q] == Int8() and lora.merge_error(adapted) > 0


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_saved_and_loaded(tmp_path, dtype):
    packed = quant.int8(model(), embeddings=True)
    packed.save(tmp_path / "m", dtype=dtype)
    again = minedge.load(tmp_path / "m", backend="numpy")
    assert again.linears == packed.linears
    for name in packed.params:
        if dtype is None or name.endswith(("qweight", "scales")):
            assert again.params[name].tobytes() == packed.params[name].tobytes(), name


@pytest.mark.parametrize("pack", [quant.int4, quant.int8, lambda m: quant.nf4(m, 32)])
def test_dequantize_is_the_way_back(pack):
    m = model()
    packed = pack(m)
    dense = quant.dequantize(packed)
    assert set(dense.linears.values()) == {Dense()} and dense.trainable_names == m.trainable_names
    for name, kind in packed.linears.items():
        np.testing.assert_array_equal(dense.params[f"{name}.weight"], kind.dense(packed.params, name, NUMPY))
    assert prune.magnitude(dense, 0.5).linears[Q].kind == "masked"
    adapted = lora.add(packed, r=2)
    wide = quant.dequantize(adapted)
    assert wide.linears[Q].base == Dense() and wide.trainable_names == adapted.trainable_names


def test_memory_is_planned_with_its_bytes():
    m = lora.add(quant.int8(model()), r=2)
    planned = minedge.plan(m, "lora", 2, 12)
    assert planned.parts["weights"] == m.nbytes()["total"]


def test_widths_that_do_not_fit():
    odd = model(n_inner=100)
    with pytest.warns(UserWarning, match=r"group_size 32 does not divide width 100 of .*down_proj: left as they are"):
        packed = quant.int8(odd)
    assert packed.linears["model.layers.0.mlp.down_proj"].kind == "dense" and packed.linears[Q] == Int8()
    with pytest.raises(UsageError, match="does not divide"):
        quant.int8(odd, strict=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, 9e6])
def test_weights_without_a_scale_are_refused(value):
    base = model()
    weight = base.params[f"{Q}.weight"].copy()
    weight[3, 7] = value
    with pytest.raises(UsageError, match=Q):
        quant.int8(base.with_params({**base.params, f"{Q}.weight": weight}))


@pytest.mark.parametrize("group_size", [16, 64, "32", None, 32.0])
def test_other_groups_are_refused(group_size):
    with pytest.raises(UsageError, match="group_size: expected 32"):
        Int8(group_size)
    with pytest.raises(MinedgeFormatError, match="group_size"):
        kind_from_dict({"kind": "int8", "group_size": group_size})
