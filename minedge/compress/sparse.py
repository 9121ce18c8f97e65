r"""Sparse: a pruned matrix that stays packed in memory too, its mask (one bit a weight) and the weights that are left.

    weight[o, i] = value where the mask has a bit, else 0;      out = x @ weight.T

`Masked` (prune.py) is for training: the matrix is whole, and the mask is applied to it at each use. `pack(model)` is
for what comes after: at 50% or 2:4 a matrix takes 2.1 bytes a weight instead of 4.1, with dtype="float16" 1.1, and a
product that waits for memory, as in text generation, takes less time. It is frozen: gradients pass on to its input,
and an adapter on top can be trained. `unpack(model)` is the way back. Products are in float32 either way.

`minedge bench --only sparse` says from which density on that pays on this machine; with many rows of x it does not.

Legend: in/out the matrix's widths, weights (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.compositions import check_applies, with_core
from minedge.compress.prune import Masked, check_pattern
from minedge.config import did_you_mean, integer
from minedge.errors import UsageError
from minedge.model.linears import LinearKind, Params, Shapes, core, register
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes
from minedge.ops import Ops

__all__ = ["DTYPES", "Sparse", "pack", "report", "unpack"]

Array = NDArray[Any]
M = TypeVar("M", bound=Model)

DTYPES = ("float32", "float16")
STEP = 8  # columns of a byte of the mask: divides every width that can be packed


@register("sparse")
@dataclass(frozen=True)
class Sparse(LinearKind):
    """`name.mask` uint8 (out in / 8,), `name.values` float32 or float16 (kept,), `name.starts` int64 (out + 1,): where
    the values of each row begin. `pattern` as in `Masked`.
    """

    kept: int = 0
    dtype: str = "float32"
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", integer("kept", self.kept, 0, "a number of weights >= 0"))
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype: expected {' or '.join(DTYPES)}, got {self.dtype!r}")
        check_pattern(self.pattern)

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        n = out_features * in_features
        if in_features % STEP:
            raise UsageError(f"{name}: width {in_features} is not a multiple of {STEP}")
        if self.kept > n:
            raise UsageError(f"{name}: kept: expected at most {n} weights, got {self.kept}")
        return {
            f"{name}.mask": ((n // STEP,), "uint8"),
            f"{name}.values": ((self.kept,), self.dtype),
            f"{name}.starts": ((out_features + 1,), "int64"),
        }

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        return ops.sparse_linear_forward(x, *_arrays(params, name))

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        return ops.sparse_linear_backward(dout, cache), {}

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        bits, values, starts = _arrays(params, name)
        out = len(starts) - 1
        return ops.sparse_unpack(_wide(values), bits, (out, STEP * bits.size // out))

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        """Makes only the rows asked for dense: an embedding's other rows stay packed."""
        bits, values, starts = _arrays(params, name)
        some, place = np.unique(ids, return_inverse=True)
        masks = bits.reshape(len(starts) - 1, -1)[some]
        kept = [values[starts[row] : starts[row + 1]] for row in some] or [values[:0]]
        dense = ops.sparse_unpack(_wide(np.concatenate(kept)), masks.reshape(-1), (len(some), STEP * masks.shape[1]))
        return dense[place.reshape(ids.shape)]

    def trainable(self, name: str) -> tuple[str, ...]:
        return ()

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        """What is not zero is kept; that must be `kept` weights."""
        return self._packed(name, weight, np.packbits((weight != 0).ravel(), bitorder="little"), ops)

    def repack(self, name: str, weight: Array, params: Params, ops: Ops) -> dict[str, Array]:
        return self._packed(name, weight, params[f"{name}.mask"], ops)

    def _packed(self, name: str, weight: Array, bits: Array, ops: Ops) -> dict[str, Array]:
        values = ops.sparse_pack(np.ascontiguousarray(weight, np.float32), bits)
        if self.dtype == "float16":
            values = ops.half_round(values, "float16")
        if not np.isfinite(values).all():
            raise UsageError(f"{name}: weights that are not finite, or beyond {self.dtype}'s range, cannot be packed")
        out, width = weight.shape
        return self.from_storage({f"{name}.mask": bits, f"{name}.values": values}, name, out, width, ops)

    # In a file: as a `Masked` matrix, its mask and values.

    def storage_shapes(self, name: str, out_features: int, in_features: int) -> Shapes | None:
        shapes = self.shapes(name, out_features, in_features)
        del shapes[f"{name}.starts"]
        return shapes

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        return {key: params[key] for key in (f"{name}.mask", f"{name}.values")}

    def from_storage(
        self, tensors: Params, name: str, out_features: int, in_features: int, ops: Ops
    ) -> dict[str, Array]:
        """Row starts are counted in the mask; ValueError where it keeps another number of weights than there are."""
        starts = np.zeros(out_features + 1, np.int64)
        counts = _BITS[tensors[f"{name}.mask"].reshape(out_features, -1)].sum(axis=1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])
        if starts[-1] != self.kept or tensors[f"{name}.values"].shape != (self.kept,):
            shape = tensors[f"{name}.values"].shape
            raise ValueError(f"{name}.mask: keeps {starts[-1]} weights, expected kept = {self.kept}; values {shape}")
        return {**tensors, f"{name}.starts": starts}


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def _arrays(params: Params, name: str) -> tuple[Array, Array, Array]:
    return params[f"{name}.mask"], params[f"{name}.values"], params[f"{name}.starts"]


