"""LoRA: its equation, its start, its gradients over every base, merging, and files."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import minedge
from minedge import lora, mezo, prune, quant
from minedge.compress.int4 import Int4
from minedge.compress.prune import Masked
from minedge.errors import MinedgeError, MinedgeFormatError, UsageError
from minedge.finetune.lora import LoRA
from minedge.model.linears import Dense, kind_from_dict
from minedge.model.noise import Noise, Perturbed
from tests.methods import checks
from tests.methods.common import BACKENDS, NUMPY, fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"


def test_output_is_the_papers_equation():
    checks.lora_is_its_equation(lora)


@pytest.mark.parametrize(
    "base", [Dense(), Int4(32), Masked(), LoRA(Dense(), r=5, adapter="inner")], ids=lambda k: k.kind
)
def test_gradients_by_differences(base):
    if base.is_adapter:  # its own arrays are trained along
        nested_gradients(base)
    else:
        checks.lora_backward_inverts_forward(lora, base)


def nested_gradients(inner):
    """Two adapters on one matrix are one adapter of the stacked factors."""
    rng = np.random.default_rng(3)
    kind = LoRA(inner, r=3, lora_alpha=6.0, adapter="outer")
    params = {n: rng.normal(size=shape) for n, (shape, _) in kind.shapes("w", 8, 9).items()}
    x, dout = rng.normal(size=(4, 9)), rng.normal(size=(4, 8))
    out, cache = kind.forward(x, params, "w", NUMPY)
    (ao, bo), (ai, bi) = (tuple(params[n] for n in k.names("w")) for k in (kind, inner))
    W = params["w.weight"] + 2.0 * bo @ ao + 16 / 5 * bi @ ai
    np.testing.assert_allclose(out, x @ W.T, rtol=1e-12)
    dx, grads = kind.backward(dout, cache, params, "w", NUMPY, frozenset(params))
    dW = dout.T @ x
    expected = {"w.weight": dW}
    for k, a, b, s in ((kind, ao, bo, 2.0), (inner, ai, bi, 16 / 5)):
        expected.update(zip(k.names("w"), (s * b.T @ dW, s * dW @ a.T), strict=True))
    assert set(grads) == set(expected)
    for name, grad in expected.items():
        np.testing.assert_allclose(grads[name], grad, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(dx, dout @ W, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("base", ["dense", "int4", "masked", "gpt2", "nested"])
def test_b_zero_is_the_base_bit_for_bit(backend, base):
    m = model("gpt2" if base == "gpt2" else "llama", backend)
    m = {"int4": quant.int4, "masked": prune.magnitude, "nested": lambda m: trained(m, adapter="first")}.get(
        base, lambda m: m
    )(m)
    before = fingerprint(m)
    adapted = lora.add(m, r=4, target="all")
    assert fingerprint(m) == before
    assert adapted.logits(tokens()).tobytes() == m.logits(tokens()).tobytes()
    for name, array in m.params.items():
        assert np.shares_memory(array, adapted.params[name])


def test_start_is_kaiming_uniform_and_different_everywhere():
    checks.lora_starts_as_the_base(lora)


def test_start_depends_on_seed_and_name_only():
    """A module starts the same whichever other modules have adapters; another seed or name starts differently."""
    m = model()
    key = f"{Q}.lora_A.default.weight"
    start = lora.add(m, r=4, target="q_proj", seed=1).params[key]
    np.testing.assert_array_equal(lora.add(m, r=4, target="all", seed=1).params[key], start)
    assert (lora.add(m, r=4, target="q_proj", seed=2).params[key] != start).mean() > 0.99
    other = lora.add(m, r=4, target="q_proj", seed=1, adapter="other").params[f"{Q}.lora_A.other.weight"]
    assert (other != start).mean() > 0.99


@pytest.mark.parametrize(
    "width, layers, per_layer, r, expected",
    [
        (12288, 96, 2, 1, 4_718_592),  # GPT-3 175B, q and v, r = 1: the paper's 4.7M
        (12288, 96, 2, 8, 37_748_736),
        (12288, 96, 1, 8, 18_874_368),  # the 18M budget of Table 5, three ways
        (12288, 96, 2, 4, 18_874_368),
        (12288, 96, 4, 2, 18_874_368),
        (768, 12, 2, 8, 294_912),  # RoBERTa base: 0.3M
        (1024, 24, 2, 8, 786_432),  # RoBERTa large: 0.8M
    ],
)
def test_trainable_counts_of_the_paper(width, layers, per_layer, r, expected):
    kind = LoRA(r=r)
    shapes = kind.shapes("w", width, width)
    one = sum(int(np.prod(shapes[name][0])) for name in kind.trainable("w"))
    assert layers * per_layer * one == expected


def test_count_is_r_times_in_plus_out():
    m = model()
    adapted = lora.add(m, r=3)
    expected = sum(3 * (64 + out) for out in (64, 32)) * 2  # q and v of two layers
    assert lora.count(adapted) == adapted.n_params(trainable=True) == expected
    assert lora.count(lora.set_active(adapted, False)) == 0
    assert lora.count(m) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("base", ["dense", "int4", "masked", "int4 of masked"])
def test_gradients_of_a_model_are_the_adapters_alone(backend, base):
    m = model(backend=backend)
    if "masked" in base:
        m = prune.magnitude(m, 0.5)
    if "int4" in base:
        m = quant.int4(m)
    adapted = trained(m, target="all")
    _, grads = adapted.loss_and_grads(tokens())
    assert set(grads) == set(adapted.trainable_names)
    rng = np.random.default_rng(0)
    direction = {n: rng.normal(size=g.shape).astype(np.float32) for n, g in grads.items()}
    slope = sum(float((grads[n].astype(np.float64) * d).sum()) for n, d in direction.items())

    def moved(t):
        return adapted.with_params({n: a + np.float32(t) * direction[n] if n in direction else a
                                    for n, a in adapted.params.items()}).loss(tokens())  # fmt: skip

    assert (moved(1e-3) - moved(-1e-3)) / 2e-3 == pytest.approx(slope, rel=2e-2)


# --- merging --------------------------------------------------------------------------------------------------------


def test_merged_equals_unmerged_within_rounding():
    checks.lora_merged_equals_unmerged(lora)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_merged_model(backend, architecture):
    base = model(architecture, backend)
    adapted = trained(trained(base, target="all", adapter="one"), target="all", adapter="two")
    before = fingerprint(adapted)
    merged = lora.merge(adapted)
    assert fingerprint(adapted) == before
    assert set(merged.params) == set(base.params)
    assert merged.linears == base.linears
    assert merged.trainable_names == base.trainable_names
    np.testing.assert_allclose(merged.logits(tokens()), adapted.logits(tokens()), rtol=1e-5, atol=1e-5)
    assert lora.merge_error(adapted) == 0
    assert fingerprint(lora.merge(base)) == fingerprint(base)


def test_inactive_adapters_are_not_merged_and_not_lost():
    checks.lora_inactive_is_not_merged(lora)


@pytest.mark.parametrize("base", ["int4", "masked"])
def test_merging_into_compressed_weights_says_what_it_costs(base):
    m = model()
    m = quant.int4(m) if base == "int4" else prune.magnitude(m, 0.5)
    adapted = trained(m)
    with pytest.warns(UserWarning, match=rf"merging into {base} weights loses up to \d+%"):
        merged = lora.merge(adapted)
    assert merged.linears == m.linears
    largest = max(
        np.abs(
            merged.linears[n].dense(merged.params, n, NUMPY) - adapted.linears[n].dense(adapted.params, n, NUMPY)
        ).max()
        for n in m.linears
    )
    assert lora.merge_error(adapted) == pytest.approx(largest) and largest > 0
    if base == "masked":
        assert merged.params[f"{Q}.mask"].tobytes() == m.params[f"{Q}.mask"].tobytes()
        assert not merged.params[f"{Q}.weight"][m.params[f"{Q}.weight"] == 0].any()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opened = lora.merge(prune.densify(adapted))  # what the warning recommends loses nothing
        np.testing.assert_allclose(opened.logits(tokens()), adapted.logits(tokens()), rtol=1e-5, atol=1e-5)


# --- switching ------------------------------------------------------------------------------------------------------


def test_switched_off_is_the_base_and_back():
    base = model()
    adapted = trained(base)
    off = lora.set_active(adapted, False)
    assert off.logits(tokens()).tobytes() == base.logits(tokens()).tobytes()
    assert not off.trainable_names
    on = lora.set_active(off, True)
    assert fingerprint(on) == fingerprint(adapted)
    with pytest.raises(UsageError, match="no adapter"):
        lora.set_active(base, False)


def test_one_of_two_adapters_switched_off():
    base = model()
    one, two = trained(base, adapter="one"), trained(base, adapter="two", seed=3)
    both = lora.add(one, adapter="two", seed=3)
    both = both.with_params({**both.params, **{n: two.params[n] for n in two.trainable_names}})
    assert both.trainable_names == two.trainable_names
    assert lora.set_active(both, False, "two").logits(tokens()).tobytes() == one.logits(tokens()).tobytes()
    assert lora.set_active(both, False, "one").logits(tokens()).tobytes() == two.logits(tokens()).tobytes()
    with pytest.raises(UsageError, match="'three'"):
        lora.set_active(both, False, "three")


# --- arguments ------------------------------------------------------------------------------------------------------


def test_targets():
    m = model("gpt2")
    assert {n for n, k in lora.add(m, target="c_attn").linears.items() if k.is_adapter} == {
        f"transformer.h.{i}.attn.c_attn" for i in range(2)
    }
    assert sum(k.is_adapter for k in lora.add(m, target="c_proj").linears.values()) == 4
    assert sum(k.is_adapter for k in lora.add(m, target=("attn.c_proj",)).linears.values()) == 2
    everything = lora.add(model(tie_embeddings=False), target="all")
    assert {n for n, k in everything.linears.items() if not k.is_adapter} == {"model.embed_tokens", "lm_head"}
    assert lora.add(model(tie_embeddings=False), target="lm_head").linears["lm_head"].is_adapter


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"target": "q_prj"}, r"no matrix of this llama model is called 'q_prj' \(did you mean 'q_proj'\?\)"),
        ({"target": "c_attn"}, "expected 'all' or some of .*q_proj, k_proj, v_proj"),
        ({"target": ()}, "at least one"),
        ({"target": "embed_tokens"}, "looked up"),
        ({"r": 0}, "r: expected an integer >= 1, got 0"),
        ({"r": -3}, "r: expected an integer >= 1"),
        ({"r": 2.0}, "r: expected an integer >= 1"),
        ({"r": 33}, r"r: expected at most 32 for model\.layers\.0\.self_attn\.v_proj \(32, 64\), got 33"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"seed": -1}, "seed"),
        ({"adapter": "a.b"}, "adapter: expected a name"),
        ({"adapter": ""}, "adapter: expected a name"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        lora.add(model(), **arguments)


def test_one_name_once():
    with pytest.raises(UsageError, match="called 'default' already"):
        lora.add(lora.add(model(), target="q_proj"), target="v_proj")
    with pytest.raises(UsageError, match="already"):
        LoRA(LoRA())


def test_kind_as_json():
    kind = LoRA(LoRA(Int4(64), r=2, lora_alpha=1.5, adapter="inner", active=False), r=4)
    assert kind_from_dict(kind.to_dict()) == kind
    for change in ({"r": 0}, {"r": "8"}, {"lora_alpha": None}, {"active": 1}, {"adapter": "../x"}, {"more": 1}):
        with pytest.raises(MinedgeFormatError):
            kind_from_dict({**LoRA().to_dict(), **change})


# --- MeZO over it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_reaches_the_adapter_through_params(backend):
    """The loss under noise is the loss of a model that holds the perturbed adapter: MeZO over LoRA over int4."""
    adapted = trained(quant.int4(model(backend=backend)))
    noise = Noise(seed=1, step=2, eps=0.01, names=adapted.trainable_names)
    seen = Perturbed(adapted.params, noise, adapted.ops)
    moved = adapted.with_params({name: seen[name] for name in adapted.params})
    assert adapted.loss(tokens(), noise=noise) == moved.loss(tokens()) != adapted.loss(tokens())


def test_mezo_trains_the_adapter_and_nothing_else():
    adapted = lora.add(quant.int4(model())).trainable()
    before = {n: a.copy() for n, a in adapted.params.items()}
    mezo.MeZO(lr=1e-3).step(adapted, tokens())
    changed = {n for n, a in adapted.params.items() if a.tobytes() != before[n].tobytes()}
    assert changed == adapted.trainable_names


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("base", ["dense", "int4"])
def test_saved_and_loaded_adapter(tmp_path, architecture, base):
    m = model(architecture)
    m = quant.int4(m) if base == "int4" else m
    adapted = trained(m, r=3, lora_alpha=5, target="c_attn" if architecture == "gpt2" else ("q_proj", "down_proj"))
    lora.save_adapter(adapted, tmp_path / "a")
    again = lora.load_adapter(m, tmp_path / "a")
    assert again.linears == adapted.linears
    assert again.trainable_names == adapted.trainable_names
    assert again.logits(tokens()).tobytes() == adapted.logits(tokens()).tobytes()
    with pytest.raises(MinedgeError, match="exist"):
        lora.save_adapter(adapted, tmp_path / "a")
    lora.save_adapter(lora.add(m, r=1, target="all"), tmp_path / "a", overwrite=True)
    assert lora.count(lora.load_adapter(m, tmp_path / "a")) == lora.count(lora.add(m, r=1, target="all"))


def test_files_are_pefts(tmp_path):
    import json

    from safetensors.numpy import load_file

    adapted = trained(model(), r=2, lora_alpha=6)
    lora.save_adapter(adapted, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for side, shape in (("A", (2, 64)), ("B", (64, 2))):
        stored = tensors[f"base_model.model.{Q}.lora_{side}.weight"]
        assert stored.shape == shape
        np.testing.assert_array_equal(stored, adapted.params[f"{Q}.lora_{side}.default.weight"])
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 6)
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_targets_in_the_file_name_no_other_module(tmp_path):
    import json

    adapted = lora.add(model("gpt2"), r=1, target=("attn.c_proj", "c_fc"))
    lora.save_adapter(adapted, tmp_path / "a")
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert targets == ["c_fc", "transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]
    assert lora.load_adapter(model("gpt2"), tmp_path / "a").linears == adapted.linears


def test_wrong_base_is_refused(tmp_path):
    base = model()
    adapted = trained(base)
    lora.save_adapter(adapted, tmp_path / "a")
    other = model(seed=7)
    for wrong in (other, quant.int4(base), prune.magnitude(base, 0.5)):
        with pytest.raises(UsageError, match="trained on other weights"):
            lora.load_adapter(wrong, tmp_path / "a")
    assert lora.load_adapter(other, tmp_path / "a", any_base=True).linears == adapted.linears
    # an adapter that is there already does not count as base
    lora.load_adapter(lora.add(base, adapter="first"), tmp_path / "a", adapter="second")


def test_adapter_of_another_shape_is_refused(tmp_path):
    lora.save_adapter(lora.add(model(n_layer=3), r=2), tmp_path / "deep")
    with pytest.raises(MinedgeFormatError, match=r"changes 'model\.layers\.2"):
        lora.load_adapter(model(), tmp_path / "deep", any_base=True)
    lora.save_adapter(lora.add(model(n_kv_head=4), r=2), tmp_path / "wide")
    with pytest.raises(MinedgeFormatError, match=r"v_proj\.lora_B.*expected shape \(32, 2\)"):
        lora.load_adapter(model(), tmp_path / "wide", any_base=True)


def test_which_adapter_to_save(tmp_path):
    both = lora.add(lora.add(model(), adapter="one"), adapter="two", target="all")
    with pytest.raises(UsageError, match="expected one of one, two"):
        lora.save_adapter(both, tmp_path / "a")
    lora.save_adapter(both, tmp_path / "a", adapter="one")
    assert sum(k.is_adapter for k in lora.load_adapter(model(), tmp_path / "a").linears.values()) == 4
    with pytest.raises(UsageError, match="no adapter"):
        lora.save_adapter(model(), tmp_path / "b")


def test_whole_model_with_adapters_saved_and_loaded(tmp_path):
    adapted = lora.set_active(trained(trained(model(), adapter="one"), adapter="two"), False, "one")
    adapted.save(tmp_path / "m")
    again = minedge.load(tmp_path / "m", backend="numpy")
    assert again.linears == adapted.linears
    assert again.logits(tokens()).tobytes() == adapted.logits(tokens()).tobytes()


def trained(m, **options):
    return with_random_adapters(lora.add(m, **options))


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint16])
def test_sizes_ranks_and_seeds_are_integers_of_any_type(tmp_path, kind):
    base = model("llama")
    plain = lora.add(base, r=4, lora_alpha=8, seed=3)
    made = lora.add(base, r=kind(4), lora_alpha=kind(8), seed=kind(3))
    assert made.linears == plain.linears
    assert all(made.params[name].tobytes() == array.tobytes() for name, array in plain.params.items())
    lora.save_adapter(made, tmp_path / "a")  # JSON holds plain numbers only
    packed = quant.int4(made, group_size=kind(32)).linears["model.layers.0.self_attn.q_proj"]
    assert packed.to_dict()["base"] == {"kind": "int4", "group_size": 32}
    for bad in (4.0, True, "4", None, np.float64(4), 0):
        with pytest.raises(UsageError, match="r: expected an integer >= 1"):
            lora.add(base, r=bad)
