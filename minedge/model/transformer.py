r"""The decoder: forward, and its backward by hand.

Legend: B batch, T tokens, C n_embd, H n_head, KV n_kv_head, D head_dim, V vocab_size.

    x = embed(tokens) (+ positions)
    for each layer:   x = x + attn_out(attention(rotary(q), rotary(k), v)),  q, k, v from norm1(x)
                      x = x + mlp_out(act(mlp_in(norm2(x))))
    logits = head(final_norm(x))

`forward` returns what `backward` needs as a tuple per layer; `backward` walks the same lines upwards. What is cheap to
make again, a norm's or an activation's output, is not kept but made again from what is: the same line on the same
input gives the same bits. With `checkpoint` only the input of each half of a layer is kept. Weight matrices
belong to linear kinds (linears.py), so the same lines run dense, quantized, pruned and adapted models. MeZO's
perturbation arrives as `noise` and only changes what `params[name]` yields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.model.kvcache import KVCache
from minedge.model.linears import Dense, LinearKind, Params
from minedge.model.noise import Noise, Perturbed
from minedge.model.rotary import rotary_tables
from minedge.model.shapes import head_name, init_params, linear_shapes, param_shapes
from minedge.ops import Ops

__all__ = [
    "add_grads_",
    "backward",
    "backward_hidden",
    "forward",
    "forward_hidden",
    "head_backward",
    "head_forward",
    "head_name",
    "head_params",
    "init_params",
    "linear_shapes",
    "param_shapes",
]

Array = NDArray[Any]
Linears = Mapping[str, LinearKind]
Grads = dict[str, Array]


@dataclass
class _Pass:
    """What every line of one forward or backward pass refers to."""

    config: Config
    p: Params
    linears: Linears
    ops: Ops
    int8: bool = False
    kv: KVCache | None = None
    keep: bool = True  # False: no backward will follow, so nothing is kept for one
    checkpoint: bool = False  # keep only what each half of a layer starts from
    wanted: frozenset[str] = frozenset()
    grads: Grads = field(default_factory=dict)

    def name(self, i: int, role: str) -> str:
        return self.config.layer_name(i, role)

    def trains(self, module: str) -> bool:
        return any(name.startswith(f"{module}.") for name in self.wanted)


# These stand in a cache where an array was that backward makes again: the norm's output, the activation's.
_NORMED, _ACTIVATED = object(), object()


def _put(cache: tuple | list, old: Any, new: Any) -> tuple:
    """The cache with `new` wherever `old` itself stands in it."""
    return tuple(_put(c, old, new) if isinstance(c, (tuple, list)) else new if c is old else c for c in cache)


# --- pieces: each a forward and the backward that inverts it --------------------------------------------------------


def _linear_forward(x: Array, run: _Pass, name: str) -> tuple[Array, tuple]:
    out, cache = run.linears[name].forward(x, run.p, name, run.ops, int8=run.int8)
    if f"{name}.bias" in run.p:
        out = run.ops.bias_forward(out, run.p[f"{name}.bias"])[0]
    return out, cache if run.keep else ()  # the cache may hold a perturbed or unpacked weight: one at a time


def _linear_backward(dout: Array, cache: tuple, run: _Pass, name: str) -> Array:
    if f"{name}.bias" in run.wanted:
        run.grads[f"{name}.bias"] = run.ops.bias_backward(dout, ())[1]
    dx, found = run.linears[name].backward(dout, cache, run.p, name, run.ops, run.wanted)
    run.grads.update(found)
    return dx


def _fan_out(x: Array, run: _Pass, i: int, roles: tuple[str, ...]) -> tuple[list[Array], list[tuple]]:
    """One input, several matrices: q, k, v or gate, up."""
    pairs = [_linear_forward(x, run, run.name(i, role)) for role in roles]
    return [out for out, _ in pairs], [cache for _, cache in pairs]


def _fan_out_backward(douts: list[Array], caches: list[tuple], run: _Pass, i: int, roles: tuple[str, ...]) -> Array:
    """The input went into every matrix, so its gradients add up."""
    # BEGIN SOLUTION a2.1
    dx, *rest = [
        _linear_backward(d, c, run, run.name(i, role)) for role, d, c in zip(roles, douts, caches, strict=True)
    ]
    for part in rest:
        dx += part  # a fresh array of the first backward, owned here
    return dx
    # END SOLUTION


def _norm_forward(x: Array, run: _Pass, name: str) -> tuple[Array, tuple]:
    weight, eps = run.p[f"{name}.weight"], run.config.norm_eps
    if run.config.arch.norm == "layer":
        return run.ops.layer_norm_forward(x, weight, run.p[f"{name}.bias"], eps)
    return run.ops.rms_norm_forward(x, weight, eps)


def _norm_backward(dout: Array, cache: tuple, run: _Pass, name: str) -> Array:
    layer = run.config.arch.norm == "layer"
    dx, *rest = (run.ops.layer_norm_backward if layer else run.ops.rms_norm_backward)(dout, cache)
    for suffix, grad in zip((".weight", ".bias"), rest, strict=False):
        if name + suffix in run.wanted:
            run.grads[name + suffix] = grad
    return dx


def _attention_forward(x: Array, run: _Pass, i: int) -> tuple[Array, tuple]:
    """Normed input (B, T, C) -> what attention adds to the residual stream (B, T, C)."""
    config, ops, (B, T, _) = run.config, run.ops, x.shape
    a = config.arch
    parts, in_caches = _fan_out(x, run, i, a.attn_in)
    if len(parts) == 1:  # a fused matrix's rows are q, k, v in turn
        cuts = [config.q_width, config.q_width + config.kv_width]
        parts = [np.ascontiguousarray(y) for y in np.split(parts[0], cuts, axis=-1)]
    q, k, v = (y.reshape(B, T, -1, config.head_dim) for y in parts)  # (B, T, H or KV, D)
    del parts  # so that q and k die where rotary replaces them
    # BEGIN SOLUTION a2.2
    qn = kn = qr = kr = None
    if a.q_norm and a.k_norm:  # over head_dim
        q, qn = ops.rms_norm_forward(q, run.p[f"{run.name(i, a.q_norm)}.weight"], config.norm_eps)
        k, kn = ops.rms_norm_forward(k, run.p[f"{run.name(i, a.k_norm)}.weight"], config.norm_eps)
    if config.uses_rotary:
        start = run.kv.length if run.kv else 0
        cos, sin = (table[start : start + T] for table in rotary_tables(config))
        q, qr = ops.rotary_forward(q, cos, sin)
        k, kr = ops.rotary_forward(k, cos, sin)
    if run.kv is not None:
        k, v = run.kv.append(i, k, v)  # (B, S, KV, D): the past in front
    # END SOLUTION
    if run.kv is None:
        y, att = ops.attention_forward(q, k, v)
    else:
        y, att = run.kv.attention(ops, i, q, k, v), ()
    out, out_cache = _linear_forward(y.reshape(B, T, -1), run, run.name(i, a.attn_out))
    return out, (in_caches, qn, kn, qr, kr, att, out_cache)


def _attention_backward(dout: Array, cache: tuple, run: _Pass, i: int) -> Array:
    in_caches, qn, kn, qr, kr, att, out_cache = cache
    config, ops, (B, T, _) = run.config, run.ops, dout.shape
    a = config.arch
    # BEGIN SOLUTION a2.3
    dy = _linear_backward(dout, out_cache, run, run.name(i, a.attn_out))
    dq, dk, dv = ops.attention_backward(dy.reshape(B, T, -1, config.head_dim), att)
    if config.uses_rotary:
        dq, dk = ops.rotary_backward(dq, qr), ops.rotary_backward(dk, kr)
    if a.q_norm and a.k_norm:
        dq = _norm_backward(dq, qn, run, run.name(i, a.q_norm))
        dk = _norm_backward(dk, kn, run, run.name(i, a.k_norm))
    douts = [d.reshape(B, T, -1) for d in (dq, dk, dv)]
    if len(in_caches) == 1:  # inverts the split of the fused matrix
        douts = [np.concatenate(douts, axis=-1)]
    return _fan_out_backward(douts, in_caches, run, i, a.attn_in)
    # END SOLUTION


def _activation(a: Any, parts: list[Array], ops: Ops) -> tuple[Array, tuple]:
    return ops.swiglu_forward(*parts) if a.activation == "swiglu" else ops.gelu_forward(*parts)


def _mlp_forward(x: Array, run: _Pass, i: int) -> tuple[Array, tuple]:
    """Normed input (B, T, C) -> what the MLP adds to the residual stream (B, T, C)."""
    a = run.config.arch
    # BEGIN SOLUTION a2.4
    parts, in_caches = _fan_out(x, run, i, a.mlp_in)
    h, act = _activation(a, parts, run.ops)  # (B, T, n_inner)
    out, out_cache = _linear_forward(h, run, run.name(i, a.mlp_out))
    # END SOLUTION
    return out, (in_caches, act, _put(out_cache, h, _ACTIVATED))


def _mlp_backward(dout: Array, cache: tuple, run: _Pass, i: int) -> Array:
    in_caches, act, out_cache = cache
    a, ops, name = run.config.arch, run.ops, run.name(i, run.config.arch.mlp_out)
    # A matrix without trained arrays looks at no more than its input's shape, which gate or fc have too.
    h = _activation(a, list(act), ops)[0] if run.trains(name) else act[0]
    dh = _linear_backward(dout, _put(out_cache, _ACTIVATED, h), run, name)
    del h
    # BEGIN SOLUTION a2.4
    douts = list(ops.swiglu_backward(dh, act)) if a.activation == "swiglu" else [ops.gelu_backward(dh, act)]
    del dh
    return _fan_out_backward(douts, in_caches, run, i, a.mlp_in)
    # END SOLUTION


_Block = tuple[Callable, Callable]  # forward, backward
_ATTENTION: _Block = (_attention_forward, _attention_backward)
_MLP: _Block = (_mlp_forward, _mlp_backward)


def _residual_forward(x: Array, run: _Pass, norm: str, block: _Block, i: int) -> tuple[Array, tuple]:
    """x + block(norm(x)): half a layer. (B, T, C) -> (B, T, C)."""
    # BEGIN SOLUTION a2.5
    n, norm_cache = _norm_forward(x, run, run.name(i, norm))
    y, cache = block[0](n, run, i)
    y += x  # y is the fresh array of the block's last product, owned here
    # END SOLUTION
    if not run.keep:
        return y, ()
    return y, (norm_cache, () if run.checkpoint else _put(cache, n, _NORMED))


def _residual_backward(dout: Array, cache: tuple, run: _Pass, norm: str, block: _Block, i: int) -> Array:
    norm_cache, block_cache = cache
    x, name = norm_cache[0], run.name(i, norm)
    if not block_cache:
        n, _ = _norm_forward(x, run, name)
        block_cache = block[0](n, run, i)[1]
    else:
        roles = run.config.arch.attn_in if block is _ATTENTION else run.config.arch.mlp_in
        trained = any(run.trains(run.name(i, role)) for role in roles)
        n = _norm_forward(x, run, name)[0] if trained else x  # as with the activation: for its shape
        block_cache = _put(block_cache, _NORMED, n)
    # BEGIN SOLUTION a2.5
    dn = block[1](dout, block_cache, run, i)
    dx = _norm_backward(dn, norm_cache, run, name)
    dx += dout  # inverts x + block(norm(x)); dx is fresh, owned here
    return dx
    # END SOLUTION


# --- the whole ------------------------------------------------------------------------------------------------------


def forward_hidden(
    config: Config,
    params: Params,
    linears: Linears,
    tokens: Array,
    ops: Ops,
    noise: Noise | None = None,
    kv: KVCache | None = None,
    int8: bool = False,
    keep_cache: bool = True,
    checkpoint: bool = False,
) -> tuple[Array, tuple | None]:
    """tokens (B, T) -> the final norm's output (B, T, C). Without `keep_cache` a layer's cache dies with the layer;
    with `checkpoint` it is made a second time in backward (arXiv:1604.06174): less memory, a third more time.
    """
    run = _Pass(config, _view(params, noise, ops), linears, ops, int8, kv, keep_cache, checkpoint)
    a = config.arch
    # BEGIN SOLUTION a2.6
    x = linears[a.embed].rows(tokens, run.p, a.embed, ops)  # (B, T, C)
    if a.positions:
        start = kv.length if kv else 0
        x = x + Dense().rows(np.arange(start, start + tokens.shape[1]), run.p, a.positions, ops)
    halves = []  # two caches a layer
    for i in range(config.n_layer):
        x, first = _residual_forward(x, run, a.norm1, _ATTENTION, i)
        x, second = _residual_forward(x, run, a.norm2, _MLP, i)
        halves += [first, second]
    if kv is not None:
        kv.advance(tokens.shape[1])
    x, c_norm = _norm_forward(x, run, a.final_norm)
    # END SOLUTION
    return x, ((tokens, halves, c_norm, run.p) if keep_cache else None)


def head_forward(
    config: Config, params: Params, linears: Linears, x: Array, ops: Ops, noise: Noise | None = None, int8: bool = False
) -> tuple[Array, tuple]:
    """x (..., C) -> logits (..., V)."""
    name = head_name(config)
    return linears[name].forward(x, _view(params, noise, ops), name, ops, int8=int8)


def head_params(config: Config, params: Params, linears: Linears, ops: Ops, noise: Noise | None) -> Params:
    """Just the head's arrays, perturbed once where there is noise: for callers that make logits tile by tile."""
    name = head_name(config)
    view = _view(params, noise, ops)
    return {key: view[key] for key in linears[name].shapes(name, *linear_shapes(config)[name])}


