"""Several adapters on one base: switching them, adding them up with weights, and stacking two into one.

An adapter's change of a weight W is scaling * B A, relative to the W below all adapters, so the changes of several add
up in any order. The sum w_a s_a B_a A_a + w_b s_b B_b A_b is itself of low rank:

    [w_a s_a B_a | w_b s_b B_b] [A_a; A_b]          rank r_a + r_b, exact

Averaging the A and the B separately, as some tools do, is not: mean(B) mean(A) holds cross terms B_a A_b. DoRA's change
is not of low rank, so no adapter stands for a part of it; `beside` counts it in products with activations instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from minedge.compress.compositions import adapters
from minedge.config import did_you_mean
from minedge.errors import UsageError
from minedge.finetune.lora_files import named_adapters, refuse_second
from minedge.model.linears import LinearKind, Params, Shapes, core
from minedge.model.model import Model
from minedge.ops import Ops

__all__ = ["beside", "chosen", "factors_of", "set_active", "stack", "without"]

M = TypeVar("M", bound=Model)


def set_active(model: M, active: bool, adapter: str | None = None) -> M:
    """A new model with its adapters (or the one called `adapter`) switched on or off. Those that are off are not
    trained.
    """
    names = set(model.trainable_names)

    def switched(kind: Any, name: str) -> LinearKind:
        if not kind.is_adapter:
            return kind
        base = switched(kind.base, name)
        if adapter not in (None, kind.adapter):
            return replace(kind, base=base)
        if active:
            names.update(kind.names(name))
        else:
            names.difference_update(kind.names(name))
        return replace(kind, base=base, active=active)

    named_adapters(model, adapter)
    linears = {name: switched(kind, name) for name, kind in model.linears.items()}
    return model.with_params(model.params, linears, frozenset(names))


def stack(model: M, weights: Mapping[str, float] | None = None, adapter: str = "stacked") -> M:
    """A new model in which one adapter called `adapter` stands for several: its change is exactly their weighted sum.

    weights  name of an adapter -> factor; None: every active adapter, once. Those named are replaced, on or off; all
             others stay as they are.

    The new adapter's rank is the sum of the ranks (per matrix, as not every adapter is on every matrix), its alpha
    that rank, so that its scaling is 1 and the factors are in its B. Raises `UsageError` for a DoRA adapter, whose
    change is not of low rank.
    """
    factors = factors_of(model, weights)
    refuse_second(model, adapter)
    if factors is None and not any(layer.active for _, layer in named_adapters(model, None)):
        raise UsageError("model: all its adapters are switched off; name those to stack in weights")
    params, linears, names = dict(model.params), dict(model.linears), set(model.trainable_names)
    for name, kind in model.linears.items():
        layers = chosen(kind, factors)
        if not layers:
            continue
        side_a, side_b = [], []
        for layer, factor in layers:
            if layer.kind != "lora":
                raise UsageError(f"stack: {layer.adapter!r} on {name} is a {layer.kind} adapter, whose change is not "
                                 "of low rank; merge it instead")  # fmt: skip
            a_name, b_name = layer.names(name)
            side_a.append(params.pop(a_name))
            side_b.append(factor * layer.scaling * params.pop(b_name))
        r, kept = sum(layer.r for layer, _ in layers), without(kind, layers)
        made = replace(layers[0][0], base=kept, r=r, lora_alpha=r, adapter=adapter, active=True, use_rslora=False)
        a_name, b_name = made.names(name)
        params[a_name] = np.concatenate(side_a)  # (r_a + r_b, in)
        params[b_name] = np.concatenate(side_b, axis=1)  # (out, r_a + r_b)
        linears[name] = made
        names |= {a_name, b_name}
    return model.with_params(params, linears, frozenset(names))


@dataclass(frozen=True)
class Beside(LinearKind):
    """A matrix whose adapters `factors` names, on or off, count times their factors: out = kept(x) + sum of factor *
    (adapter(x) - core(x)). It runs a model and does nothing else: no file holds it, nothing trains it.
    """

    base: LinearKind
    factors: tuple[tuple[str, float], ...]

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        return self.base.shapes(name, out_features, in_features)

    def forward(self, x: Any, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Any, tuple]:
        layers = chosen(self.base, dict(self.factors))
        out = without(self.base, layers).forward(x, params, name, ops, int8)[0]
        plain = core(self.base).forward(x, params, name, ops, int8)[0]
        for layer, factor in layers:
            alone = replace(layer, base=core(self.base), active=True)
            out = out + np.float32(factor) * (alone.forward(x, params, name, ops, int8)[0] - plain)
        return out, ()


def beside(model: M, weights: Mapping[str, float] | None = None) -> M:
    """The model that `merge(model, weights)` should equal, with every adapter beside its weight: what merging is
    compared with. Of use for logits and text alone.
    """
    factors = factors_of(model, weights)
    if factors is None:
        return model
    linears = {
        name: Beside(kind, tuple(factors.items())) if chosen(kind, factors) else kind
        for name, kind in model.linears.items()
    }
    return model.with_params(model.params, linears, frozenset())


def without(kind: Any, layers: list[tuple[Any, float]]) -> LinearKind:
    """`kind` less the adapters of `chosen`."""
    gone, kept = {layer.adapter for layer, _ in layers}, core(kind)
    for layer in reversed(adapters(kind)):  # from the inside out
        kept = kept if layer.adapter in gone else replace(layer, base=kept)
    return kept


def factors_of(model: Model, weights: Mapping[str, float] | None) -> dict[str, float] | None:
    """`weights` checked: names of adapters that the model has -> finite numbers. None stays None."""
    if weights is None:
        return None
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError(
            f"weights: expected names of adapters with their factors, such as {{'a': 0.5}}, got {weights!r}"
        )
    known = sorted({layer.adapter for _, layer in named_adapters(model, None)})
    for name, factor in weights.items():
        if name not in known:
            raise UsageError(
                f"weights: the model has no adapter {name!r}{did_you_mean(str(name), known)}; it has {', '.join(known)}"
            )
        number = isinstance(factor, (int, float, np.floating)) and not isinstance(factor, bool)
        if not number or not math.isfinite(factor):
            raise UsageError(f"weights: {name!r}: expected a finite number, got {factor!r}")
    return {name: float(factor) for name, factor in weights.items()}


def chosen(kind: Any, factors: Mapping[str, float] | None) -> list[tuple[Any, float]]:
    """A matrix's adapters that `factors` names, innermost first, each with its factor; None: the active ones, once."""
    layers = reversed(adapters(kind))
    if factors is None:
        return [(layer, 1.0) for layer in layers if layer.active]
    return [(layer, factors[layer.adapter]) for layer in layers if layer.adapter in factors]
