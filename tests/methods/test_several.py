"""Several adapters on one base: weighted merging, exact stacking, ranks by module in one file."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from minedge import lora, quant
from minedge.errors import UsageError
from tests.methods import several_checks
from tests.methods.common import fingerprint, model, tokens, with_random_adapters

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def several(base=None):
    """a on q, rank 2; b on q and v, rank 3, rsLoRA; c on v, switched off. All random."""
    m = model() if base is None else base
    m = with_random_adapters(lora.add(m, r=2, lora_alpha=5, target="q_proj", adapter="a"), 0.1, 1)
    m = with_random_adapters(lora.add(m, r=3, adapter="b", use_rslora=True), 0.1, 2)
    m = with_random_adapters(lora.add(m, r=2, target="v_proj", adapter="c"), 0.1, 3)
    return lora.set_active(m, False, "c")


def test_stacking_is_the_weighted_sum():
    several_checks.stacking_is_exact(lora)


def test_averaging_factors_is_not():
    """What stacking is for: mean(B) mean(A) is far from the mean of the products (relative error 0.8 or so)."""
    rng = np.random.default_rng(0)
    (A1, A2), (B1, B2) = rng.normal(size=(2, 8, 64)), rng.normal(size=(2, 64, 8))
    exact = (B1 @ A1 + B2 @ A2) / 2
    averaged = (B1 + B2) / 2 @ ((A1 + A2) / 2)
    assert np.linalg.norm(averaged - exact) > 0.5 * np.linalg.norm(exact)


def test_stacked_model():
    both = several()
    before = fingerprint(both)
    one = lora.stack(both, {"a": 0.7, "b": -0.3}, adapter="ab")
    assert fingerprint(both) == before
    kinds = one.linears[Q], one.linears[V]
    assert [(k.adapter, k.r, k.scaling) for k in kinds] == [("ab", 5, 1.0), ("ab", 3, 1.0)]
    assert kinds[1].base.adapter == "c" and not kinds[1].base.active
    expected = lora.merge(both, {"a": 0.7, "b": -0.3}).logits(tokens())
    np.testing.assert_allclose(one.logits(tokens()), expected, rtol=1e-4, atol=1e-4)
    assert one.trainable_names == {n for n in one.params if ".lora_" in n and ".ab." in n}
    default = lora.stack(both)  # every active adapter, once: the logits stay what they are
    np.testing.assert_allclose(default.logits(tokens()), both.logits(tokens()), rtol=1e-4, atol=1e-4)


def test_stack_wider_than_the_matrix():
    """Ranks add up past the narrower side: no more useful than a dense change, but still exact."""
    m = with_random_adapters(lora.add(model(), r=32, adapter="a"))
    both = with_random_adapters(lora.add(m, r=32, adapter="b"))
    stacked = lora.stack(both)
    assert stacked.linears[V].r == 64 > 32
    np.testing.assert_allclose(stacked.logits(tokens()), both.logits(tokens()), rtol=1e-4, atol=1e-4)


def test_weighted_merge_is_linear_and_takes_only_those_named():
    both = several()
    base = both.params[f"{V}.weight"]
    b, c = (lora.merge(both, {name: 1.0}).params[f"{V}.weight"].astype(np.float64) - base for name in ("b", "c"))
    merged = lora.merge(both, {"b": 0.7, "c": 0.3})
    np.testing.assert_allclose(merged.params[f"{V}.weight"], base + 0.7 * b + 0.3 * c, atol=1e-6)
    assert np.abs(0.7 * b + 0.3 * c).max() > 0.01
    assert merged.linears[V] == model().linears[V] and merged.linears[Q].adapter == "a"
    assert merged.params[f"{Q}.lora_A.a.weight"].tobytes() == both.params[f"{Q}.lora_A.a.weight"].tobytes()
    np.testing.assert_array_equal(lora.merge(both, {"a": 0}).params[f"{Q}.weight"], both.params[f"{Q}.weight"])
    assert fingerprint(lora.merge(both, {"a": 1, "b": 1})) == fingerprint(lora.merge(both))


def test_merge_error_of_weights():
    both = several(quant.int4(model()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = lora.merge(both, {"a": 2.0})
    change = 2.0 * both.linears[Q].base.change(both.params, Q, both.ops)
    wanted = both.linears[Q].base.base.dense(both.params, Q, both.ops) + change
    got = merged.linears[Q].base.dense(merged.params, Q, both.ops)
    assert lora.merge_error(both, {"a": 2.0}) >= np.abs(got - wanted).max() > 0


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"d": 1.0}, r"no adapter 'd'.*it has a, b, c"),
        ({"bb": 1.0}, r"did you mean 'b'"),
        ({}, "expected names"),
        ([("a", 1)], "expected names"),
        ({"a": "1"}, "'a': expected a finite number"),
        ({"a": float("nan")}, "'a': expected a finite number"),
        ({"a": True}, "'a': expected a finite number"),
    ],
)
def test_bad_weights(weights, message):
    for verb in (lora.merge, lora.merge_error, lora.stack):
        with pytest.raises(UsageError, match=message):
            verb(several(), weights)


def test_what_cannot_be_stacked():
    with pytest.raises(UsageError, match="no adapter"):
        lora.stack(model())
    with pytest.raises(UsageError, match="switched off"):
        lora.stack(lora.set_active(several(), False))
    with pytest.raises(UsageError, match="'c' already"):
        lora.stack(several(), {"a": 1, "b": 1}, adapter="c")
    with pytest.raises(UsageError, match="dora adapter"):
        lora.stack(lora.add(several(), use_dora=True, adapter="d"), {"a": 1, "d": 1})


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_ranks_by_module_go_through_a_file(tmp_path, architecture):
    m = model(architecture)
    first, second = ("c_attn", "mlp.c_proj") if architecture == "gpt2" else ("q_proj", "v_proj")
    m1 = with_random_adapters(lora.add(m, r=2, target=first, adapter="a"), 0.1)
    m2 = with_random_adapters(lora.add(m1, r=3, target=(first, second), adapter="b"), 0.1)
    one = lora.stack(m2)
    lora.save_adapter(one, tmp_path / "s")
    config = json.loads((tmp_path / "s" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] and set(config["rank_pattern"].values()) <= {3, 5}
    again = lora.load_adapter(m, tmp_path / "s", adapter="stacked")
    assert fingerprint(again)[:4] == fingerprint(one)[:4]
