"""MeZO's two looks at the loss, w + eps z and w - eps z, in one go: bit for bit what two passes would give.

Two ways, each making the numbers z of a layer once instead of twice:

together  the rows of both sides lie one behind the other, (2 B, T, C), and go through the model as one batch. Where a
          matrix is multiplied, `LinearKind.both` gives each half its side's weights; the c tier makes them on their way
          into the product, and no perturbed copy of a matrix ever stands in memory. Activations stand twice.
in turn   half a layer at a time, first the one side, then the other, whose copy of a tensor waits until it is read: no
          more perturbed weights than those of half a layer stand in memory. Activations stand once.

`together` says which takes less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.model.head_loss import head_loss, head_losses
from minedge.model.linears import Dense, LinearKind, Params
from minedge.model.noise import Noise, Perturbed
from minedge.model.shapes import linear_shapes
from minedge.model.transformer import _ATTENTION, _MLP, _norm_forward, _Pass, _residual_forward
from minedge.ops import Ops

__all__ = ["both_hidden", "both_losses", "both_sides", "together"]

Array = NDArray[Any]
Linears = Mapping[str, LinearKind]


def together(config: Config, linears: Linears, names: frozenset[str], positions: int, tier: str) -> bool:
    """Whether both looks at `positions` tokens go through the model together where the tensors `names` are perturbed:
    in the c tier, as long as what a layer's matrices give is no more numbers than their perturbed copies would be. For
    a model whose matrices are all trained that is up to about n_embd positions; with an adapter it never is.
    """
    if tier != "c":
        return False
    shapes = linear_shapes(config)
    layers = [name for name in shapes if name not in (config.arch.embed, config.arch.head)]
    copies = sum(
        math.prod(shape)
        for name in layers
        for key, (shape, _) in linears[name].shapes(name, *shapes[name]).items()
        if key in names
    )
    return positions * sum(shapes[name][0] for name in layers) <= copies


def both_losses(
    config: Config, params: Params, linears: Linears, tokens: Array, targets: Array, weights: Array, ops: Ops,
    noise: Noise, int8: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """`head_loss` after `forward_hidden`, at w + eps z and at w - eps z. tokens (B, T); targets, weights (B T,)."""
    model = (config, params, linears)
    at_once = together(config, linears, noise.names, tokens.size, ops.name)
    plus, minus = (x.reshape(len(targets), -1) for x in both_hidden(*model, tokens, ops, noise, int8, at_once))
    if at_once:
        return head_losses(*model, ops, (plus, minus), targets, weights, both_sides(params, noise, ops), int8)
    above = head_loss(*model, ops, plus, targets, weights, noise, int8)
    return above, head_loss(*model, ops, minus, targets, weights, replace(noise, eps=-noise.eps), int8)


def both_hidden(
    config: Config, params: Params, linears: Linears, tokens: Array, ops: Ops, noise: Noise, int8: bool = False,
    at_once: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """`transformer.forward_hidden` at w + eps z and at w - eps z: tokens (B, T) -> twice (B, T, C)."""
    return (_together if at_once else _in_turn)(config, params, linears, tokens, ops, noise, int8)


# --- one tensor, two views -------------------------------------------------------------------------------------------


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


def _embedded(config: Config, sides: tuple[Perturbed, Perturbed], linears: Linears, tokens: Array, ops: Ops) -> list:
    a = config.arch
    xs = [linears[a.embed].rows(tokens, side, a.embed, ops) for side in sides]
    if a.positions:
        where = np.arange(tokens.shape[1])
        xs = [x + Dense().rows(where, side, a.positions, ops) for x, side in zip(xs, sides, strict=True)]
    return xs


# --- in turn ---------------------------------------------------------------------------------------------------------


def _in_turn(
    config: Config, params: Params, linears: Linears, tokens: Array, ops: Ops, noise: Noise, int8: bool
) -> tuple[Array, Array]:
    sides = both_sides(params, noise, ops)
    runs = [_Pass(config, side, linears, ops, int8, keep=False) for side in sides]
    xs = _embedded(config, sides, linears, tokens, ops)
    for i in range(config.n_layer):
        for norm, block in ((config.arch.norm1, _ATTENTION), (config.arch.norm2, _MLP)):
            xs = [_residual_forward(x, run, norm, block, i)[0] for x, run in zip(xs, runs, strict=True)]
    plus, minus = (_norm_forward(x, run, config.arch.final_norm)[0] for x, run in zip(xs, runs, strict=True))
    return plus, minus


# --- together: the same lines over arrays (2 B, ...), whose first half belongs to +eps -------------------------------


def _together(
    config: Config, params: Params, linears: Linears, tokens: Array, ops: Ops, noise: Noise, int8: bool
) -> tuple[Array, Array]:
    sides = both_sides(params, noise, ops)
    kinds: Any = {name: _Both(kind, sides, ops) for name, kind in linears.items()}
    pairs: Any = _Pairs(sides)
    halves: Any = _Halves(ops)
    run = _Pass(config, pairs, kinds, halves, int8, keep=False)
    x = np.concatenate(_embedded(config, sides, linears, tokens, ops))  # (2 B, T, C)
    for i in range(config.n_layer):
        for norm, block in ((config.arch.norm1, _ATTENTION), (config.arch.norm2, _MLP)):
            x, _ = _residual_forward(x, run, norm, block, i)
    x, _ = _norm_forward(x, run, config.arch.final_norm)
    return x[: len(tokens)], x[len(tokens) :]


class _Pairs(Mapping[str, Any]):
    """Params whose perturbed vectors, of norms and biases, are pairs: one of each side."""

    def __init__(self, sides: tuple[Perturbed, Perturbed]):
        self.sides = sides

    def __getitem__(self, name: str) -> Any:
        plus, minus = self.sides
        return (plus[name], minus[name]) if name in plus.noise.names else plus[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sides[0])

    def __len__(self) -> int:
        return len(self.sides[0])

    def __contains__(self, name: object) -> bool:
        return name in self.sides[0]


class _Both:
    """A matrix that meets the first half of its input with one side's weights, the second with the other's."""

    def __init__(self, kind: LinearKind, sides: tuple[Perturbed, Perturbed], ops: Ops):
        self.kind, self.sides, self.ops = kind, sides, ops

    def forward(self, x: Array, _params: Params, name: str, _ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        out = self.kind.both(x.reshape(2, -1, *x.shape[1:]), self.sides, name, self.ops, int8)  # (2, B, T, out)
        return out.reshape(*x.shape[:-1], -1), ()


class _Halves:
    """`ops`, where an op that takes a pair of vectors gives each half of its input the vector of its side."""

    def __init__(self, ops: Ops):
        self.ops = ops

    def __getattr__(self, op: str) -> Any:
        found = getattr(self.ops, op)
        return _with_pairs(found) if op in ("rms_norm_forward", "layer_norm_forward", "bias_forward") else found


def _with_pairs(op: Callable) -> Callable:
    def both(x: Array, *rest: Any) -> tuple[Array, tuple]:
        halves = [[a[side] if isinstance(a, tuple) else a for a in rest] for side in (0, 1)]
        parts = [op(half, *arguments)[0] for half, arguments in zip(np.split(x, 2), halves, strict=True)]
        return np.concatenate(parts), ()

    return both
