"""What the checks of a2 may ask of a student's files. Each task runs with the library's code in the other blanks."""

from __future__ import annotations

import contextlib

import numpy as np

from minedge.config import Config
from minedge.model import transformer as library
from minedge.model.kvcache import KVCache
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes
from minedge.ops import get

BLANKS = (
    "_fan_out_backward", "_attention_forward", "_attention_backward", "_mlp_forward", "_mlp_backward",
    "_residual_forward", "_residual_backward", "forward_hidden", "backward_hidden", "add_grads_",
)  # fmt: skip
OPS = get("numpy")


@contextlib.contextmanager
def only(student, *names):
    """The student's module with the library's functions in place of all blanks but `names`."""
    named = student.transformer
    module = getattr(named, "_module", named)
    for name in names:
        getattr(named, name)  # says so where it is missing
    marks = ("_NORMED", "_ACTIVATED")  # what the library's caches are marked with
    saved = {name: getattr(module, name) for name in (*BLANKS, *marks, "_ATTENTION", "_MLP") if hasattr(module, name)}
    try:
        for name in {*BLANKS, *marks} - set(names):
            setattr(module, name, getattr(library, name))
        module._ATTENTION = (module._attention_forward, module._attention_backward)
        module._MLP = (module._mlp_forward, module._mlp_backward)
        yield module
    finally:
        for name, value in saved.items():
            setattr(module, name, value)


def setting(config, params, kv=None, wanted=()):
    """-> config, linears, and a pass over them."""
    config = Config(**config)
    linears = dict.fromkeys(linear_shapes(config), Dense())
    return config, linears, library._Pass(config, params, linears, OPS, kv=kv, wanted=frozenset(wanted))


def filled(config, params, tokens):
    """A cache with `tokens` (B, P) in it, or None without any; float64 so that nothing is rounded."""
    if not np.size(tokens):
        return None
    config, linears, _ = setting(config, params)
    kv = KVCache(config, tokens.shape[0], config.context_length, dtype=np.float64)
    library.forward_hidden(config, params, linears, tokens, OPS, kv=kv, keep_cache=False)
    return kv


def fan_out_backward(student, config, params, x, douts):
    config, _, run = setting(config, params, wanted=params)
    roles = config.arch.attn_in
    caches = library._fan_out(x, run, 0, roles)[1]
    with only(student, "_fan_out_backward") as module:
        dx = module._fan_out_backward(list(douts), caches, run, 0, roles)
    return {"dx": dx, "grads": run.grads}


def attention_forward(student, config, params, x, past):
    config, _, run = setting(config, params, filled(config, params, past))
    with only(student, "_attention_forward") as module:
        return {"out": module._attention_forward(x, run, 0)[0]}


def attention_backward(student, config, params, x, dout):
    config, _, run = setting(config, params, wanted=params)
    cache = library._attention_forward(x, run, 0)[1]
    with only(student, "_attention_backward") as module:
        dx = module._attention_backward(dout, cache, run, 0)
    return {"dx": dx, "grads": run.grads}


def attention_both(student, config, params, x, dout):
    """Forward and the library's backward: the cache is what backward reads."""
    config, _, run = setting(config, params, wanted=params)
    with only(student, "_attention_forward") as module:
        cache = module._attention_forward(x, run, 0)[1]
    return {"dx": library._attention_backward(dout, cache, run, 0), "grads": run.grads}


def mlp_forward(student, config, params, x):
    config, _, run = setting(config, params)
    with only(student, "_mlp_forward") as module:
        return {"out": module._mlp_forward(x, run, 0)[0]}


def mlp_backward(student, config, params, x, dout):
    config, _, run = setting(config, params, wanted=params)
    cache = library._mlp_forward(x, run, 0)[1]
    with only(student, "_mlp_backward") as module:
        dx = module._mlp_backward(dout, cache, run, 0)
    return {"dx": dx, "grads": run.grads}


def residual_forward(student, config, params, x):
    config, _, run = setting(config, params)
    with only(student, "_residual_forward") as module:
        return {"out": module._residual_forward(x, run, config.arch.norm2, module._MLP, 0)[0]}


def residual_backward(student, config, params, x, dout):
    config, _, run = setting(config, params, wanted=params)
    a = config.arch
    cache = library._residual_forward(x, run, a.norm2, library._MLP, 0)[1]
    with only(student, "_residual_backward") as module:
        dx = module._residual_backward(dout, cache, run, a.norm2, module._MLP, 0)
    return {"dx": dx, "grads": run.grads}


def hidden(student, config, params, tokens, past):
    kv = filled(config, params, past)
    config, linears, _ = setting(config, params)
    with only(student, "forward_hidden") as module:
        out = module.forward_hidden(config, params, linears, tokens, OPS, kv=kv)[0]
    return {"out": out, "length": kv.length if kv else 0}


def model_backward(student, dout, cache):
    config, tokens, params = cache
    config, linears, _ = setting(config, params)
    cache = library.forward(config, params, linears, tokens, OPS)[1]
    with only(student, "backward_hidden", "add_grads_") as module:
        grads = module.backward(dout, cache, config, linears, OPS, frozenset(params))
    return {f"d{name}": grad for name, grad in grads.items()}


def frozen_below(student, config, params, tokens, dlogits, wanted):
    """Only some names are wanted."""
    config, linears, _ = setting(config, params)
    cache = library.forward(config, params, linears, tokens, OPS)[1]
    with only(student, "backward_hidden", "add_grads_") as module:
        return {"grads": module.backward(dlogits, cache, config, linears, OPS, frozenset(wanted))}


def add_grads(student, grads, more):
    return {"grads": student.transformer.add_grads_({name: grad.copy() for name, grad in grads.items()}, more)}


def tables(student, theta, half, length):
    cos, sin = student.rotary._rotary_tables_of(theta, half, length, None)
    return {"cos": cos, "sin": sin}
