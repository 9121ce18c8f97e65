"""Both looks of MeZO at once: each side is what a pass of its own gives, bit for bit, and planted bugs are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import minedge
from minedge.config import Config
from minedge.finetune import mezo
from minedge.model import both_sides, transformer
from minedge.model.noise import Noise
from minedge.ops import get
from tests.mutants.planting import mutated_module

TOKENS = np.random.default_rng(1).integers(0, 37, (3, 8))


def model_of(architecture="gpt2"):
    config = Config(
        vocab_size=37, n_layer=2, n_embd=16, n_head=2, n_inner=24, context_length=16, architecture=architecture
    )
    return minedge.init(config, backend="numpy", seed=3)


def each_side_is_its_own_pass(module, architecture="gpt2"):
    model, ops = model_of(architecture), get("numpy")
    noise = Noise(4, 2, 1e-2, frozenset(model.params), 1)
    given = (model.config, model.params, model.linears, TOKENS, ops)
    found = module.both_hidden(*given, noise)
    for x, eps in zip(found, (1e-2, -1e-2), strict=True):
        expected, _ = transformer.forward_hidden(*given, replace(noise, eps=eps), keep_cache=False)
        assert x.tobytes() == expected.tobytes()


def a_waiting_tensor_is_read_once(module):
    """Reading one side alone, again and again, gives its own tensor each time and leaves one copy for the other."""
    model, ops = model_of(), get("numpy")
    noise, name = Noise(4, 2, 1e-2, frozenset(model.params)), "transformer.h.0.mlp.c_fc.weight"
    plus, minus = module.both_sides(model.params, noise, ops)
    wanted = [np.array(view[name]) for view in (plus, minus)]
    for _ in range(2):
        assert plus[name].tobytes() == wanted[0].tobytes()
    assert list(minus.made) == [name] and not plus.made
    assert minus[name].tobytes() == wanted[1].tobytes() and not minus.made


def a_step_knows_its_sides(module):
    """The projected gradient of one step, against two losses."""
    model = model_of().trainable()
    opt = module.MeZO(lr=0.0, eps=1e-2)
    noise = Noise(0, 0, 1e-2, model.trainable_names)
    plus, minus = model.loss(TOKENS, noise=noise), model.loss(TOKENS, noise=replace(noise, eps=-1e-2))
    opt.step(model, TOKENS)
    assert opt.log.projected_grads == [float(np.float32((plus - minus) / 2e-2))]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_each_side_is_its_own_pass(architecture):
    each_side_is_its_own_pass(both_sides, architecture)


def test_a_waiting_tensor_is_read_once():
    a_waiting_tensor_is_read_once(both_sides)


def test_a_step_knows_its_sides():
    a_step_knows_its_sides(mezo)


MUTANTS = {
    "the second side is the first": (
        "minedge.model.both_sides", "replace(noise, eps=-noise.eps), ops)", "noise, ops)", each_side_is_its_own_pass),
    "a waiting tensor is never let go": (
        "minedge.model.both_sides", "self.made.pop(name)", "self.made[name]", a_waiting_tensor_is_read_once),
    "positions without noise": (
        "minedge.model.both_sides", "x + Dense().rows(where, side, a.positions, ops) for",
        "x + Dense().rows(where, params, a.positions, ops) for", each_side_is_its_own_pass),
    "half of a layer left out": (
        "minedge.model.both_sides", "((a.norm1, _ATTENTION), (a.norm2, _MLP))", "((a.norm1, _ATTENTION),)",
        each_side_is_its_own_pass),
    "the remembered look is the wrong side": (
        "minedge.finetune.mezo", "replace(noise, eps=-noise.eps)] = minus, weight",
        "replace(noise, eps=-noise.eps)] = plus, weight", a_step_knows_its_sides),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_found(name):
    module, old, new, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(mutated_module(module, old, new))
