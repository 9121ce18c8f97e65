r"""LoRA: train a low-rank change of a frozen weight (Hu et al., Low-Rank Adaptation of Large Language Models,
arXiv:2106.09685).

    out = base(x) + (lora_alpha / r) * (x A^T) B^T          A = lora_A (r, in), B = lora_B (out, r)        (Eq. 3)

The weight's change has rank r, so r * (in + out) numbers are trained instead of in * out. A starts random, B starts
at zero: at first the model is the base, bit for bit. Dividing by r keeps the size of the change about the same when r
is changed, so the learning rate need not be. That was an argument for the start; for large ranks the change shrinks as
training goes on, and rank-stabilized LoRA (arXiv:2312.03732, Thm. 3.2) divides by sqrt(r) instead. Nothing is stored
twice: the base's arrays are shared with the model the adapter was added to, and the base may be dense, quantized or
pruned. DoRA is in dora.py, several adapters on one base in lora_several.py, their files in lora_files.py.

Names, shapes and the start of A (kaiming_uniform with a = sqrt 5, which is U(-1/sqrt(in), 1/sqrt(in))) are PEFT's, so
adapters go both ways. Where we differ: A's random numbers depend on the seed and the tensor's name alone, not on
which other modules have adapters; there is no dropout; merging gives a new model and leaves the old one as it was.

Legend: `...` any leading dimensions, r rank, scaling = lora_alpha / r or lora_alpha / sqrt(r); weights lie (out, in).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.compositions import adapters, check_applies, check_base, default_trainable, select
from minedge.config import integer
from minedge.errors import UsageError
from minedge.finetune.lora_files import load_adapter, refuse_second, save_adapter
from minedge.finetune.lora_several import beside, chosen, factors_of, set_active, stack, without
from minedge.model.linears import Dense, LinearKind, Params, Shapes, core, kind_class, register
from minedge.model.model import Model
from minedge.model.noise import tensor_id
from minedge.model.shapes import linear_shapes
from minedge.ops import Ops

__all__ = [
    "Cost", "LoRA", "add", "beside", "count", "load_adapter", "merge", "merge_costs", "merge_error", "save_adapter",
    "set_active", "stack",
]  # fmt: skip

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
    use_rslora: bool = False

    is_adapter: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_base(self.kind, self.base)
        object.__setattr__(self, "r", integer("r", self.r))
        alpha = self.lora_alpha.item() if isinstance(self.lora_alpha, np.number) else self.lora_alpha
        if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
            raise UsageError(f"lora_alpha: expected a finite number, got {self.lora_alpha!r}")
        object.__setattr__(self, "lora_alpha", alpha)  # a plain number, which config.json can hold
        if not isinstance(self.adapter, str) or not re.fullmatch(r"[\w-]+", self.adapter):
            raise UsageError(f"adapter: expected a name of letters, digits, '_' and '-', got {self.adapter!r}")
        for switch in ("active", "use_rslora"):
            if not isinstance(getattr(self, switch), bool):
                raise UsageError(f"{switch}: expected True or False, got {getattr(self, switch)!r}")
        if self.adapter in [layer.adapter for layer in adapters(self.base)]:
            raise UsageError(
                f"adapter: the model has one called {self.adapter!r} already; choose another name or merge it"
            )

    @property
    def scaling(self) -> float:
        # BEGIN SOLUTION a3.1
        return self.lora_alpha / math.sqrt(self.r) if self.use_rslora else self.lora_alpha / self.r
        # END SOLUTION

    def names(self, name: str) -> tuple[str, ...]:
        """Names of the adapter's own parameters: lora_A, lora_B."""
        return f"{name}.lora_A.{self.adapter}.weight", f"{name}.lora_B.{self.adapter}.weight"

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        a_name, b_name = self.names(name)
        # BEGIN SOLUTION a3.1
        own: Shapes = {a_name: ((self.r, in_features), "float32"), b_name: ((out_features, self.r), "float32")}
        return {**self.base.shapes(name, out_features, in_features), **own}
        # END SOLUTION

    def start(self, params: Params, name: str, shape: tuple[int, int], seed: int, ops: Ops) -> dict[str, Array]:
        """The adapter's own parameters before training: A random, B zero."""
        (out_features, in_features), (a_name, b_name) = shape, self.names(name)
        rng = np.random.default_rng([int(seed), tensor_id(a_name)])
        # BEGIN SOLUTION a3.2
        bound = 1 / math.sqrt(in_features)
        a = rng.uniform(-bound, bound, (self.r, in_features)).astype(np.float32)
        return {a_name: a, b_name: np.zeros((out_features, self.r), np.float32)}
        # END SOLUTION

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        out, base_cache = self.base.forward(x, params, name, ops, int8)
        # BEGIN SOLUTION a3.3
        if not self.active:
            return out, (base_cache,)
        a_name, b_name = self.names(name)
        h, a_cache = ops.linear_forward(x, params[a_name])  # (..., r)
        change, b_cache = ops.linear_forward(h * self.scaling, params[b_name])  # (..., out)
        out += change  # a fresh array of the base's, owned here
        return out, (base_cache, a_cache, b_cache)
        # END SOLUTION

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        dx, grads = self.base.backward(dout, cache[0], params, name, ops, wanted)
        # BEGIN SOLUTION a3.4
        if not self.active:
            return dx, grads
        _, a_cache, b_cache = cache
        a_name, b_name = self.names(name)
        dh, db = ops.linear_backward(dout, b_cache, need_dweight=b_name in wanted)  # inverts h * scaling -> change
        dx_a, da = ops.linear_backward(dh * self.scaling, a_cache, need_dweight=a_name in wanted)  # inverts x -> h
        dx += dx_a  # x went into the base and into A
        grads.update({key: grad for key, grad in ((a_name, da), (b_name, db)) if grad is not None})
        return dx, grads
        # END SOLUTION

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        # BEGIN SOLUTION a3.5
        weight = self.base.dense(params, name, ops)
        return weight + self.change(params, name, ops) if self.active else weight
        # END SOLUTION

    def change(self, params: Params, name: str, ops: Ops) -> Array:
        """What the adapter adds to the weight: scaling * B @ A, (out, in). Several adapters' changes add up."""
        # BEGIN SOLUTION a3.5
        a_name, b_name = self.names(name)
        return (self.scaling * params[b_name]) @ params[a_name]
        # END SOLUTION

    def trainable(self, name: str) -> tuple[str, ...]:
        # BEGIN SOLUTION a3.1
        return self.names(name) if self.active else ()
        # END SOLUTION

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
    use_rslora: bool = False,
    use_dora: bool = False,
) -> M:
    """A new model with an adapter on every matrix that `target` names; it trains the adapter alone and shares all
    other arrays.

    target      module names or ends of them ("q_proj", GPT-2's "c_attn"), or "all": every matrix but the embedding and
                the head
    adapter     a name for this adapter; a second one goes on top of the first, which then is frozen
    use_rslora  scaling = lora_alpha / sqrt(r)
    use_dora    also train each row's length (dora.py)

    Raises `UsageError` for a target the model does not have (with the nearest names) and for a rank that no matrix
    here can have.
    """
    seed, r = integer("seed", seed, 0), integer("r", r)
    if not isinstance(use_dora, bool):
        raise UsageError(f"use_dora: expected True or False, got {use_dora!r}")
    shapes, params, linears = linear_shapes(model.config), dict(model.params), dict(model.linears)
    names: list[str] = []
    refuse_second(model, adapter)
    for name in select(model.config, target, "target"):
        if name == model.config.arch.embed:
            raise UsageError(f"target: {name} is looked up, not multiplied; LoRA adapts matrices that multiply")
        cls = kind_class("dora") if use_dora else LoRA
        kind = cls(linears[name], r, lora_alpha, adapter, use_rslora=use_rslora)
        if r > min(shapes[name]):
            raise UsageError(f"r: expected at most {min(shapes[name])} for {name} {shapes[name]}, got {r}")
        own = kind.start(params, name, shapes[name], seed, model.ops)
        params.update(own)
        linears[name] = kind
        names += own
    return model.with_params(params, linears, frozenset(names))


