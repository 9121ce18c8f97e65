"""Backward makes norms' and activations' outputs again, with `checkpoint` whole halves of layers, to the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import minedge
from minedge.config import ARCHITECTURES, Config
from minedge.data.packing import PackedText
from minedge.model import transformer
from tests.finetune import recompute_checks as checks
from tests.mutants.planting import mutated_module


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("backend", ["numpy", "c"])
@pytest.mark.parametrize("adapter", [False, True])
def test_checkpoint_changes_no_bit(architecture, backend, adapter):
    model = checks.model_of(architecture, backend)
    checks.checkpoint_changes_no_bit(transformer, checks.adapted(model) if adapter else model)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_backward_inverts_forward(architecture):
    checks.backward_inverts_forward(transformer, checks.model_of(architecture))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("adapter", [False, True])
def test_no_more_is_kept_than_needed(architecture, adapter):
    model = checks.model_of(architecture, "c")
    checks.no_more_is_kept_than_needed(transformer, checks.adapted(model) if adapter else model)


def test_training_with_checkpoints_gives_the_same_weights_and_says_no_word_about_it(tmp_path):
    model = checks.model_of("llama", "c")
    data = PackedText(np.random.default_rng(0).integers(0, 37, 400), 0, 9, 400)
    common = dict(method="full", iters=3, batch_size=2, seq_len=9, learning_rate=1e-2, grad_accum=2)
    one = minedge.train(model, data, **common)
    other = minedge.train(model, data, grad_checkpoint=True, **common)
    for name in one.params:
        np.testing.assert_array_equal(one.params[name], other.params[name])
    said = []
    minedge.train(model, data, out=tmp_path, **{**common, "iters": 2}, schedule="constant")
    minedge.train(
        model, data, out=tmp_path, resume="auto", grad_checkpoint=True, on_event=said.append, schedule="constant",
        **common,
    )  # fmt: skip
    assert not [event for event in said if event.kind == "warning" and "grad_checkpoint" in event.message]
    with pytest.raises(minedge.UsageError, match="grad_checkpoint"):
        minedge.train(model, data, grad_checkpoint="yes", **common)


def test_a_plan_with_checkpoints_needs_less():
    config = Config(vocab_size=64, n_layer=8, n_embd=64, n_head=4, n_inner=256, context_length=256)
    kept, again = (
        minedge.plan(config, "full", 8, 256, grad_checkpoint=checkpoint).parts["activations"]
        for checkpoint in (False, True)
    )
    assert again < kept / 2


MUTANTS = {
    "the norm's input taken for its output": (
        "n = _norm_forward(x, run, name)[0] if trained else x", "n = x", checks.checkpoint_changes_no_bit),
    "the activation's input taken for its output": (
        "h = _activation(a, list(act), ops)[0] if run.trains(name) else act[0]", "h = act[0]",
        checks.backward_inverts_forward),
    "norm outputs kept": ("_put(cache, n, _NORMED)", "cache", checks.no_more_is_kept_than_needed),
    "activation outputs kept": ("_put(out_cache, h, _ACTIVATED)", "out_cache", checks.no_more_is_kept_than_needed),
    "everything kept with checkpoints": (
        "() if run.checkpoint else", "cache if run.checkpoint else", checks.no_more_is_kept_than_needed),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_found(name):
    old, new, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(mutated_module("minedge.model.transformer", old, new), checks.model_of("llama", "c"))
