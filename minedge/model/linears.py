r"""The linear-kind protocol, and `Dense`, the plain one.

A kind says how one weight matrix is stored and multiplied: dense float32, 4-bit codes, a pruned matrix with its mask,
a frozen base plus a low-rank adapter. It is a small frozen dataclass of hyperparameters and holds no arrays: those
stand in the model's flat `params` under names that start with the module's name. So kinds nest (`LoRA(Int4(32),
r=8)`), and the transformer never asks which one it has.

Legend: `name` a module name such as "model.layers.0.self_attn.q_proj"; `params` the model's whole mapping; `ops` a
backend; `wanted` the parameter names whose gradients are asked for; in/out the matrix's widths (weights lie (out,
in)).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from minedge.errors import MinedgeFormatError
from minedge.model.noise import Perturbed
from minedge.ops import Ops

__all__ = ["Dense", "LinearKind", "core", "dense_kind", "kind_class", "kind_from_dict", "register"]

Array = NDArray[Any]
Params = Mapping[str, Array]
Shapes = dict[str, tuple[tuple[int, ...], str]]

_KINDS: dict[str, type[LinearKind]] = {}
# Where the package's other kinds are defined: when a file names one, its module is imported if nobody did before.
_HOMES = {
    "int4": "minedge.compress.int4",
    "int8": "minedge.compress.int8",
    "nf4": "minedge.compress.nf4",
    "float16": "minedge.compress.half",
    "bfloat16": "minedge.compress.half",
    "masked": "minedge.compress.prune",
    "sparse": "minedge.compress.sparse",
    "lora": "minedge.finetune.lora",
    "dora": "minedge.finetune.dora",
}


def register(name: str) -> Callable[[type[LinearKind]], type[LinearKind]]:
    """Class decorator: make a kind known to config.json under `name`."""

    def add(cls: type[LinearKind]) -> type[LinearKind]:
        cls.kind = name
        _KINDS[name] = cls
        return cls

    return add


def core(kind: Any) -> Any:
    """The kind below all adapters."""
    while kind.is_adapter:
        kind = kind.base
    return kind


def kind_class(kind: Any) -> Any:
    """The class registered under a name, its module imported if need be; `MinedgeFormatError` for an unknown name."""
    known = sorted({**_KINDS, **_HOMES})
    if kind not in known:
        raise MinedgeFormatError(f"linear kind: expected one of {', '.join(known)}, got {kind!r}")
    if kind not in _KINDS:
        importlib.import_module(_HOMES[kind])
    return _KINDS[kind]


def kind_from_dict(data: Mapping[str, Any]) -> LinearKind:
    """Inverse of `LinearKind.to_dict`; `MinedgeFormatError` for an unknown kind or field."""
    if not isinstance(data, Mapping):
        raise MinedgeFormatError(f"linear kind: expected an object, got {type(data).__name__}")
    values = {key: kind_from_dict(v) if key == "base" else v for key, v in data.items() if key != "kind"}
    kind = kind_class(data.get("kind"))
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise MinedgeFormatError(f"linear kind {data['kind']!r}: {error}") from None


@dataclass(frozen=True)
class LinearKind:
    """What every kind offers. Subclasses are frozen dataclasses registered under a name; one that wraps another kind
    has it as its field `base`.
    """

    kind: ClassVar[str] = ""
    is_adapter: ClassVar[bool] = False  # adds a trained change to a frozen base; other methods work on that base
    by_rows: ClassVar[bool] = False  # `pack` of some rows gives those rows of each of its arrays

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        """Parameter name -> (shape, dtype) of everything this kind keeps for the matrix."""
        raise NotImplementedError

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        """x (..., in) -> out (..., out). `int8` allows products over int8 activations where the kind has one
        (decoding).
        """
        raise NotImplementedError

    def both(self, x: Array, sides: tuple[Perturbed, Perturbed], name: str, ops: Ops, int8: bool = False) -> Array:
        """x (2, ..., in) -> out (2, ..., out): x[0] with the weights of the first side, x[1] with the second's."""
        return np.stack([self.forward(half, side, name, ops, int8)[0] for half, side in zip(x, sides, strict=True)])

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        """dout (..., out) -> dx (..., in) and the wanted gradients by parameter name."""
        raise NotImplementedError

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        """The effective weight, float32 (out, in)."""
        raise NotImplementedError

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        """Rows of the effective weight, for embeddings: ids (...) -> (..., in)."""
        return ops.embedding_forward(ids, self.dense(params, name, ops))[0]

    def rows_backward(
        self, dout: Array, ids: Array, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> dict[str, Array]:
        """Wanted gradients of `rows`; kinds without trainable weights return none."""
        return {}

    def trainable(self, name: str) -> tuple[str, ...]:
        """Names of the parameters that training changes unless told otherwise."""
        raise NotImplementedError

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        """Parameters made from a dense float32 weight (out, in)."""
        raise NotImplementedError

    def repack(self, name: str, weight: Array, params: Params, ops: Ops) -> dict[str, Array]:
        """`pack` for a weight that replaces the one in `params`; what is not the weight's own, a mask, stays."""
        return self.pack(name, weight, ops)

    def constrain_(self, params: Params, name: str, ops: Ops) -> None:
        """Put trained arrays back on the kind's constraint, in place, after an optimizer step. Most kinds have none."""

    def storage_shapes(self, name: str, out_features: int, in_features: int) -> Shapes | None:
        """Shapes of `to_storage`'s tensors; a None width inside a shape means the file says. Default: as in memory."""
        return self.shapes(name, out_features, in_features)

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        """The tensors a file holds for this matrix. Default: those in memory."""
        return {key: params[key] for key in self.shapes(name, 1, 1) if key in params}

    def exact_storage(self, name: str) -> tuple[str, ...]:
        """Names of stored float tensors that a file written in float16 keeps as they are: a rounding would change every
        weight that is read with them. Most kinds have none.
        """
        return ()

    def from_storage(
        self, tensors: Params, name: str, out_features: int, in_features: int, ops: Ops
    ) -> dict[str, Array]:
        """Inverse of `to_storage`. Default: as they are."""
        return dict(tensors)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `kind_from_dict` reads it back."""
        data = {key: value for key, value in asdict(self).items() if key != "base"}
        if hasattr(self, "base"):
            data["base"] = self.base.to_dict()
        return {"kind": self.kind, **data}


@register("dense")
@dataclass(frozen=True)
class Dense(LinearKind):
    """`out = x @ weight.T` with one float32 array, `name.weight` (out, in)."""

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        return {f"{name}.weight": ((out_features, in_features), "float32")}

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        return ops.linear_forward(x, params[f"{name}.weight"])

    def both(self, x: Array, sides: tuple[Perturbed, Perturbed], name: str, ops: Ops, int8: bool = False) -> Array:
        """Where the weight is perturbed, in one product that makes each z once and stores no perturbed weight."""
        weight = f"{name}.weight"
        if weight not in sides[0].noise.names:
            return super().both(x, sides, name, ops, int8)
        return sides[0].linear_both(weight, x)

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        weight = f"{name}.weight"
        dx, dweight = ops.linear_backward(dout, cache, need_dweight=weight in wanted)
        return dx, {} if dweight is None else {weight: dweight}

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        return params[f"{name}.weight"]

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        weight = f"{name}.weight"
        perturbed_rows = getattr(params, "rows", None)  # MeZO's view perturbs only the rows that are read
        if perturbed_rows is not None:
            return perturbed_rows(weight, ids)
        return ops.embedding_forward(ids, params[weight])[0]

    def rows_backward(
        self, dout: Array, ids: Array, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> dict[str, Array]:
        weight = f"{name}.weight"
        if weight not in wanted:
            return {}
        return {weight: ops.embedding_backward(dout, (ids, params[weight].shape))}

    def trainable(self, name: str) -> tuple[str, ...]:
        return (f"{name}.weight",)

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        return {f"{name}.weight": np.asarray(weight)}


def dense_kind() -> LinearKind:
    """The kind of a matrix that nothing was done to."""
    return Dense()
