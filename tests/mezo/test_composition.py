"""MeZO over other methods' models, and what a step costs in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
from test_step import batch, tiny, weight_bytes

from minedge.compress import prune, quant
from minedge.config import Config
from minedge.finetune import lora
from minedge.finetune.mezo import MeZO, replay
from minedge.model import transformer
from minedge.model.linears import Dense
from minedge.model.model import Model


def wide(backend: str, n_embd: int = 64, vocab_size: int = 80, n_layer: int = 1) -> Model:
    config = Config(vocab_size, n_layer, n_embd, n_head=4, n_inner=2 * n_embd, context_length=32)
    linears = {name: Dense() for name in transformer.linear_shapes(config)}
    params = transformer.init_params(config, linears)
    return Model(config, {}, linears, backend=backend).with_params(params, trainable_names=frozenset(params))


def test_mezo_over_lora_over_int4(tier_ops):
    base = lora.add(quant.int4(wide(tier_ops.spec), group_size=32), r=4, seed=1)
    model, opt = base.trainable(), MeZO(lr=1e-2, weight_decay=0.1, n_samples=2)
    for t in range(3):
        opt.step(model, batch(seed=t))
    changed = {name for name in base.params if base.params[name].tobytes() != model.params[name].tobytes()}
    assert changed == base.trainable_names
    assert all(".lora_" in name for name in changed)
    for backend in ("numpy", tier_ops.spec):
        assert weight_bytes(replay(base.with_backend(backend), opt.log)) == weight_bytes(model)


def test_pruned_weights_stay_zero(tier_ops):
    base = prune.magnitude(tiny(backend=tier_ops.spec), sparsity=0.5)
    model, opt = base.trainable(), MeZO(lr=1e-2)
    opt.step(model, batch())
    names = [f"{name}.weight" for name in base.linears if f"{name}.mask" in base.params]
    assert names
    for name in names:
        assert not np.array_equal(model.params[name], base.params[name])
        assert np.array_equal(model.params[name] == 0, base.params[name] == 0), name
    assert weight_bytes(replay(base, opt.log)) == weight_bytes(model)


def peak_bytes(function, *args) -> int:
    tracemalloc.start()
    try:
        function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_step_takes_the_memory_of_inference_and_one_tensor(tier_ops):
    model = wide(tier_ops.spec, n_embd=384, vocab_size=4000, n_layer=3).trainable()
    tokens, opt = batch(4, 32), MeZO(lr=1e-6)
    opt.step(model, tokens)  # hashes the base weights, compiles what is compiled at first use
    weights = sum(array.nbytes for array in model.params.values())
    largest = max(array.nbytes for array in model.params.values())
    inference = weights + peak_bytes(model.loss, tokens)
    assert weights + peak_bytes(opt.step, model, tokens) <= 1.05 * inference + largest
