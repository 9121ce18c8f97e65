"""What is tested in a2: each piece against minedge's own, and the whole model's gradient against measured slopes."""

from __future__ import annotations

import numpy as np

from minedge.config import Config
from minedge.course.properties import Gradient, Property
from minedge.model import rotary, transformer
from minedge.model.kvcache import KVCache
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes, param_shapes
from minedge.ops import get

SIZES = {"vocab_size": 11, "n_layer": 2, "n_embd": 8, "n_head": 2, "n_inner": 6, "context_length": 16}
LLAMA = {**SIZES, "n_kv_head": 1, "architecture": "llama"}
QWEN3 = {**SIZES, "architecture": "qwen3", "head_dim": 6, "n_kv_head": 1, "tie_embeddings": False}
GPT2 = {**SIZES, "architecture": "gpt2"}
CONFIGS = (LLAMA, QWEN3, GPT2)
OPS = get("numpy")
NO_PAST = np.zeros((1, 0), np.int64)


def setting(config, params, kv=None, wanted=()):
    config = Config(**config)
    linears = dict.fromkeys(linear_shapes(config), Dense())
    return config, linears, transformer._Pass(config, params, linears, OPS, kv=kv, wanted=frozenset(wanted))


def weights(config, rng):
    """Float64 and large enough that every term shows; norms around 1."""
    config = Config(**config)
    shapes = param_shapes(config, dict.fromkeys(linear_shapes(config), Dense()))
    params = {name: 0.4 * rng.standard_normal(shape) for name, (shape, _) in shapes.items()}
    return {n: 1 + w if w.ndim == 1 and n.endswith(".weight") else w for n, w in params.items()}


def block_cases(rng, dout=False, configs=CONFIGS, lengths=(2, 5), past=None):
    for length in lengths:
        for config in configs:
            params = weights(config, rng)
            shape = (1 if length == 2 else 2, length, config["n_embd"])
            case = {"config": config, "params": params, "x": rng.standard_normal(shape)}
            if past is not None:
                case["past"] = np.zeros((shape[0], 0), np.int64) if not past else rng.integers(0, 11, (shape[0], past))
            yield {**case, "dout": rng.standard_normal(shape)} if dout else case


def no_past(rng):
    return block_cases(rng, past=0)


def with_past(rng):
    return block_cases(rng, past=3)


def with_dout(rng):
    return block_cases(rng, dout=True)


def fan_out_cases(rng):
    for case in block_cases(rng):
        config = Config(**case["config"])
        rows = [linear_shapes(config)[config.layer_name(0, role)][0] for role in config.arch.attn_in]
        yield {**case, "douts": [rng.standard_normal((*case["x"].shape[:-1], n)) for n in rows]}


def token_cases(rng, past=0):
    for length in (2, 5):
        for config in CONFIGS:
            rows = 1 if length == 2 else 2
            tokens = rng.integers(0, 11, (rows, length))
            before = rng.integers(0, 11, (rows, past))
            yield {"config": config, "params": weights(config, rng), "tokens": tokens, "past": before}


def filled(config, params, tokens):
    if not np.size(tokens):
        return None
    config, linears, _ = setting(config, params)
    kv = KVCache(config, tokens.shape[0], config.context_length, dtype=np.float64)
    transformer.forward_hidden(config, params, linears, tokens, OPS, kv=kv, keep_cache=False)
    return kv


def fan_out_backward(config, params, x, douts):
    config, _, run = setting(config, params, wanted=params)
    roles = config.arch.attn_in
    caches = transformer._fan_out(x, run, 0, roles)[1]
    return {"dx": transformer._fan_out_backward(list(douts), caches, run, 0, roles), "grads": run.grads}


def attention_forward(config, params, x, past):
    _, _, run = setting(config, params, filled(config, params, past))
    return {"out": transformer._attention_forward(x, run, 0)[0]}


def attention_backward(config, params, x, dout):
    _, _, run = setting(config, params, wanted=params)
    cache = transformer._attention_forward(x, run, 0)[1]
    return {"dx": transformer._attention_backward(dout, cache, run, 0), "grads": run.grads}


def mlp_forward(config, params, x):
    return {"out": transformer._mlp_forward(x, setting(config, params)[2], 0)[0]}


def mlp_backward(config, params, x, dout):
    _, _, run = setting(config, params, wanted=params)
    cache = transformer._mlp_forward(x, run, 0)[1]
    return {"dx": transformer._mlp_backward(dout, cache, run, 0), "grads": run.grads}


def residual_forward(config, params, x):
    config, _, run = setting(config, params)
    return {"out": transformer._residual_forward(x, run, config.arch.norm2, transformer._MLP, 0)[0]}


