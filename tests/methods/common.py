"""What the tests of the methods share: small models, backends, a fingerprint of everything a model is."""

from __future__ import annotations

import numpy as np

import minedge
from minedge.config import Config
from minedge.model.hashes import weights_hash
from minedge.model.linears import Dense
from minedge.ops import available, get

BACKENDS = [name for name, reason in available().items() if not reason]
NUMPY = get("numpy")
UNIT = 2.0**-24  # float32's rounding unit

# Every width is a multiple of 32: q (64, 64), k and v (32, 64), gate and up (96, 64), down (64, 96).
SIZES = dict(vocab_size=50, n_layer=2, n_embd=64, n_head=4, n_inner=96, context_length=24)


def config(architecture: str = "llama", **changes) -> Config:
    kv = {} if architecture == "gpt2" else {"n_kv_head": 2}
    return Config(**{**SIZES, **kv, "architecture": architecture, **changes})


def model(architecture: str = "llama", backend: str = "numpy", seed: int = 0, **changes) -> minedge.Model:
    """Weights large enough that every one of them matters; training's start is nearly linear."""
    start = minedge.init(config(architecture, **changes), seed=seed, backend=backend)
    rng = np.random.default_rng(seed + 1)
    params = {k: (v + rng.normal(0, 0.1, v.shape)).astype(np.float32) for k, v in start.params.items()}
    return start.with_params(params)


def tokens(batch: int = 2, length: int = 12, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, length))


def fingerprint(m: minedge.Model) -> tuple:
    """Changes when anything about the model changes."""
    return weights_hash(m.params), dict(m.linears), m.trainable_names, m.backend, tuple(m.params)


def with_random_adapters(m: minedge.Model, scale: float = 0.05, seed: int = 9) -> minedge.Model:
    """The model with its trainable adapter matrices as after some training."""
    rng = np.random.default_rng(seed)
    trained = {
        name: rng.normal(0, scale, m.params[name].shape).astype(np.float32) for name in sorted(m.trainable_names)
    }
    return m.with_params({**m.params, **trained})


def random_base(kind, out: int, width: int, rng: np.random.Generator, name: str = "w", dtype=np.float64) -> dict:
    """Parameters of a kind over a random weight; floats in `dtype`."""
    weight = rng.normal(size=(out, width))
    weight[np.abs(weight) < 0.5] = 0  # gives Masked.pack something to leave out
    made = kind.pack(name, weight.astype(dtype), NUMPY)
    return {k: v.astype(dtype) if v.dtype.kind == "f" and v.dtype != np.float16 else v for k, v in made.items()}


DENSE = Dense()
