"""DoRA and rsLoRA: their equations, gradients, start, merging, and files."""

from __future__ import annotations

import json

import numpy as np
import pytest

import minedge
from minedge import lora, prune, quant
from minedge.compress.int4 import Int4
from minedge.compress.prune import Masked
from minedge.errors import MinedgeFormatError, UsageError
from minedge.finetune import dora
from minedge.finetune.dora import DoRA
from minedge.finetune.lora import LoRA
from minedge.model.linears import Dense, kind_class, kind_from_dict
from tests.methods import dora_checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"
M = f"{Q}.lora_magnitude_vector.default.weight"
BASES = [Dense(), Int4(32), Masked()]


def trained(m, **options):
    """As after training: B away from zero, lengths off their start."""
    adapted = lora.add(m, use_dora=True, **options)
    moved = with_random_adapters(adapted)
    lengths = {n: a * 1.2 for n, a in adapted.params.items() if "magnitude" in n and n in adapted.trainable_names}
    return moved.with_params({**moved.params, **{n: a.astype(np.float32) for n, a in lengths.items()}})


@pytest.mark.parametrize("base", BASES, ids=lambda k: k.kind)
def test_output_is_the_papers_equation(base):
    dora_checks.dora_is_its_equation(dora, base)


@pytest.mark.parametrize("base", [*BASES, LoRA(Dense(), r=2, adapter="inner")], ids=lambda k: k.kind)
def test_gradients_by_differences(base):
    dora_checks.dora_backward_inverts_forward(dora, base)


def test_starts_with_the_lengths_of_the_rows():
    dora_checks.dora_starts_as_the_base(dora)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("base", ["dense", "int4", "masked", "gpt2"])
