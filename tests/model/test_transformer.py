"""The decoder: its backward against finite differences, its cache against the full forward, its options against one
another.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import minedge
from minedge.config import ARCHITECTURES, Config
from minedge.errors import UsageError
from minedge.model import transformer
from minedge.model.kvcache import KVCache
from minedge.model.rotary import rotary_tables

SIZES = dict(vocab_size=37, n_layer=2, n_embd=16, n_head=4, n_inner=24, context_length=12)


def tiny(architecture: str, **changes) -> Config:
    kv = {} if architecture == "gpt2" else {"n_kv_head": 2}
    return Config(**{**SIZES, **kv, "architecture": architecture, **changes})


def random_model(config: Config, dtype=np.float64, seed: int = 0):
    """Weights large enough that every term of every gradient matters (training's init is nearly linear)."""
    rng = np.random.default_rng(seed)
    model = minedge.init(config, backend="numpy")
    return model.with_params({k: (v + rng.normal(0, 0.3, v.shape)).astype(dtype) for k, v in model.params.items()})


def directional_error(model, tokens, mask, seed=1) -> float:
    """Relative gap between <grad, d> and the loss's derivative along a random d, by a fourth-order difference."""
    rng = np.random.default_rng(seed)
    _, grads = model.loss_and_grads(tokens, mask)
    assert set(grads) == set(model.trainable_names)
    direction = {k: rng.normal(size=model.params[k].shape) for k in grads}

    def loss(e: float) -> float:
        return model.with_params({k: v + e * direction.get(k, 0.0) for k, v in model.params.items()}).loss(tokens, mask)

    e = 3e-5
    numeric = (8 * (loss(e) - loss(-e)) - (loss(2 * e) - loss(-2 * e))) / (12 * e)
    analytic = sum(float((grads[k] * direction[k]).sum()) for k in grads)
    return abs(numeric - analytic) / abs(numeric)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("tie", [True, False])
def test_gradient_is_the_derivative_of_the_loss(architecture, tie):
    rng = np.random.default_rng(3)
    model = random_model(tiny(architecture, tie_embeddings=tie))
    tokens, mask = rng.integers(0, 37, (3, 12)), rng.random((3, 12))
    assert directional_error(model, tokens, mask) < 1e-6


@pytest.mark.parametrize(
    "which", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_gradient_of_a_single_array(which):
    """A backward that stops below the lowest wanted array must not change that array's gradient."""
    rng = np.random.default_rng(4)
    model = random_model(tiny("llama"))
    tokens = rng.integers(0, 37, (2, 9))
    full = model.loss_and_grads(tokens)[1][which]
    alone = replace(model, trainable_names=frozenset({which})).loss_and_grads(tokens)[1]
    assert list(alone) == [which]
    np.testing.assert_array_equal(alone[which], full)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ],
)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_cache_gives_what_the_full_forward_gives(architecture, scaling):
    if architecture == "gpt2" and scaling:
        scaling = None  # learned positions have nothing to scale
    config = tiny(architecture, rope_scaling=tuple(sorted(scaling.items())) if scaling else None)
    model = random_model(config)
    tokens = np.random.default_rng(5).integers(0, 37, (3, 12))
    whole = model.logits(tokens)
    kv = KVCache(config, 3, 12, np.float64)
    parts = [
        transformer.forward(config, model.params, model.linears, tokens[:, a:b], model.ops, kv=kv, keep_cache=False)[0]
        for a, b in [(0, 5), (5, 6), (6, 12)]
    ]
    # float64: a difference in the order of at most a few hundred additions
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-11)


def test_future_tokens_change_nothing():
    model = random_model(tiny("llama"))
    tokens = np.random.default_rng(6).integers(0, 37, (1, 12))
    other = tokens.copy()
    other[:, 7:] = (other[:, 7:] + 1) % 37
    np.testing.assert_array_equal(model.logits(tokens)[:, :7], model.logits(other)[:, :7])
    assert not np.array_equal(model.logits(tokens)[:, 7:], model.logits(other)[:, 7:])


def test_batch_is_rows():
    model = random_model(tiny("qwen3"))
    tokens = np.random.default_rng(7).integers(0, 37, (5, 11))
    single = np.concatenate([model.logits(row[None]) for row in tokens])
    np.testing.assert_allclose(model.logits(tokens), single, rtol=0, atol=1e-12)