def merge(model: M, weights: Mapping[str, float] | None = None) -> M:
    """A new model whose weights have taken the active adapters in; inactive ones stay beside them.

    `weights`, such as {"a": 0.7, "b": 0.3}, instead merges the adapters that it names, on or off, each one's change
    times its number; all others stay beside the weights.

    Over a dense weight that costs float32 rounding and no more. A quantized weight has to be rounded to 4 bits again,
    and a pruned one keeps its mask: a warning says how much of the adapters' change that loses, `merge_error` how far
    the weights end up. Merging into float weights first (`prune.densify`, or the model before `quant.int4`) loses
    nothing.
    """
    merged, costs = _merge(model, weights)
    lossy = {name: c.lost for name, c in costs.items() if c.lost and core(model.linears[name]).kind != "dense"}
    if lossy:
        worst, largest = max(lossy, key=lambda name: lossy[name]), max(cost.largest for cost in costs.values())
        warnings.warn(
            f"merging into {core(model.linears[worst]).kind} weights loses up to {lossy[worst]:.0%} of what the "
            f"adapters change ({worst}), up to {largest:.2g} in a weight; to lose nothing, "
            "keep the adapters beside the weights, or merge them into the model before it was compressed",
            UserWarning,
            stacklevel=2,
        )
    return merged