def test_b_zero_is_the_base_bit_for_bit(backend, base):
    m = model("gpt2" if base == "gpt2" else "llama", backend)
    m = {"int4": quant.int4, "masked": prune.magnitude}.get(base, lambda m: m)(m)
    before = fingerprint(m)
    adapted = lora.add(m, r=4, target="all", use_dora=True)
    assert fingerprint(m) == before
    assert adapted.logits(tokens()).tobytes() == m.logits(tokens()).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree(backend):
    base = trained(model(backend=backend), target="all")
    expected = base.with_backend("numpy").loss_and_grads(tokens())
    loss, grads = base.loss_and_grads(tokens())
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert grads.keys() == expected[1].keys() == base.trainable_names
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected[1][name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merged_equals_unmerged(architecture):
    base = model(architecture)
    adapted = trained(base, target="all", use_rslora=True)
    merged = lora.merge(adapted)
    assert merged.linears == base.linears
    np.testing.assert_allclose(merged.logits(tokens()), adapted.logits(tokens()), rtol=1e-5, atol=1e-5)
    assert np.abs(merged.logits(tokens()) - base.logits(tokens())).max() > 0.1


def test_changes_of_several_adapters_add_up_in_any_order():
    """DoRA over LoRA, LoRA over DoRA, DoRA over DoRA: each change is that of the weight below all of them."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(6, 8))
    layers = [LoRA(r=2, adapter="a"), DoRA(r=3, adapter="b"), DoRA(r=2, adapter="c", use_rslora=True)]
    params = {"w.weight": W}
    for layer in layers:
        params.update({n: rng.normal(size=s) for n, (s, _) in layer.shapes("w", 6, 8).items() if n != "w.weight"})
    change = sum(layer.dense(params, "w", NUMPY) - W for layer in layers)
    x = rng.normal(size=(3, 8))
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        kind = Dense()
        for i in order:
            kind = kind_class(layers[i].kind)(
                kind, layers[i].r, layers[i].lora_alpha, layers[i].adapter, use_rslora=layers[i].use_rslora
            )
        np.testing.assert_allclose(kind.dense(params, "w", NUMPY), W + change, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(kind.forward(x, params, "w", NUMPY)[0], x @ (W + change).T, rtol=1e-10, atol=1e-10)


def test_switched_off_is_the_base_and_back():
    base = model()
    adapted = trained(base)
    off = lora.set_active(adapted, False)
    assert off.logits(tokens()).tobytes() == base.logits(tokens()).tobytes() and not off.trainable_names
    assert fingerprint(lora.set_active(off, True)) == fingerprint(adapted)


def test_a_row_of_zeros_has_no_direction_and_stays_finite():
    kind = DoRA(r=2)
    W = np.zeros((3, 4), np.float32)
    W[0] = 1
    params = {"w.weight": W}
    params.update(kind.start(params, "w", (3, 4), 0, NUMPY))
    x = np.ones((2, 4), np.float32)
    out, cache = kind.forward(x, params, "w", NUMPY)
    np.testing.assert_array_equal(out, x @ W.T)
    dx, grads = kind.backward(np.ones((2, 3), np.float32), cache, params, "w", NUMPY, frozenset(params))
    assert all(np.isfinite(g).all() for g in (dx, *grads.values()))


def test_rslora_divides_by_the_root_of_the_rank():
    base = model()
    plain, rooted = lora.add(base, r=16, lora_alpha=8), lora.add(base, r=16, lora_alpha=8, use_rslora=True)
    assert (plain.linears[Q].scaling, rooted.linears[Q].scaling) == (0.5, 2.0)
    assert LoRA(r=1, lora_alpha=3).scaling == LoRA(r=1, lora_alpha=3, use_rslora=True).scaling
    moved = with_random_adapters(rooted)
    louder = lora.add(base, r=16, lora_alpha=32)
    louder = louder.with_params(moved.params)
    np.testing.assert_array_equal(louder.logits(tokens()), moved.logits(tokens()))


def test_a_step_changes_directions_and_lengths():
    adapted = lora.add(model(), r=2, use_dora=True)
    loss, grads = adapted.loss_and_grads(tokens())
    stepped = adapted.with_params({**adapted.params, **{n: adapted.params[n] - 0.01 * g for n, g in grads.items()}})
    assert stepped.loss(tokens()) < loss
    assert np.abs(grads[M]).max() > 0


def test_trainable_count_adds_one_number_a_row():
    m = model()
    extra = sum(m.params[f"{n}.weight"].shape[0] for n in m.linears if n.endswith(("q_proj", "v_proj")))
    assert lora.count(lora.add(m, r=3, use_dora=True)) == lora.count(lora.add(m, r=3)) + extra


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("base", ["dense", "int4"])
def test_saved_and_loaded(tmp_path, architecture, base):
    m = model(architecture)
    m = quant.int4(m) if base == "int4" else m
    adapted = trained(m, r=3, lora_alpha=5, target="all", use_rslora=True)
    lora.save_adapter(adapted, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (True, True)
    again = lora.load_adapter(m, tmp_path / "a")
    assert fingerprint(again)[:4] == fingerprint(adapted)[:4]
    adapted.save(tmp_path / "m")
    whole = minedge.load(tmp_path / "m", backend="numpy")
    assert whole.linears == adapted.linears
    assert whole.logits(tokens()).tobytes() == adapted.logits(tokens()).tobytes()


def test_lengths_of_another_shape_are_refused(tmp_path):
    lora.save_adapter(lora.add(model(n_kv_head=4), r=2, use_dora=True, target="v_proj"), tmp_path / "wide")
    with pytest.raises(MinedgeFormatError, match="v_proj"):
        lora.load_adapter(model(), tmp_path / "wide", any_base=True)


def test_kind_as_json_and_bad_arguments():
    kind = DoRA(LoRA(Int4(64), r=2, adapter="inner", use_rslora=True), r=4)
    assert kind_from_dict(kind.to_dict()) == kind
    assert kind_from_dict({"kind": "lora", "base": {"kind": "dense"}, "r": 2}) == LoRA(r=2)  # older files
    for change in ({"r": 0}, {"use_rslora": 1}, {"use_dora": True}):
        with pytest.raises(MinedgeFormatError):
            kind_from_dict({**DoRA().to_dict(), **change})
    with pytest.raises(UsageError, match="use_dora"):
        lora.add(model(), use_dora=1)
