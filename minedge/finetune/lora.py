r"""LoRA: train a low-rank change of a frozen weight (Hu et al., Low-Rank Adaptation of Large Language Models,
arXiv:2106.09685).

    out = base(x) + (lora_alpha / r) * (x A^T) B^T          A = lora_A (r, in), B = lora_B (out, r)        (Eq. 3)

The weight's change has rank r, so r * (in + out) numbers are trained instead of in * out. A starts random, B starts
at zero: at first the model is the base, bit for bit. Dividing by r keeps the size of the change about the same when r
is changed, so the learning rate need not be. Nothing is stored twice: the base's arrays are shared with the model the
adapter was added to, and the base may be dense, quantized or pruned.

Names, shapes and the start of A (kaiming_uniform with a = sqrt 5, which is U(-1/sqrt(in), 1/sqrt(in))) are PEFT's, so
adapters go both ways. Where we differ: A's random numbers depend on the seed and the tensor's name alone, not on
which other modules have adapters; there is no dropout; merging gives a new model and leaves the old one as it was.

Legend: `...` any leading dimensions, r rank, scaling = lora_alpha / r; weights lie (out, in).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.compositions import adapters, check_applies, check_base, core, default_trainable, select
from minedge.errors import UsageError
from minedge.finetune.lora_files import named_adapters, read_for, refuse_second, save_adapter
from minedge.model.linears import Dense, LinearKind, Params, Shapes, register
from minedge.model.model import Model
from minedge.model.noise import tensor_id
from minedge.model.shapes import linear_shapes
from minedge.ops import Ops

__all__ = ["LoRA", "add", "count", "load_adapter", "merge", "merge_error", "save_adapter", "set_active"]

Array = NDArray[Any]
M = TypeVar("M", bound=Model)


@register("lora")
@dataclass(frozen=True)
class LoRA(LinearKind):
    """`base` plus one adapter: `name.lora_A.<adapter>.weight` and `name.lora_B.<adapter>.weight`. An inactive one
    adds nothing.
    """

    base: LinearKind = field(default_factory=Dense)
    r: int = 8
    lora_alpha: float = 16
    adapter: str = "default"
    active: bool = True

    is_adapter: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_base("lora", self.base)
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise UsageError(f"r: expected an integer >= 1, got {self.r!r}")
        number = isinstance(self.lora_alpha, (int, float)) and not isinstance(self.lora_alpha, bool)
        if not number or not math.isfinite(self.lora_alpha):
            raise UsageError(f"lora_alpha: expected a finite number, got {self.lora_alpha!r}")
        if not isinstance(self.adapter, str) or not re.fullmatch(r"[\w-]+", self.adapter):
            raise UsageError(f"adapter: expected a name of letters, digits, '_' and '-', got {self.adapter!r}")
        if not isinstance(self.active, bool):
            raise UsageError(f"active: expected True or False, got {self.active!r}")
        if self.adapter in [layer.adapter for layer in adapters(self.base)]:
            raise UsageError(
                f"adapter: the model has one called {self.adapter!r} already; choose another name or merge it"
            )

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.r

    def names(self, name: str) -> tuple[str, str]:
        """Parameter names of lora_A and lora_B."""
        return f"{name}.lora_A.{self.adapter}.weight", f"{name}.lora_B.{self.adapter}.weight"

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        if self.r > min(out_features, in_features):
            limit = f"at most {min(out_features, in_features)} for {name} ({out_features}, {in_features})"
            raise UsageError(f"r: expected {limit}, got {self.r}")
        a_name, b_name = self.names(name)
        own: Shapes = {a_name: ((self.r, in_features), "float32"), b_name: ((out_features, self.r), "float32")}
        return {**self.base.shapes(name, out_features, in_features), **own}

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        out, base_cache = self.base.forward(x, params, name, ops, int8)
        if not self.active:
            return out, (base_cache,)
        a_name, b_name = self.names(name)
        h, a_cache = ops.linear_forward(x, params[a_name])  # (..., r)
        change, b_cache = ops.linear_forward(h * self.scaling, params[b_name])  # (..., out)
        out += change  # a fresh array of the base's, owned here
        return out, (base_cache, a_cache, b_cache)

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        dx, grads = self.base.backward(dout, cache[0], params, name, ops, wanted)
        if not self.active:
            return dx, grads
        _, a_cache, b_cache = cache
        a_name, b_name = self.names(name)
        dh, db = ops.linear_backward(dout, b_cache, need_dweight=b_name in wanted)  # inverts h * scaling -> change
        dx_a, da = ops.linear_backward(dh * self.scaling, a_cache, need_dweight=a_name in wanted)  # inverts x -> h
        dx += dx_a  # x went into the base and into A
        grads.update({key: grad for key, grad in ((a_name, da), (b_name, db)) if grad is not None})
        return dx, grads

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        weight = self.base.dense(params, name, ops)
        return weight + self.change(params, name) if self.active else weight

    def change(self, params: Params, name: str) -> Array:
        """What the adapter adds to the weight: scaling * B @ A, (out, in)."""
        a_name, b_name = self.names(name)
        return (self.scaling * params[b_name]) @ params[a_name]

    def trainable(self, name: str) -> tuple[str, ...]:
        return self.names(name) if self.active else ()

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        """The base's arrays: an adapter is not made from a weight, and the one there is stays beside them."""
        return self.base.pack(name, weight, ops)

    def repack(self, name: str, weight: Array, params: Params, ops: Ops) -> dict[str, Array]:
        return self.base.repack(name, weight, params, ops)

    def constrain_(self, params: Params, name: str, ops: Ops) -> None:
        self.base.constrain_(params, name, ops)

    def storage_shapes(self, name: str, out_features: int, in_features: int) -> Shapes | None:
        shapes, own = self.shapes(name, out_features, in_features), self.names(name)
        stored = self.base.storage_shapes(name, out_features, in_features) or {}
        return {**stored, **{key: shapes[key] for key in own}}

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        return {**self.base.to_storage(params, name, ops), **{key: params[key] for key in self.names(name)}}

    def from_storage(
        self, tensors: Params, name: str, out_features: int, in_features: int, ops: Ops
    ) -> dict[str, Array]:
        own = {key: tensors[key] for key in self.names(name)}
        rest = {key: array for key, array in tensors.items() if key not in own}
        return {**self.base.from_storage(rest, name, out_features, in_features, ops), **own}


