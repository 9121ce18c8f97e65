r"""What arrays a decoder has: names, shapes, dtypes, and the random weights that training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.model.linears import LinearKind, Shapes

__all__ = ["has_bias", "head_name", "init_params", "linear_shapes", "param_shapes"]

Array = NDArray[Any]
Linears = Mapping[str, LinearKind]


def linear_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of every weight matrix, embedding and head included; a tied head has no entry of its
    own.
    """
    a, C = config.arch, config.n_embd
    qkv = {3: (config.q_width, config.kv_width, config.kv_width), 1: (config.q_width + 2 * config.kv_width,)}[
        len(a.attn_in)
    ]
    shapes = {a.embed: (config.vocab_size, C)}
    for i in range(config.n_layer):
        for role, width in zip(a.attn_in, qkv, strict=True):
            shapes[config.layer_name(i, role)] = (width, C)
        shapes[config.layer_name(i, a.attn_out)] = (C, config.q_width)
        for role in a.mlp_in:
            shapes[config.layer_name(i, role)] = (config.n_inner, C)
        shapes[config.layer_name(i, a.mlp_out)] = (C, config.n_inner)
    if not config.tie_embeddings:
        shapes[a.head] = (config.vocab_size, C)
    return shapes


def param_shapes(config: Config, linears: Linears) -> Shapes:
    """Parameter name -> (shape, dtype): the single truth that initialising, loading, saving and planning go by."""
    a, C = config.arch, config.n_embd
    shapes: Shapes = {}
    for name, (out_features, in_features) in linear_shapes(config).items():
        shapes.update(linears[name].shapes(name, out_features, in_features))
        if has_bias(config, name):
            shapes[f"{name}.bias"] = ((out_features,), "float32")
    if a.positions:
        shapes[f"{a.positions}.weight"] = ((config.context_length, C), "float32")
    norms = [a.final_norm] + [config.layer_name(i, n) for i in range(config.n_layer) for n in (a.norm1, a.norm2)]
    widths = dict.fromkeys(norms, C)
    if a.q_norm and a.k_norm:
        widths.update(
            {config.layer_name(i, n): config.head_dim for i in range(config.n_layer) for n in (a.q_norm, a.k_norm)}
        )
    for name, width in widths.items():
        shapes[f"{name}.weight"] = ((width,), "float32")
        if a.norm == "layer":
            shapes[f"{name}.bias"] = ((width,), "float32")
    return shapes


def has_bias(config: Config, name: str) -> bool:
    """Whether the matrix `name` has a bias beside it."""
    a = config.arch
    if name in (a.embed, a.head):
        return False
    return bool(config.attn_in_bias) if name.endswith(a.attn_in) else a.other_bias


def head_name(config: Config) -> str:
    """Module whose matrix makes the logits: the embedding where they are tied."""
    return config.arch.embed if config.tie_embeddings else config.arch.head


def init_params(config: Config, linears: Linears, seed: int = 0) -> dict[str, Array]:
    """Random float32 weights as GPT-2 starts: N(0, 0.02), the two projections that write to the residual stream
    scaled by 1/sqrt(2 n_layer) so that its variance does not grow with depth; norms 1, biases 0. One seed, one set of
    weights.
    """
    rng = np.random.default_rng(seed)
    residual = (config.arch.attn_out, config.arch.mlp_out)
    params: dict[str, Array] = {}
    for name, (shape, dtype) in param_shapes(config, linears).items():
        if name.endswith(".bias"):
            value = np.zeros(shape)
        elif len(shape) == 1:
            value = np.ones(shape)
        else:
            std = 0.02 / np.sqrt(2 * config.n_layer) if name.removesuffix(".weight").endswith(residual) else 0.02
            value = rng.normal(0.0, std, shape)
        params[name] = value.astype(dtype)
    return params
