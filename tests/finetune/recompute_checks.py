"""What backward makes again instead of keeping: properties of a transformer module, the real one or a mutant."""

from __future__ import annotations

import numpy as np

import minedge
from minedge.config import Config
from minedge.ops import get

TOKENS = np.random.default_rng(2).integers(0, 37, (3, 12))


def model_of(architecture, backend="numpy", **changes):
    sizes = dict(vocab_size=37, n_layer=2, n_embd=16, n_head=4, n_inner=24, context_length=12)
    model = minedge.init(Config(**sizes, architecture=architecture, **changes), backend=backend)
    rng = np.random.default_rng(1)
    arrays = {k: (v + rng.normal(0, 0.3, v.shape)).astype(np.float32) for k, v in model.params.items()}
    return model.with_params(arrays, trainable_names=frozenset(arrays))


def adapted(model):
    """Adapters on the inputs of attention and on the MLP's output: each half has trained and frozen matrices."""
    a = model.config.arch
    return minedge.lora.add(model, r=2, target=(*a.attn_in[:1], a.mlp_out))


def gradients(module, model, checkpoint=False):
    """Gradients of sum(logits * weights) with every matrix's cache made by `module`."""
    ops = get(model.backend)
    given = (model.config, model.params, model.linears, TOKENS)
    logits, cache = module.forward(*given, ops, checkpoint=checkpoint)
    dlogits = np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)
    return module.backward(dlogits, cache, model.config, model.linears, ops, model.trainable_names)


def checkpoint_changes_no_bit(module, model):
    kept, again = (gradients(module, model, checkpoint) for checkpoint in (False, True))
    assert set(kept) == set(again) == model.trainable_names
    for name in kept:
        np.testing.assert_array_equal(again[name], kept[name], err_msg=name)


def backward_inverts_forward(module, model):
    """The slope of sum(logits * dlogits) along a random direction, by central differences in float64."""
    wide = model.with_params({name: array.astype(np.float64) for name, array in model.params.items()})
    wide = wide.with_backend("numpy")
    found, rng, ops = gradients(module, wide), np.random.default_rng(5), get("numpy")
    direction = {name: rng.normal(size=array.shape) for name, array in wide.params.items()}

    def value(e):
        params = {name: array + e * direction[name] for name, array in wide.params.items()}
        logits, _ = module.forward(wide.config, params, wide.linears, TOKENS, ops)
        return float((logits * np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)).sum())

    slope = (8 * (value(3e-5) - value(-3e-5)) - (value(6e-5) - value(-6e-5))) / (12 * 3e-5)
    assert abs(sum((found[name] * direction[name]).sum() for name in found) / slope - 1) < 1e-6


def arrays_in(cache):
    if isinstance(cache, (tuple, list)):
        return [array for part in cache for array in arrays_in(part)]
    return [cache] if isinstance(cache, np.ndarray) else []


def kept_bytes(module, model, checkpoint):
    """Bytes of the distinct float buffers that the halves' caches hold beside weights."""
    _, (_, halves, *_) = module.forward_hidden(
        model.config, model.params, model.linears, TOKENS, get(model.backend), checkpoint=checkpoint
    )
    weights = {id(_owner(a)) for a in model.params.values()}
    owners = {id(_owner(a)): _owner(a) for a in arrays_in(halves) if a.ndim >= 3}
    return sum(a.nbytes for key, a in owners.items() if key not in weights and a.flags.writeable)


def _owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def no_more_is_kept_than_needed(module, model):
    """Of a half of a layer: its input, q, k, v and what attention gave; gate and up, or what the activation took."""
    c, N = model.config, TOKENS.size
    attention = c.n_embd + 2 * c.q_width + 2 * c.kv_width + c.n_head  # the last is the log-sum-exp
    mlp = c.n_embd + len(c.arch.mlp_in) * c.n_inner
    rank = sum(model.linears[c.layer_name(0, role)].kind == "lora" for role in (*c.arch.attn_in, c.arch.mlp_out)) * 2
    queries = c.q_width + c.kv_width + c.n_head + c.n_kv_head if c.arch.q_norm else 0  # before their norm; its rstd
    assert kept_bytes(module, model, False) <= 4 * N * c.n_layer * (attention + mlp + 2 * rank + queries)
    assert kept_bytes(module, model, True) == 4 * N * c.n_layer * 2 * c.n_embd