def _wide(values: Array) -> Array:
    return values.astype(np.float32, copy=False)


def pack(model: M, dtype: str = "float32") -> M:
    """A new model whose pruned matrices stay packed in memory, adapters kept on top; all other arrays are shared.

    dtype  "float32": the same numbers; "float16": the weights that are left are rounded to that

    A matrix whose width 8 does not divide stays as it is. Packed weights can no longer be trained. Raises `UsageError`
    for a model in which nothing is pruned, or weights beyond float16's 65,504.
    """
    if dtype not in DTYPES:
        raise UsageError(
            f"dtype: expected 'float32' or 'float16', got {dtype!r}{did_you_mean(str(dtype), list(DTYPES))}"
        )

    def change(inside: Any, name: str, shape: tuple[int, int]) -> LinearKind | None:
        if isinstance(inside, Sparse):
            return Sparse(inside.kept, dtype, inside.pattern)
        if not isinstance(inside, Masked) or shape[1] % STEP:
            return None
        kept = int(_BITS[model.params[f"{name}.mask"]].sum(dtype=np.int64))
        return Sparse(kept, dtype, inside.pattern)

    found = [core(kind) for kind in model.linears.values()]
    if not any(isinstance(kind, (Masked, Sparse)) for kind in found):
        inner = next((name for name in linear_shapes(model.config) if core(model.linears[name]).kind != "dense"), None)
        name = inner or next(iter(linear_shapes(model.config)))
        check_applies("pack", model.linears[name], name)
    return _changed(model, change)


def unpack(model: M) -> M:
    """The way back: packed matrices become `Masked` ones, which are trainable where no adapter is. What float16 rounded
    stays rounded.
    """

    def change(inside: Any, name: str, shape: tuple[int, int]) -> LinearKind | None:
        return Masked(pattern=inside.pattern) if isinstance(inside, Sparse) else None

    back = _changed(model, change)
    made = {f"{name}.weight" for name, kind in model.linears.items() if isinstance(kind, Sparse)}
    if any(kind.is_adapter for kind in model.linears.values()):
        return back
    return back.with_params(back.params, back.linears, back.trainable_names | made)


def report(model: Model) -> dict[str, dict[str, Any]]:
    """Of every packed matrix what `prune.report` says of a pruned one: weights, kept, density, pattern, and bytes."""
    out = {}
    for name, shape in linear_shapes(model.config).items():
        inside, size = core(model.linears[name]), math.prod(shape)
        if isinstance(inside, Sparse):
            bits, values, starts = _arrays(model.params, name)
            out[name] = {
                "weights": size,
                "kept": inside.kept,
                "density": inside.kept / size,
                "pattern": inside.pattern,
                "dense_bytes": 4 * size,
                "resident_bytes": bits.nbytes + values.nbytes + starts.nbytes,
                "stored_bytes": bits.nbytes + values.nbytes,
            }
    return out


def _changed(model: M, change: Callable[[Any, str, tuple[int, int]], LinearKind | None]) -> M:
    """The model with the kinds that `change` gives below adapters, same mask and numbers."""
    ops, params, linears = model.ops, dict(model.params), dict(model.linears)
    for name, shape in linear_shapes(model.config).items():
        inside = core(linears[name])
        new = change(inside, name, shape)
        if new is None or new == inside:
            continue
        weight, mask = inside.dense(model.params, name, ops), model.params[f"{name}.mask"]
        for key in inside.shapes(name, *shape):
            del params[key]
        params.update(new.repack(name, weight, {f"{name}.mask": mask}, ops))
        linears[name] = with_core(linears[name], new)
    return model.with_params(params, linears)
