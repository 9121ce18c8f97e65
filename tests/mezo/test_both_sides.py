"""Both looks of MeZO at once: each side is what a pass of its own gives, bit for bit, and planted bugs are found."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import minedge
from minedge.config import Config
from minedge.finetune import lora, mezo
from minedge.model import both_sides, head_loss, transformer
from minedge.model.noise import Noise
from minedge.ops import OPS, get
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


def both_ways_are_one(module, architecture="gpt2", trained=lambda name: True):
    """All rows as one batch, or in turn: the same bits, in the specification tier."""
    model, ops = model_of(architecture), get("numpy")
    noise = Noise(4, 2, 1e-2, frozenset(filter(trained, model.params)), 1)
    given = (model.config, model.params, model.linears, TOKENS, ops, noise, False)
    for found, expected in zip(module._together(*given), module._in_turn(*given), strict=True):
        assert found.tobytes() == expected.tobytes()


def head_losses_are_those_of_two_passes(module):
    """Summed up in the same parts, with several tiles on either side; positions of weight 0 make no logits."""
    model, ops = model_of("llama"), get("numpy")
    noise = Noise(4, 2, 1e-2, frozenset(model.params), 1)
    rng = np.random.default_rng(5)
    xs = tuple(rng.normal(size=(2, 400, 16)).astype(np.float32))
    targets, weights = rng.integers(0, 37, 400), rng.random(400, dtype=np.float32)
    weights[::7] = 0
    before, module.LOGIT_TILE = module.LOGIT_TILE, 50 * 37
    try:
        assert module.both_rows(model.config, 400) == 50
        module.both_rows = lambda config, count: 100
        given = (model.config, model.params, model.linears, ops)
        sides = both_sides.both_sides(model.params, noise, ops)
        found = module.head_losses(*given, xs, targets, weights, sides)
        for total, x, eps in zip(found, xs, (1e-2, -1e-2), strict=True):
            assert total == module.head_loss(*given, x, targets, weights, replace(noise, eps=eps))
    finally:
        module.LOGIT_TILE = before


def adapters_go_through_together(module):
    """Kinds without a product of their own meet each side in turn: the same bits, and no byte of the base changes."""
    model, ops = lora.add(model_of("llama"), r=2, seed=1, target="all"), get("numpy")
    noise = Noise(4, 2, 1e-2, model.trainable_names, 1)
    given = (model.config, model.params, model.linears, TOKENS, ops, noise, False)
    for found, expected in zip(module._together(*given), module._in_turn(*given), strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_each_side_is_its_own_pass(architecture):
    each_side_is_its_own_pass(both_sides, architecture)


@pytest.mark.parametrize("trained", ["all", "matrices", "vectors", "one layer"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_both_ways_are_one(architecture, trained):
    shapes = model_of(architecture).params
    chosen = {
        "all": lambda n: True,
        "matrices": lambda n: shapes[n].ndim == 2,
        "vectors": lambda n: shapes[n].ndim == 1,
        "one layer": lambda n: ".1." in n,
    }[trained]
    both_ways_are_one(both_sides, architecture, chosen)


def test_head_losses_are_those_of_two_passes(monkeypatch):
    monkeypatch.setattr(head_loss, "both_rows", head_loss.both_rows)  # put back afterwards
    head_losses_are_those_of_two_passes(head_loss)


def test_adapters_go_through_together():
    adapters_go_through_together(both_sides)


@pytest.mark.parametrize("mask", [None, "half"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_losses_are_those_of_two_passes(architecture, mask, tier_ops):
    """With as few tokens as go together in the c tier, and one more, which do not."""
    model = model_of(architecture).with_backend(tier_ops.spec)
    noise, seen = Noise(4, 2, 1e-2, frozenset(model.params), 1), set()
    for width in (8, 16):
        tokens = np.random.default_rng(width).integers(0, 37, (2, width))
        weights = None if mask is None else np.random.default_rng(7).random(tokens.shape) < 0.5
        seen.add(both_sides.together(model.config, model.linears, noise.names, 2 * (width - 1), tier_ops.name))
        found = model.loss_sums(tokens, weights, noise)
        for total, eps in zip(found, (1e-2, -1e-2), strict=False):
            assert total == model.loss_sum(tokens, weights, replace(noise, eps=eps))[0]
    assert seen == ({True, False} if tier_ops.name == "c" else {False})


def test_together_makes_no_perturbed_copy_of_a_matrix(tier_ops):
    """Vectors and the embedding's rows are made where they are read; of each matrix, the head's too, z is made once."""
    if tier_ops.name != "c":
        return  # in turn: tests/mezo/test_step.py
    model, copied, fused = model_of("qwen3").with_backend(tier_ops.spec), [], []
    ops = SimpleNamespace(**{name: getattr(model.ops, name) for name in OPS}, name="c")
    ops.perturb_both = lambda weight, *at: copied.append(weight.ndim) or tier_ops.perturb_both(weight, *at)
    ops.linear_both = lambda x, weight, *at: fused.append(weight.size) or tier_ops.linear_both(x, weight, *at)
    noise = Noise(4, 2, 1e-2, frozenset(model.params))
    tokens, targets = TOKENS[:2, :5], TOKENS[:2, 1:6].ravel()
    weights = np.ones(len(targets), np.float32)
    both_sides.both_losses(model.config, model.params, model.linears, tokens, targets, weights, ops, noise)
    assert set(copied) == {1}
    assert sorted(fused) == sorted(array.size for array in model.params.values() if array.ndim == 2)


def test_what_goes_together_is_what_takes_less():
    config = Config(vocab_size=900, n_layer=3, n_embd=64, n_head=4, n_inner=128, context_length=32)
    model = minedge.init(config, backend="numpy")
    names, linears = frozenset(model.params), model.linears
    matrices = 3 * (4 * 64 * 64 + 3 * 64 * 128)  # all layers', and what they give for one position
    most = matrices // (3 * (4 * 64 + 2 * 128 + 64))
    assert both_sides.together(config, linears, names, most, "c")
    assert not both_sides.together(config, linears, names, most + 1, "c")
    assert not both_sides.together(config, linears, names, 1, "numpy")
    assert not both_sides.together(config, linears, frozenset({"model.norm.weight"}), 1, "c")
    adapted = lora.add(model, r=2, target="all")
    assert not both_sides.together(config, adapted.linears, adapted.trainable_names, 64, "c")


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
        "x + Dense().rows(where, side.params, a.positions, ops) for", each_side_is_its_own_pass),
    "half of a layer left out": (
        "minedge.model.both_sides", "            xs = [_residual_forward",
        "            xs = xs if i else [_residual_forward", each_side_is_its_own_pass),
    "half of a layer left out, together": (
        "minedge.model.both_sides", "            x, _ = _residual_forward",
        "            x, _ = (x, 0) if i else _residual_forward", both_ways_are_one),
    "both halves with the first side's vectors": (
        "minedge.model.both_sides", "a[side] if isinstance", "a[0] if isinstance", both_ways_are_one),
    "norms without noise": (
        "minedge.model.both_sides", "if name in plus.noise.names else plus[name]",
        "if name.endswith('bias') else plus.params[name]", both_ways_are_one),
    "the head's two sides summed into one": (
        "minedge.model.head_loss", "totals[side] += found", "totals[0] += found", head_losses_are_those_of_two_passes),
    "tiles of the head joined": (
        "minedge.model.head_loss", "for few in _tiles(len(part), most):", "for few in _tiles(len(part), len(part)):",
        head_losses_are_those_of_two_passes),
    "a frozen matrix is perturbed": (
        "minedge.model.both_sides", "self.kind.both(", "Dense().both(", adapters_go_through_together),
    "the remembered look is the wrong side": (
        "minedge.finetune.mezo", "replace(noise, eps=-noise.eps)] = minus, weight",
        "replace(noise, eps=-noise.eps)] = plus, weight", a_step_knows_its_sides),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bugs_are_found(name):
    module, old, new, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(mutated_module(module, old, new))
