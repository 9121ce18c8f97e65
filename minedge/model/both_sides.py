"""MeZO's two looks at the loss, w + eps z and w - eps z, in one go: bit for bit what two passes would give.

Both passes go through the model side by side, half a layer at a time, so the numbers z of a tensor are made once
instead of twice. The second side's copy of a tensor waits until it is read: no more perturbed weights than those of
half a layer stand in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.model.linears import Dense, LinearKind, Params
from minedge.model.noise import Noise, Perturbed
from minedge.model.transformer import _ATTENTION, _MLP, _norm_forward, _Pass, _residual_forward
from minedge.ops import Ops

__all__ = ["both_hidden", "both_sides"]

Array = NDArray[Any]


class _Side(Perturbed):
    """One of two views that are read in turn: whoever reads a tensor first makes it for both."""

    def __init__(self, params: Params, noise: Noise, ops: Ops):
        super().__init__(params, noise, ops)
        self.other: _Side = self
        self.made: dict[str, Array] = {}  # made when the other side read it, not yet read here

    def __getitem__(self, name: str) -> Array:
        if name not in self._ids:
            return self.params[name]
        if name in self.made:
            return self.made.pop(name)
        n = self.noise
        own, self.other.made[name] = self.ops.perturb_both(
            self.params[name], n.eps, n.seed, n.step, n.sample, self._ids[name]
        )
        return own


def both_sides(params: Params, noise: Noise, ops: Ops) -> tuple[Perturbed, Perturbed]:
    """`Perturbed(params, noise)` and the same at -eps, for two readers that read the same tensors in turn."""
    plus, minus = _Side(params, noise, ops), _Side(params, replace(noise, eps=-noise.eps), ops)
    plus.other, minus.other = minus, plus
    return plus, minus


def both_hidden(
    config: Config,
    params: Params,
    linears: Mapping[str, LinearKind],
    tokens: Array,
    ops: Ops,
    noise: Noise,
    int8: bool = False,
) -> tuple[Array, Array]:
    """`transformer.forward_hidden` at w + eps z and at w - eps z: tokens (B, T) -> twice (B, T, C)."""
    sides = both_sides(params, noise, ops)
    runs = [_Pass(config, side, linears, ops, int8, keep=False) for side in sides]
    a, where = config.arch, np.arange(tokens.shape[1])
    xs = [linears[a.embed].rows(tokens, side, a.embed, ops) for side in sides]
    if a.positions:
        xs = [x + Dense().rows(where, side, a.positions, ops) for x, side in zip(xs, sides, strict=True)]
    for i in range(config.n_layer):
        for norm, block in ((a.norm1, _ATTENTION), (a.norm2, _MLP)):
            xs = [_residual_forward(x, run, norm, block, i)[0] for x, run in zip(xs, runs, strict=True)]
    plus, minus = (_norm_forward(x, run, a.final_norm)[0] for x, run in zip(xs, runs, strict=True))
    return plus, minus