def forward(
    config: Config, params: Params, linears: Linears, tokens: Array, ops: Ops, **options: Any
) -> tuple[Array, tuple | None]:
    """tokens (B, T) -> logits (B, T, V), and the cache that `backward` reads (None without `keep_cache`). The options
    are those of `forward_hidden`.
    """
    x, hidden_cache = forward_hidden(config, params, linears, tokens, ops, **options)
    seen = {key: options[key] for key in ("noise", "int8") if key in options}
    logits, head_cache = head_forward(config, params, linears, x, ops, **seen)
    return logits, (None if hidden_cache is None else (hidden_cache, head_cache))


def backward(dlogits: Array, cache: tuple, config: Config, linears: Linears, ops: Ops, wanted: frozenset[str]) -> Grads:
    """dlogits (B, T, V) -> the wanted gradients by name. A tied matrix gathers from the head and from the embedding."""
    hidden_cache, head_cache = cache
    dx, grads = head_backward(dlogits, head_cache, hidden_cache[3], config, linears, ops, wanted)
    return add_grads_(grads, backward_hidden(dx, hidden_cache, config, linears, ops, wanted))


def add_grads_(grads: Grads, more: Grads) -> Grads:
    """Add `more` into `grads` in place: gradients are fresh arrays that belong to whoever asked for them."""
    # BEGIN SOLUTION a2.7
    for name, grad in more.items():
        if name in grads:
            grads[name] += grad
        else:
            grads[name] = grad
    return grads
    # END SOLUTION