def add(
    model: M,
    r: int = 8,
    lora_alpha: float = 16,
    target: str | Iterable[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    adapter: str = "default",
) -> M:
    """A new model with an adapter on every matrix that `target` names; it trains the adapter alone and shares all
    other arrays.

    target   module names or ends of them ("q_proj", GPT-2's "c_attn"), or "all": every matrix but the embedding and
             the head adapter  a name for this adapter; a second one goes on top of the first, which then is frozen

    Raises `UsageError` for a target the model does not have (with the nearest names) and for a rank that no matrix
    here can have.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"seed: expected an integer >= 0, got {seed!r}")
    shapes, params, linears, names = linear_shapes(model.config), dict(model.params), dict(model.linears), []
    refuse_second(model, adapter)
    for name in select(model.config, target, "target"):
        if name == model.config.arch.embed:
            raise UsageError(f"target: {name} is looked up, not multiplied; LoRA adapts matrices that multiply")
        kind = LoRA(linears[name], r, lora_alpha, adapter)
        out_features, in_features = shapes[name]
        kind.shapes(name, out_features, in_features)  # refuses a rank that is too large
        a_name, b_name = kind.names(name)
        rng, bound = np.random.default_rng([int(seed), tensor_id(a_name)]), 1 / math.sqrt(in_features)
        params[a_name] = rng.uniform(-bound, bound, (r, in_features)).astype(np.float32)
        params[b_name] = np.zeros((out_features, r), np.float32)
        linears[name] = kind
        names += [a_name, b_name]
    return model.with_params(params, linears, frozenset(names))


def merge(model: M) -> M:
    """A new model whose weights have taken the active adapters in; inactive ones stay beside them.

    Over a dense weight that costs float32 rounding and no more. A quantized weight has to be rounded to 4 bits again,
    and a pruned one keeps its mask: a warning says how much of the adapters' change that loses, `merge_error` how far
    the weights end up. Merging into float weights first (`prune.densify`, or the model before `quant.int4`) loses
    nothing.
    """
    merged, costs = _merge(model)
    lossy = {name: lost for name, (_, lost) in costs.items() if lost and core(model.linears[name]).kind != "dense"}
    if lossy:
        worst = max(lossy, key=lambda name: lossy[name])
        warnings.warn(
            f"merging into {core(model.linears[worst]).kind} weights loses up to {lossy[worst]:.0%} of what the "
            f"adapters change ({worst}), up to {max(d for d, _ in costs.values()):.2g} in a weight; to lose nothing, "
            "keep the adapters beside the weights, or merge them into the model before it was compressed",
            UserWarning,
            stacklevel=2,
        )
    return merged


def merge_error(model: Model) -> float:
    """The largest difference between a weight of `merge(model)` and the same weight with the adapter beside it."""
    return max((difference for difference, _ in _merge(model)[1].values()), default=0.0)


def _merge(model: M) -> tuple[M, dict[str, tuple[float, float]]]:
    """The merged model, and per merged module: largest difference, and size of the error over size of the change."""
    ops, params, linears = model.ops, dict(model.params), dict(model.linears)
    costs: dict[str, tuple[float, float]] = {}
    for name, kind in model.linears.items():
        active = [layer for layer in adapters(kind) if layer.active]
        if not active:
            continue
        base = core(kind)
        check_applies("merge", base, name)
        before = base.dense(model.params, name, ops)
        weight = kind.dense(model.params, name, ops)
        params.update(base.repack(name, weight, model.params, ops))
        after, kept = base.dense(params, name, ops), base
        for layer in reversed(adapters(kind)):  # from the inside out
            if layer.active:
                for key in layer.names(name):
                    del params[key]
            else:
                kept = replace(layer, base=kept)
        linears[name] = kept
        change = float(np.linalg.norm(weight - before))
        error = float(np.linalg.norm(after - weight))
        costs[name] = float(np.abs(after - weight).max()), error / change if change else 0.0
    return model.with_params(params, linears, default_trainable(model, linears, params)), costs


def set_active(model: M, active: bool, adapter: str | None = None) -> M:
    """A new model with its adapters (or the one called `adapter`) switched on or off. Those that are off are not
    trained.
    """
    names = set(model.trainable_names)

    def switched(kind: LinearKind, name: str) -> LinearKind:
        if not isinstance(kind, LoRA):
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


def count(model: Model) -> int:
    """Number of trained parameters in active adapters: the sum of r * (in + out)."""
    layers = [(name, layer) for name, kind in model.linears.items() for layer in adapters(kind) if layer.active]
    return sum(model.params[key].size for name, layer in layers for key in layer.names(name))


def load_adapter(model: M, path: str | PathLike[str], adapter: str = "default", any_base: bool = False) -> M:
    """A new model with the adapter from `path` on top, as the only thing it trains.

    Raises `MinedgeFormatError` for a file that is damaged or does not fit the model's matrices, `UsageError` if it
    was trained on other weights; `any_base=True` allows that, for instance to put what was trained over int4 weights
    onto the float weights.
    """
    refuse_second(model, adapter)
    config, arrays = read_for(model, path, adapter, any_base)
    shapes, linears = linear_shapes(model.config), dict(model.linears)
    for name in [name for name in shapes if LoRA(adapter=adapter).names(name)[0] in arrays]:
        linears[name] = LoRA(linears[name], config["r"], config["lora_alpha"], adapter)
    return model.with_params({**model.params, **arrays}, linears, frozenset(arrays))