def test_rotary_scores_depend_on_distance_only():
    """With identical tokens every position sees the same content, so attention cannot tell positions apart by
    content.
    """
    ops = minedge.ops.get("numpy")
    rng = np.random.default_rng(8)
    cos, sin = rotary_tables(tiny("llama", context_length=64))
    q, k = rng.normal(size=(1, 1, 1, 4)), rng.normal(size=(1, 1, 1, 4))

    def score(i: int, j: int) -> float:
        turned = [
            ops.rotary_forward(x, cos[n : n + 1].astype(float), sin[n : n + 1].astype(float))[0]
            for x, n in ((q, i), (k, j))
        ]
        return float((turned[0] * turned[1]).sum())

    # the tables are float32: angles are off by 2^-24 relative, scores by a few 1e-6
    assert abs(score(10, 3) - score(47, 40)) < 1e-5
    assert abs(score(10, 3) - score(10, 4)) > 1e-3


def test_loss_adds_up_over_micro_batches():
    model = random_model(tiny("llama"))
    rng = np.random.default_rng(9)
    tokens, mask = rng.integers(0, 37, (6, 10)), (rng.random((6, 10)) < 0.5).astype(float)
    sums = [model.loss_sum(tokens[a : a + 2], mask[a : a + 2]) for a in (0, 2, 4)]
    total, weight = np.sum(sums, axis=0)
    assert model.loss(tokens, mask) == pytest.approx(total / weight, rel=1e-12)
    whole = model.loss_and_grads(tokens, mask)[1]
    parts = [model.loss_and_grads(tokens[a : a + 2], mask[a : a + 2], normalizer=weight)[1] for a in (0, 2, 4)]
    for name in whole:
        np.testing.assert_allclose(sum(p[name] for p in parts), whole[name], rtol=1e-9, atol=1e-12)


def test_token_losses_average_to_the_loss():
    model = random_model(tiny("gpt2"))
    tokens = np.random.default_rng(10).integers(0, 37, (4, 12))
    assert model.token_losses(tokens).mean() == pytest.approx(model.loss(tokens), rel=1e-12)


def test_masked_positions_and_column_zero_do_not_count():
    model = random_model(tiny("llama"))
    tokens = np.random.default_rng(11).integers(0, 37, (2, 8))
    mask = np.ones((2, 8))
    mask[:, 0] = 123.0
    assert model.loss(tokens, mask) == model.loss(tokens)
    mask[:, 5:] = 0
    assert model.loss(tokens, mask) == pytest.approx(model.loss(tokens[:, :5]), rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.zeros((1, 13), int), "context of 12"),
        (np.full((1, 4), 37), "0..36"),
        (np.full((1, 4), -1), "0..36"),
        (np.zeros((1, 4)), "integers"),
        (np.zeros(4, int), "(B, T)"),
        (np.zeros((0, 4), int), "non-empty"),
    ],
)
def test_bad_tokens_are_named(tokens, words):
    with pytest.raises(UsageError, match="tokens") as error:
        random_model(tiny("llama")).logits(tokens)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"n_head": 5}, "n_head"),
        ({"n_kv_head": 3}, "n_kv_head"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"architecture": "lama"}, "did you mean 'llama'"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"n_embd": 12}, "head_dim"),
        ({"head_dim": 1026}, "head_dim: expected at most 1024, got 1026"),
        ({"rope_scaling": (("type", "yarn"),)}, "rope_scaling"),
    ],
)
def test_contradicting_sizes_are_named(change, name):
    with pytest.raises(ValueError, match=name.replace("(", r"\(")):
        Config(**{**SIZES, **change})


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_config_survives_hugging_face_json(architecture):
    config = tiny(architecture, eos_token_id=(3, 4), bos_token_id=1)
    assert replace(Config.from_hf(config.to_hf()), extra=()) == config


def test_trainable_owns_only_its_arrays():
    model = random_model(tiny("llama"), np.float32)
    before = {k: v.tobytes() for k, v in model.params.items()}
    name = "model.norm.weight"
    mine = model.trainable(frozenset({name}))
    mine.params[name][:] = 7
    assert {k: v.tobytes() for k, v in model.params.items()} == before
    for key, array in mine.params.items():
        assert array.flags.writeable == (key == name)
        assert np.shares_memory(array, model.params[key]) == (key != name)
    with pytest.raises(ValueError, match="read-only"):
        model.params[name][:] = 0
    with pytest.raises(UsageError, match=r"model\.trainable\(\)"):
        model.require_trainable()