def head_backward(
    dlogits: Array, cache: tuple, params: Params, config: Config, linears: Linears, ops: Ops, wanted: frozenset[str]
) -> tuple[Array, Grads]:
    """dlogits (..., V) -> dx (..., C), and the head's wanted gradients."""
    name = head_name(config)
    return linears[name].backward(dlogits, cache, params, name, ops, wanted)


def backward_hidden(
    dx: Array, cache: tuple, config: Config, linears: Linears, ops: Ops, wanted: frozenset[str]
) -> Grads:
    """Gradient of the final norm's output (B, T, C) -> wanted gradients. Consumes the cache; stops below the lowest
    wanted layer.
    """
    tokens, halves, c_norm, p = cache
    a = config.arch
    run = _Pass(config, p, linears, ops, wanted=wanted)
    inputs_wanted = any(name.startswith((f"{a.embed}.", f"{a.positions}.")) for name in wanted)
    lowest = 0 if inputs_wanted else _lowest_wanted_layer(config, wanted)
    # BEGIN SOLUTION a2.7
    dx = _norm_backward(dx, c_norm, run, a.final_norm)
    for i in reversed(range(lowest, config.n_layer)):
        # Popped, so that half a layer's activations are gone as soon as they are of no more use.
        dx = _residual_backward(dx, halves.pop(), run, a.norm2, _MLP, i)
        dx = _residual_backward(dx, halves.pop(), run, a.norm1, _ATTENTION, i)
    if inputs_wanted:
        if a.positions:
            where = np.arange(tokens.shape[1])
            run.grads.update(Dense().rows_backward(dx.sum(axis=0), where, p, a.positions, ops, wanted))
        run.grads.update(linears[a.embed].rows_backward(dx, tokens, p, a.embed, ops, wanted))
    return run.grads
    # END SOLUTION


def _view(params: Params, noise: Noise | None, ops: Ops) -> Params:
    return params if noise is None else Perturbed(params, noise, ops)


def _lowest_wanted_layer(config: Config, wanted: frozenset[str]) -> int:
    for i in range(config.n_layer):
        prefix = config.arch.layer.format(i=i) + "."
        if any(name.startswith(prefix) for name in wanted):
            return i
    return config.n_layer
