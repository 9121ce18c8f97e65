"""Logits in tiles: the loss and the gradients are those of all logits at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedge.model import head_loss, transformer
from minedge.model.shapes import head_name
from minedge.ops import get
from tests.finetune.recompute_checks import model_of
from tests.mutants.planting import mutated_module

N = 41


def case(dtype, trained, tie=True):
    model = model_of("llama", tie_embeddings=tie)
    model = model.with_params({name: array.astype(dtype) for name, array in model.params.items()})
    names = frozenset({f"{head_name(model.config)}.weight"}) if trained else frozenset({"model.norm.weight"})
    rng = np.random.default_rng(7)
    x, weights = rng.normal(size=(N, 16)).astype(dtype), rng.random(N).astype(dtype)
    weights[[0, 5, 6]] = 0
    return replace(model, trainable_names=names), x, rng.integers(0, 37, N), weights


def at_once(model, x, targets, weights, ops):
    parts = (model.config, model.params, model.linears)
    logits, cache = transformer.head_forward(*parts, x, ops)
    loss, loss_cache = ops.cross_entropy_forward(logits, targets, weights)
    dlogits = ops.cross_entropy_backward(1.0, loss_cache)
    dx, grads = transformer.head_backward(
        dlogits, cache, model.params, model.config, model.linears, ops, model.trainable_names
    )
    return loss, dx, grads


def tiles_change_nothing(module, trained, tie=True):
    """In float64 up to a few roundings of sums; five tiles, the last of another length."""
    model, x, targets, weights = case(np.float64, trained, tie)
    parts, ops = (model.config, model.params, model.linears), get("numpy")
    loss, dx, grads = at_once(model, x, targets, weights, ops)
    found, found_dx, found_grads = module.head_loss_and_grads(*parts, ops, x, targets, weights, model.trainable_names)
    assert abs(found - loss) < 1e-12 * loss and abs(module.head_loss(*parts, ops, x, targets, weights) - loss) < 1e-9
    np.testing.assert_allclose(found_dx, dx, rtol=1e-12, atol=1e-15)
    assert set(found_grads) == set(grads) == (model.trainable_names if trained else set())
    for name in grads:
        np.testing.assert_allclose(found_grads[name], grads[name], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_tiles_change_nothing(trained, tie, monkeypatch):
    monkeypatch.setattr(head_loss, "LOGIT_TILE", 9 * 37)
    tiles_change_nothing(head_loss, trained, tie)


def test_tiles_of_a_frozen_head_change_no_bit_of_dx(monkeypatch):
    model, x, targets, weights = case(np.float32, False)
    ops, parts = get("c"), (model.config, model.params, model.linears)
    dx = at_once(model, x, targets, weights, ops)[1]
    monkeypatch.setattr(head_loss, "LOGIT_TILE", 9 * 37)
    found = head_loss.head_loss_and_grads(*parts, ops, x, targets, weights, model.trainable_names)[1]
    assert found.tobytes() == dx.tobytes()


def test_a_trained_head_has_tiles_as_large_as_itself():
    config = model_of("llama", tie_embeddings=True).config
    name = f"{head_name(config)}.weight"
    assert head_loss.training_rows(replace(config, vocab_size=head_loss.LOGIT_TILE), frozenset({name})) == config.n_embd
    assert head_loss.training_rows(replace(config, vocab_size=head_loss.LOGIT_TILE), frozenset()) == 1
    assert head_loss.training_rows(config, frozenset({name})) == head_loss.LOGIT_TILE // 37


@given(st.integers(1, 10_000), st.integers(0, 300))
def test_tiles_are_as_few_as_they_can_be_and_even(count, most):
    rows = head_loss.tile_rows(count, most)
    sizes = [min(rows, count - at) for at in range(0, count, rows)]
    assert max(sizes) <= max(1, most) and sum(sizes) == count
    assert len(sizes) <= -(-count // max(1, most))
    assert (most + 1) * len(sizes) <= 2 * count or len(sizes) == 1  # on average more than half full


MUTANTS = {
    "gradients of the last tile alone": ("transformer.add_grads_(grads, more)", "grads = more"),
    "the first tile's targets for all": (
        "logits, targets[at], weights[at]",
        "logits, targets[: len(logits)], weights[at]",
    ),
    "the last tile left out": ("range(0, count, max(1, size)))", "range(0, count - size, size))"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_found(name):
    module = mutated_module("minedge.model.head_loss", *MUTANTS[name])
    module.__dict__["LOGIT_TILE"] = 9 * 37
    with pytest.raises((AssertionError, ValueError)):
        tiles_change_nothing(module, True)
