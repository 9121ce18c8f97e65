"""A step on real models: no byte written before the update, the stated arithmetic, decay, accumulation, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import minedge
from minedge.config import Config
from minedge.errors import DivergedError, UsageError
from minedge.finetune.mezo import MeZO, replay
from minedge.model import transformer
from minedge.model.both_sides import both_hidden, both_sides
from minedge.model.linears import Dense
from minedge.model.model import Model
from minedge.model.noise import Noise, tensor_id
from minedge.ops import OPS
from minedge.ops.numpy_ops import noise as numpy_noise


def tiny(architecture: str = "llama", backend: str = "numpy", dtype: type = np.float32, seed: int = 0) -> Model:
    """A random decoder of a few thousand weights, widths that are no multiples of 4 included, all arrays trainable."""
    config = Config(
        vocab_size=37, n_layer=2, n_embd=20, n_head=2, n_inner=27, context_length=16, architecture=architecture
    )
    linears = {name: Dense() for name in transformer.linear_shapes(config)}
    rng = np.random.default_rng(seed)
    params = {
        name: (array + rng.normal(0, 0.1, array.shape)).astype(dtype)
        for name, array in transformer.init_params(config, linears, seed).items()
    }
    return Model(config, {}, linears, backend=backend).with_params(params, trainable_names=frozenset(params))


def batch(rows: int = 4, width: int = 9, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 37, (rows, width))


def weight_bytes(model: Model) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.params.items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_forward_passes_leave_every_byte_of_the_weights(architecture, tier_ops, monkeypatch):
    model = tiny(architecture, tier_ops.spec).trainable()
    before, seen = weight_bytes(model), []
    original = Model.loss_sums

    def spy(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        seen.append(weight_bytes(self) == before)
        return out

    monkeypatch.setattr(Model, "loss_sums", spy)
    opt = MeZO(lr=1e-3, n_samples=3)
    opt.step(model, batch())
    assert seen == [True] * 3
    assert weight_bytes(model) != before  # the update itself does write


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_both_sides_at_once_are_two_passes_bit_for_bit(architecture, tier_ops):
    model = tiny(architecture, tier_ops.spec)
    mask = np.random.default_rng(3).random((4, 9))
    noise = Noise(3, 5, 1e-3, model.trainable_names, 1)
    plus, minus, weight = model.loss_sums(batch(), mask, noise)
    assert (plus, weight) == model.loss_sum(batch(), mask, noise)
    assert (minus, weight) == model.loss_sum(batch(), mask, replace(noise, eps=-1e-3))


def test_int8_activations_are_those_of_decoding(tier_ops):
    """The same rounding at both sides: a look is the loss of a forward pass over int8 activations."""
    config = Config(vocab_size=37, n_layer=2, n_embd=32, n_head=2, n_inner=64, context_length=16)
    base = minedge.quant.int4(minedge.init(config, backend=tier_ops.spec), embeddings=True)
    model = minedge.lora.add(base, r=2)
    noise = Noise(0, 0, 1e-2, model.trainable_names)  # of the first step below
    plus, minus, weight = model.loss_sums(batch(), None, noise, int8=True)
    for found, eps in ((plus, 1e-2), (minus, -1e-2)):
        x, _ = transformer.forward(
            config, model.params, model.linears, batch()[:, :-1], model.ops, noise=replace(noise, eps=eps), int8=True
        )
        expected, _ = model.ops.cross_entropy_forward(
            x.reshape(-1, 37), batch()[:, 1:].ravel(), np.ones(int(weight), np.float32)
        )
        assert found == pytest.approx(expected, rel=1e-6)
    assert (plus, minus) != model.loss_sums(batch(), None, noise)[:2]
    steps = [MeZO(lr=1e-3, eps=1e-2, int8=int8) for int8 in (True, False)]
    for opt in steps:
        opt.step(model.trainable(), batch())
    assert steps[0].log.projected_grads[0] == np.float32((plus - minus) / weight / 2e-2)
    assert steps[0].log.projected_grads != steps[1].log.projected_grads
    with pytest.raises(UsageError, match="int8"):
        minedge.train(model, None, "lora", int8=True)


def test_both_looks_make_every_number_once(monkeypatch):
    """Beside the rows of the embedding and the head, which are made where they are read."""
    model, made = tiny("llama"), []
    ops = SimpleNamespace(**{name: getattr(model.ops, name) for name in OPS}, name="numpy")
    noise = Noise(3, 5, 1e-3, model.trainable_names)
    sides = both_sides(model.params, noise, ops)

    def spy(weight, *args, **kwargs):
        made.append(weight.size)
        return numpy_noise.perturb_both(weight, *args, **kwargs)

    ops.perturb_both = spy
    monkeypatch.setattr("minedge.model.both_sides.both_sides", lambda *args: sides)
    both_hidden(model.config, model.params, model.linears, batch(), ops, noise)
    apart = sum(a.size for name, a in model.params.items() if "embed" in name or "lm_head" in name)
    assert sum(made) == sum(array.size for array in model.params.values()) - apart
    assert not sides[0].made and not sides[1].made  # nothing that was made is left unread


def test_projected_grad_is_the_slope_along_z():
    """(L(w + eps z) - L(w - eps z)) / (2 eps) = z . grad + O(eps^2), against the hand-written backward, in float64."""
    model = tiny(dtype=np.float64).trainable()
    tokens = batch()
    _, grads = model.loss_and_grads(tokens)
    slope = 0.0
    for name, grad in grads.items():
        z = numpy_noise.normal(8, 0, 0, tensor_id(name), 0, grad.size).astype(np.float64)
        slope += float(z @ grad.ravel())
    errors = []
    for eps in (1e-3, 1e-4):
        opt = MeZO(lr=0.0, eps=eps, seed=8)
        opt.step(model, tokens)
        errors.append(abs(opt.log.projected_grads[0] / slope - 1))
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 90  # a tenth of eps, a hundredth of the error


def test_update_is_the_stated_float32_arithmetic(tier_ops):
    model = tiny("gpt2", tier_ops.spec).trainable()
    before = {name: array.copy() for name, array in model.params.items()}
    opt = MeZO(lr=1e-2, eps=1e-3, seed=6, weight_decay=0.3, n_samples=2)
    opt.step(model, batch())
    g = opt.log.projected_grads
    assert [float(np.float32(x)) for x in g] == g
    for name, old in before.items():
        expected = old
        for j in range(2):
            z = numpy_noise.normal(6, 0, j, tensor_id(name), 0, old.size).reshape(old.shape)
            decay = np.float32(1 - 1e-2 * 0.3) if j == 0 and old.ndim >= 2 else np.float32(1)
            expected = decay * expected + np.float32(-1e-2 * g[j] / 2) * z
        assert model.params[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_weight_decay_touches_matrices_only(architecture, monkeypatch):
    monkeypatch.setattr(Model, "loss_sums", lambda self, *args: (1.0, 1.0, 1.0))  # flat: no gradient, only decay
    model = tiny(architecture).trainable()
    before = {name: array.copy() for name, array in model.params.items()}
    MeZO(lr=0.5, weight_decay=0.5).step(model, batch())
    for name, array in model.params.items():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            assert np.array_equal(array, before[name]), name
        else:
            assert np.array_equal(array, np.float32(0.75) * before[name]), name


def test_linear_schedule_falls_to_zero():
    model = tiny().trainable()
    opt = MeZO(lr=1e-3, schedule="linear", total_steps=4)
    assert [opt.settings.learning_rate(t) for t in range(6)] == [1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0, 0]
    for _ in range(4):
        opt.step(model, batch())
    at_end = model.params["model.norm.weight"].copy()
    opt.step(model, batch())
    assert np.array_equal(model.params["model.norm.weight"], at_end)


def masks(tokens: np.ndarray) -> np.ndarray:
    mask = np.random.default_rng(2).integers(0, 3, tokens.shape).astype(np.float32)
    mask[0] = 0  # a row that predicts nothing
    return mask


def test_accumulation_over_micro_batches_is_the_whole_batch(tier_ops):
    tokens = batch(6)
    mask = masks(tokens)
    parts = [(tokens[k : k + 1], mask[k : k + 1]) for k in range(6)]
    assert not parts[0][1].any()
    whole, split, shuffled = (MeZO(lr=1e-3, seed=2) for _ in range(3))
    one, two, three = (tiny(backend=tier_ops.spec).trainable() for _ in range(3))
    loss = whole.step(one, tokens, mask)
    # Both are float32 forward passes of the same rows; rows may take other BLAS paths, hence not the same bits.
    assert math.isclose(split.step(two, parts), loss, rel_tol=1e-6)
    g, h = whole.log.projected_grads[0], split.log.projected_grads[0]
    assert abs(g - h) < 4e-6 * loss / 1e-3  # a relative error of 2e-6 in each of the two losses, over 2 eps
    shuffled.step(three, parts[::-1])  # the order of micro-batches does not matter at all
    assert shuffled.log == split.log
    assert weight_bytes(three) == weight_bytes(two)


def test_accumulation_weighs_by_the_mask(monkeypatch):
    """Exact in numbers that float64 holds: 3 of weight 1 and 10 of weight 4 make 13 / 5, not the mean of the ratios."""
    monkeypatch.setattr(Model, "loss_sums", lambda self, tokens, mask, noise, int8: (tokens[0], *tokens))
    assert MeZO(lr=0.0).step(tiny().trainable(), [((3.0, 1.0), None), ((10.0, 4.0), None)]) == 13 / 5


def test_step_returns_the_loss():
    model = tiny().trainable()
    expected = model.loss(batch())
    assert abs(MeZO(lr=0.0).step(model, batch()) - expected) < 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(bad, monkeypatch):
    model = tiny().trainable()
    opt = MeZO(lr=1e-3, n_samples=2)
    opt.step(model, batch())
    before, record = weight_bytes(model), list(opt.log.projected_grads)
    original, calls = Model.loss_sums, []

    def breaks_late(self, *args):
        calls.append(1)
        plus, minus, weight = original(self, *args)
        return plus, bad if len(calls) == 2 else minus, weight

    monkeypatch.setattr(Model, "loss_sums", breaks_late)
    with pytest.raises(DivergedError, match="step 1"):
        opt.step(model, batch())
    assert weight_bytes(model) == before
    assert opt.log.projected_grads == record


def test_weights_that_are_not_finite_are_reported():
    model = tiny().trainable()
    model.params["model.norm.weight"][0] = np.nan
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match="step 0"):
        MeZO().step(model, batch())


def test_models_that_cannot_be_stepped_are_refused():
    model = tiny()
    with pytest.raises(UsageError, match="trainable"):
        MeZO().step(model, batch())
    with pytest.raises(UsageError, match="trainable"):
        MeZO().step(model.trainable(frozenset()), batch())
    opt = MeZO()
    opt.step(model.trainable(frozenset({"model.norm.weight"})), batch())
    with pytest.raises(UsageError, match="first step"):
        opt.step(model.trainable(), batch())
    half = dict(model.params, **{"model.norm.weight": model.params["model.norm.weight"].astype(np.float16)})
    with pytest.raises(UsageError, match="float16"):
        MeZO().step(model.with_params(half).trainable(), batch())


def test_training_one_model_never_changes_the_one_it_came_from():
    model = tiny()
    before = weight_bytes(model)
    opt, run = MeZO(lr=1e-2), model.trainable()
    opt.step(run, batch())
    replay(model, opt.log)
    assert weight_bytes(model) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0), ("lr", math.nan), ("lr", "1e-3"), ("eps", 0.0), ("eps", math.inf), ("eps", True), ("seed", -1),
        ("seed", 2**64), ("seed", 1.5), ("weight_decay", -0.1), ("weight_decay", 2e6), ("n_samples", 0),
        ("n_samples", True), ("schedule", "cosine"), ("total_steps", 0),
    ],
)  # fmt: skip
def test_hyperparameters_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        MeZO(**{name: value})
    with pytest.raises(UsageError, match="total_steps"):
        MeZO(schedule="linear")


def test_micro_batches_of_another_form_are_refused():
    tokens = batch()
    with pytest.raises(UsageError, match="micro-batches"):
        MeZO().step(tiny().trainable(), [(tokens, None)], loss_mask=np.ones_like(tokens))
    with pytest.raises(UsageError, match="micro-batches"):
        MeZO().step(tiny().trainable(), [(tokens,)])
    with pytest.raises(UsageError, match="loss_mask"):
        MeZO().step(tiny().trainable(), [(tokens, np.zeros(tokens.shape))])
