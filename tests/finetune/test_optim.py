"""AdamW, clipping, schedules, exact accumulation: against independent float64 formulas."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

import minedge
from minedge.errors import DivergedError, UsageError
from minedge.finetune.optim import AdamW, accumulate
from minedge.finetune.schedule import learning_rate
from tests.finetune import tiny

U = 2.0**-24  # unit roundoff of float32


def adamw_formula(w, grads, lr, b1, b2, eps, decay, clip):
    """Steps of AdamW in float64 on a list of gradients, as the paper states it."""
    w, m, v = w.astype(np.float64), 0.0, 0.0
    for t, (g, norm) in enumerate(grads, 1):
        g = g.astype(np.float64) * min(1.0, clip / norm)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - lr * decay * w
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def batch(rows=3, seed=0, width=9):
    return np.random.default_rng(seed).integers(0, tiny.VOCAB, (rows, width))


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_adamw_follows_the_formula_and_decays_matrices_only(backend):
    model = tiny.model(backend=backend).trainable()
    start = {name: a.copy() for name, a in model.params.items()}
    optimizer = AdamW(model, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.3, clip=0.05)
    history = {name: [] for name in start}
    for step in range(4):
        _, grads = model.loss_and_grads(batch(seed=step))
        norm = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads.values()))
        for name, g in grads.items():
            history[name].append((g.copy(), norm))
        assert optimizer.step(grads, lr=0.01) == pytest.approx(norm, rel=1e-6)
        assert norm > 0.05  # so that clipping is really tested
    for name, w in start.items():
        expected = adamw_formula(w, history[name], 0.01, 0.8, 0.9, 1e-8, 0.3 if w.ndim == 2 else 0.0, 0.05)
        # Each of 4 steps changes w by about lr and rounds it a few times; m and v carry relative errors of some 10 U.
        # sqrt(v) + eps where v is tiny: an error of 30 U in m / sqrt(v) moves w by at most lr * 30 U * few.
        bound = 4 * (4 * U * np.abs(w).max() + 100 * U * 0.01 / (1 - 0.9) ** 0.5)
        np.testing.assert_allclose(model.params[name], expected, rtol=0, atol=bound)


def test_a_model_that_is_not_trainable_is_refused():
    with pytest.raises(UsageError, match="trainable"):
        AdamW(tiny.model())


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = tiny.model().trainable()
    optimizer = AdamW(model)
    before = {name: a.copy() for name, a in model.params.items()}
    _, grads = model.loss_and_grads(batch())
    bad = "model.layers.1.mlp.up_proj.weight"
    grads[bad][0, 0] = np.nan
    with pytest.raises(DivergedError, match=bad.replace(".", r"\.")):
        optimizer.step(grads, 0.1)
    assert all(np.array_equal(before[name], model.params[name]) for name in before)
    assert optimizer.steps == 0


def test_accumulation_is_exact_with_uneven_masks():
    """Micro-batches of different lengths and masks add up to the whole batch; the mean of their means does not."""
    model = tiny.model()
    model = dataclasses.replace(model, params={k: v.astype(np.float64) for k, v in model.params.items()})
    tokens = batch(rows=6, width=12)
    mask = (np.random.default_rng(1).random(tokens.shape) < np.linspace(0.1, 1.0, 6)[:, None]).astype(np.float64)
    mask[0, 1] = 1
    loss, grads = model.loss_and_grads(tokens, mask)
    parts = [(tokens[:1], mask[:1]), (tokens[1:3], mask[1:3]), (tokens[3:], mask[3:])]
    loss_parts, grads_parts = accumulate(model, parts)
    assert loss_parts == pytest.approx(loss, rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_parts[name], grad, rtol=1e-9, atol=1e-12)
    mean = np.mean([model.loss(t, m) for t, m in parts])
    assert abs(mean - loss) > 1e-4 * loss  # what averaging would have given


def test_micro_batches_without_a_target_are_passed_over():
    model, tokens = tiny.model(), batch(rows=4)
    mask = np.ones(tokens.shape, np.float32)
    nothing = (tokens[:2], np.zeros_like(mask[:2]))
    loss, _ = accumulate(model, [nothing, (tokens[2:], mask[2:])])
    assert loss == pytest.approx(model.loss(tokens[2:]), rel=1e-6)
    with pytest.raises(UsageError, match="loss_mask"):
        accumulate(model, [nothing, nothing])


def test_state_goes_on_bit_for_bit():
    def steps(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.step(model.loss_and_grads(batch(seed=step))[1], 0.01)

    whole = tiny.model().trainable()
    steps(whole, AdamW(whole), 0, 6)
    part = tiny.model().trainable()
    optimizer = AdamW(part)
    steps(part, optimizer, 0, 3)
    arrays, numbers = optimizer.state_dict()
    again = AdamW(part)
    again.load_state_dict({k: a.copy() for k, a in arrays.items()}, numbers)
    steps(part, again, 3, 6)
    assert all(np.array_equal(whole.params[n], part.params[n]) for n in whole.params)
    with pytest.raises(UsageError, match="optimizer state"):
        again.load_state_dict({}, numbers)


def test_schedule_rises_and_falls_to_its_end():
    rates = [learning_rate(s, 101, 2.0, warmup=10, final_ratio=0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) and rates[10] == pytest.approx(2.0)
    assert rates[100] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # halfway down the cosine
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    linear = [learning_rate(s, 11, 1.0, kind="linear", final_ratio=0.0) for s in range(11)]
    np.testing.assert_allclose(linear, np.linspace(1, 0, 11), atol=1e-12)
    assert learning_rate(7, 10, 3.0, kind="constant") == 3.0
    assert learning_rate(0, 1, 1.0) == 1.0  # a run of one step
    with pytest.raises(minedge.UsageError, match="did you mean 'cosine'"):
        learning_rate(0, 10, 1.0, kind="cosin")