def merge_error(model: Model, weights: Mapping[str, float] | None = None) -> float:
    """The largest difference between a weight of `merge(model)` and the same weight with the adapter beside it."""
    return max((cost.largest for cost in _merge(model, weights)[1].values()), default=0.0)


class Cost(NamedTuple):
    """What rounding to the base's format costs one matrix: its largest error, and the sizes (root of the sum of
    squares) of the error and of what the adapters change.
    """

    largest: float
    error: float
    change: float

    @property
    def lost(self) -> float:
        """Error over change: 0 nothing is lost, 1 as much as the adapters do."""
        return self.error / self.change if self.change else 0.0


def merge_costs(model: Model, weights: Mapping[str, float] | None = None) -> dict[str, Cost]:
    """Module name -> what `merge(model, weights)` costs it: float32 rounding over dense weights, more over others."""
    return _merge(model, weights)[1]


def _merge(model: M, weights: Mapping[str, float] | None) -> tuple[M, dict[str, Cost]]:
    factors = factors_of(model, weights)
    ops, params, linears = model.ops, dict(model.params), dict(model.linears)
    costs: dict[str, Cost] = {}
    for name, kind in model.linears.items():
        layers = chosen(kind, factors)
        if not layers:
            continue
        base = core(kind)
        check_applies("merge", base, name)
        # BEGIN SOLUTION a3.6
        weight = before = base.dense(model.params, name, ops)
        for layer, factor in layers:
            weight = weight + factor * layer.change(model.params, name, ops)
        params.update(base.repack(name, weight, model.params, ops))
        after, linears[name] = base.dense(params, name, ops), without(kind, layers)
        for key in (key for layer, _ in layers for key in layer.names(name)):
            del params[key]
        # END SOLUTION
        error, change = after - weight, weight - before
        costs[name] = Cost(float(np.abs(error).max()), float(np.linalg.norm(error)), float(np.linalg.norm(change)))
    return model.with_params(params, linears, default_trainable(model, linears, params)), costs


def count(model: Model) -> int:
    """Number of trained parameters in active adapters: the sum of r * (in + out), with DoRA also out."""
    layers = [(name, layer) for name, kind in model.linears.items() for layer in adapters(kind) if layer.active]
    return sum(model.params[key].size for name, layer in layers for key in layer.names(name))
