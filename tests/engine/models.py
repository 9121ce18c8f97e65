"""Small random models of every architecture and kind that the engine runs."""

from __future__ import annotations

import numpy as np

import minedge
from minedge import lora, prune, quant, sparse
from minedge.model import transformer
from minedge.model.kvcache import KVCache

__all__ = ["ARCHITECTURES", "KINDS", "make", "readable"]

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")


def _adapted(model: minedge.Model, **settings) -> minedge.Model:
    """An adapter that changes something: B is not zero."""
    model, rng = lora.add(model, r=3, target="all", **settings), np.random.default_rng(5)
    change = {k: rng.normal(0, 0.1, v.shape).astype(np.float32) for k, v in model.params.items() if "lora_" in k}
    return model.with_params({**model.params, **change})


KINDS = {
    "dense": lambda m: m,
    "int4": quant.int4,
    "int4/64, embedding too": lambda m: quant.int4(m, 64, embeddings=True),
    "int4, embedding too": lambda m: quant.int4(m, embeddings=True),
    "int8": lambda m: quant.int8(m, embeddings=True),
    "float16": quant.half,
    "masked": prune.magnitude,
    "packed 2:4": lambda m: sparse.pack(prune.nm(m)),
    "lora on packed float16": lambda m: _adapted(sparse.pack(prune.magnitude(m), "float16")),
    "bfloat16": lambda m: quant.half(m, "bfloat16"),
    "lora": _adapted,
    "lora on int4": lambda m: _adapted(quant.int4(m, embeddings=True)),
    "two loras on int4": lambda m: _adapted(_adapted(quant.int4(m)), adapter="second"),
    "inactive lora": lambda m: lora.set_active(_adapted(quant.int4(m)), False),
}


def make(architecture: str = "llama", kind: str = "dense", seed: int = 0, backend: str = "c", **sizes) -> minedge.Model:
    """Weights and biases large enough that every step matters."""
    usual = dict(vocab_size=37, n_layer=2, n_embd=64, n_head=4, n_inner=128, context_length=40)
    kv = {} if architecture == "gpt2" else {"n_kv_head": 2}
    config = minedge.Config(**{**usual, **kv, "architecture": architecture, **sizes})
    model, rng = minedge.init(config, seed=seed, backend=backend), np.random.default_rng(seed)
    noisy = {k: (v + rng.normal(0, 0.1, v.shape)).astype(np.float32) for k, v in model.params.items()}
    return KINDS[kind](model.with_params(noisy))


def readable(model: minedge.Model, tokens: np.ndarray, cuts: list[int], kv_dtype: str = "float32") -> np.ndarray:
    """Logits (B, T, V) of the readable decoder, tokens read in pieces that end at `cuts`."""
    kv, start, parts = KVCache(model.config, *tokens.shape, rounding=kv_dtype), 0, []
    for stop in [*cuts, tokens.shape[1]]:
        new = tokens[:, start:stop]
        out, _ = transformer.forward(
            model.config, model.params, model.linears, new, model.ops, kv=kv, int8=True, keep_cache=False
        )
        parts.append(out)
        start = stop
    return np.concatenate(parts, axis=1)