def residual_backward(config, params, x, dout):
    config, _, run = setting(config, params, wanted=params)
    norm, block = config.arch.norm2, transformer._MLP
    cache = transformer._residual_forward(x, run, norm, block, 0)[1]
    return {"dx": transformer._residual_backward(dout, cache, run, norm, block, 0), "grads": run.grads}


def hidden(config, params, tokens, past):
    kv = filled(config, params, past)
    config, linears, _ = setting(config, params)
    out = transformer.forward_hidden(config, params, linears, tokens, OPS, kv=kv)[0]
    return {"out": out, "length": kv.length if kv else 0}


def model_gradient(label, config, seed_tokens):
    """The whole model's vector-Jacobian check over every array of it."""
    names = tuple(weights(config, np.random.default_rng(0)))
    tokens = np.asarray(seed_tokens)

    def forward(**params):
        made, linears, _ = setting(config, params)
        logits = transformer.forward(made, params, linears, tokens, OPS)[0]
        return logits, [config, tokens, params]

    def expected(dout, cache):
        made, linears, _ = setting(config, cache[2])
        kept = transformer.forward(made, cache[2], linears, tokens, OPS)[1]
        grads = transformer.backward(dout, kept, made, linears, OPS, frozenset(cache[2]))
        return {f"d{name}": grad for name, grad in grads.items()}

    return Gradient(
        "a2.7", "model_backward", lambda rng: [weights(config, rng)], forward, expected, names,
        "every array's gradient matches the measured slope", label=label,
    )  # fmt: skip


def frozen_cases(rng):
    for config in CONFIGS:
        params = weights(config, rng)
        wanted = [name for name in params if ".1." in name]  # the upper layer alone
        tokens, dlogits = rng.integers(0, 11, (2, 3)), rng.standard_normal((2, 3, 11))
        yield {"config": config, "params": params, "tokens": tokens, "dlogits": dlogits, "wanted": wanted}


def frozen_below(config, params, tokens, dlogits, wanted):
    config, linears, _ = setting(config, params)
    cache = transformer.forward(config, params, linears, tokens, OPS)[1]
    return {"grads": transformer.backward(dlogits, cache, config, linears, OPS, frozenset(wanted))}


def dict_cases(rng):
    a, b, c = rng.standard_normal((3, 4))
    yield {"grads": {"w": a}, "more": {"b": b}}
    yield {"grads": {"w": a, "b": b}, "more": {"w": c}}


def summed(grads, more):
    names = [*grads, *(name for name in more if name not in grads)]
    return {"grads": {name: grads.get(name, 0.0) + more.get(name, 0.0) for name in names}}


def table_cases(rng):
    for theta, half, length in ((10000.0, 1, 3), (10000.0, 4, 6), (500000.0, 8, 20)):
        yield {"theta": theta, "half": half, "length": length}


def tables(theta, half, length):
    cos, sin = rotary._rotary_tables_of(theta, half, length, None)
    return {"cos": cos, "sin": sin}


PROPERTIES = [
    Property("a2.1", "fan_out_backward", fan_out_cases, fan_out_backward, "the one input's gradient, and the weights'"),
    Property("a2.2", "attention_forward", no_past, attention_forward, "what attention adds to the residual stream"),
    Property(
        "a2.2", "attention_forward", with_past, attention_forward, "with three tokens in the cache",
        label="attention_forward after a past",
    ),
    Property(
        "a2.2", "attention_both", with_dout, attention_backward, "its cache is the one that backward unpacks"
    ),
    Property("a2.3", "attention_backward", with_dout, attention_backward, "the gradients of input and weights"),
    Property("a2.4", "mlp_forward", block_cases, mlp_forward, "what the MLP adds to the residual stream"),
    Property("a2.4", "mlp_backward", with_dout, mlp_backward, "the gradients of input and weights"),
    Property("a2.5", "residual_forward", block_cases, residual_forward, "x + block(norm(x))"),
    Property("a2.5", "residual_backward", with_dout, residual_backward, "both ways of the gradient"),
    Property("a2.6", "hidden", token_cases, hidden, "tokens to the final norm's output"),
    Property(
        "a2.6", "hidden", lambda rng: token_cases(rng, 4), hidden, "with four tokens in the cache",
        label="hidden after a past",
    ),
    model_gradient("model_backward, Llama with a tied head", LLAMA, [[1, 4, 1, 7]]),
    model_gradient("model_backward, GPT-2", GPT2, [[3, 3, 9], [0, 10, 2]]),
    Property("a2.7", "frozen_below", frozen_cases, frozen_below, "only wanted gradients, only as deep as needed"),
    Property("a2.7", "add_grads", dict_cases, summed, "what both have adds up, the rest is kept"),
    Property("a2.8", "tables", table_cases, tables, "cos and sin of position times frequency", 1e-6),
]  # fmt: skip
