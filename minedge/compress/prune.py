r"""Pruning: take the smallest weights out and keep them out (Han et al., Learning both Weights and Connections,
arXiv:1506.02626).

    keep[i] = 0 for the round(sparsity * n) weights of smallest |w|, else 1;      out = x @ (keep * weight).T

Per matrix ("layer") or over all of them at once ("global"); or n of every m neighbours (`nm`, arXiv:2104.08378), the
pattern that hardware can use. The count is exact: among equal magnitudes the lowest index goes first. (Reference
implementations compare with a threshold and remove more at ties.)

The mask is part of the model. It is applied to whatever weight comes by, a trained or a perturbed one too, and to the
gradient; and after an optimizer step `constrain_` sets pruned weights back to zero. So fine-tuning recovers accuracy
at the same sparsity.

In memory a pruned matrix is as large as before, plus one bit a weight. In a file it is its mask and the weights that
are left: at 50% 0.56 of the float16 matrix, 0.53 of the float32 one. Applying the mask at each use costs time where few
tokens go through; for when training is over `sparse.pack` (sparse.py) keeps matrices packed in memory, and `densify`
gives a model with the same numbers at dense speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.compositions import check_applies, check_base, select, with_core
from minedge.errors import UsageError
from minedge.model.linears import Dense, LinearKind, Params, Shapes, core, register
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes
from minedge.ops import Ops

__all__ = ["Masked", "check_pattern", "densify", "magnitude", "nm", "report"]

Array = NDArray[Any]
Mask = NDArray[np.bool_]
M = TypeVar("M", bound=Model)


@register("masked")
@dataclass(frozen=True)
class Masked(LinearKind):
    """`name.weight` (out, in), zero where pruned, and `name.mask`, one bit a weight in row order, set = kept.

    `pattern` records how the mask was made: "unstructured", or "2:4" for two kept of every four along a row.
    """

    base: LinearKind = field(default_factory=Dense)
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        check_base("masked", self.base)
        check_pattern(self.pattern)

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        bits = (out_features * in_features + 7) // 8
        return {**self.base.shapes(name, out_features, in_features), f"{name}.mask": ((bits,), "uint8")}

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        # The masked copy is not cached: backward makes it again, which costs little beside the product.
        # BEGIN SOLUTION a5.5
        return ops.linear_forward(x, self.dense(params, name, ops))[0], (x,)
        # END SOLUTION

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        # BEGIN SOLUTION a5.5
        (x,) = cache
        key = f"{name}.weight"
        dx, dweight = ops.linear_backward(dout, (x, self.dense(params, name, ops)), need_dweight=key in wanted)
        if dweight is None:
            return dx, {}
        return dx, {key: ops.mask_apply(dweight, params[f"{name}.mask"])}  # inverts keep * weight
        # END SOLUTION

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        # BEGIN SOLUTION a5.5
        return ops.mask_apply(params[f"{name}.weight"], params[f"{name}.mask"])
        # END SOLUTION

    def rows_backward(
        self, dout: Array, ids: Array, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> dict[str, Array]:
        # BEGIN SOLUTION a5.5
        grads = self.base.rows_backward(dout, ids, params, name, ops, wanted)
        return {key: ops.mask_apply(grad, params[f"{name}.mask"]) for key, grad in grads.items()}
        # END SOLUTION

    def trainable(self, name: str) -> tuple[str, ...]:
        return self.base.trainable(name)

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        """The mask of a bare weight keeps what is not zero."""
        return {**self.base.pack(name, weight, ops), f"{name}.mask": _bits(weight != 0)}

    def repack(self, name: str, weight: Array, params: Params, ops: Ops) -> dict[str, Array]:
        bits = params[f"{name}.mask"]
        return {**self.base.pack(name, ops.mask_apply(weight, bits), ops), f"{name}.mask": bits}

    def constrain_(self, params: Params, name: str, ops: Ops) -> None:
        # BEGIN SOLUTION a5.5
        weight = params[f"{name}.weight"]
        if weight.flags.writeable:  # read-only: it was not trained, so there is nothing to put back
            ops.mask_apply_(weight, params[f"{name}.mask"])
        # END SOLUTION

    # In a file: the mask and the kept weights.

    def storage_shapes(self, name: str, out_features: int, in_features: int) -> Shapes | None:
        shapes: Any = self.shapes(name, out_features, in_features)
        return {f"{name}.mask": shapes[f"{name}.mask"], f"{name}.values": ((None,), "float32")}

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        bits = params[f"{name}.mask"]
        return {f"{name}.mask": bits, f"{name}.values": ops.sparse_pack(params[f"{name}.weight"], bits)}

    def from_storage(
        self, tensors: Params, name: str, out_features: int, in_features: int, ops: Ops
    ) -> dict[str, Array]:
        bits, n = tensors[f"{name}.mask"], out_features * in_features
        if n % 8 and bits[-1] >> (n % 8):
            raise ValueError(f"{name}.mask: the bits beyond {n} weights are not all zero")
        weight = ops.sparse_unpack(tensors[f"{name}.values"], bits, (out_features, in_features))
        return {f"{name}.weight": weight, f"{name}.mask": bits}


def magnitude(model: M, sparsity: float = 0.5, scope: str = "layer", names: str | Iterable[str] | None = None) -> M:
    """A new model without its smallest weights: exactly round(sparsity * n) of n are masked.

    scope   "layer": n counts one matrix, each loses the same share; "global": n counts all of them, the smallest
            anywhere go
    names   modules to prune, or ends of their names ("q_proj"); None: every matrix except the embedding and the head

    Pruning twice with one sparsity gives the same model. Raises `UsageError` for a sparsity outside [0, 1), and for one
    that would keep more of a matrix than an earlier pruning left.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float, np.floating)) or not 0 <= sparsity < 1:
        raise UsageError(f"sparsity: expected a number in [0, 1), the share of weights to remove, got {sparsity!r}")
    if scope not in ("layer", "global"):
        raise UsageError(f'scope: expected "layer" or "global", got {scope!r}')
    weights = _weights(model, names)
    # BEGIN SOLUTION a5.3
    if scope == "global":
        masks = _without_smallest(list(weights.values()), sparsity)
    else:
        masks = [_without_smallest([weight], sparsity)[0] for weight in weights.values()]
    # END SOLUTION
    return _with_masks(model, weights, masks, "unstructured")


def nm(model: M, n: int = 2, m: int = 4, names: str | Iterable[str] | None = None) -> M:
    """A new model in which every m neighbours along a row keep their n largest; among equals the lowest index goes
    first.

    Raises `UsageError` where m does not divide a matrix's width, and where an earlier pruning left less.
    """
    pattern = f"{n}:{m}"
    _parse_pattern(pattern)
    weights = _weights(model, names)
    masks = []
    for name, weight in weights.items():
        if weight.shape[1] % m:
            raise UsageError(f"m: {m} does not divide the width {weight.shape[1]} of {name}; leave that matrix out")
        # BEGIN SOLUTION a5.4
        groups = np.abs(weight).reshape(-1, m)
        order = np.argsort(groups, axis=-1, kind="stable")  # stable: equals stay in order of index
        mask = np.ones(groups.shape, bool)
        np.put_along_axis(mask, order[:, : m - n], False, axis=-1)
        masks.append(mask.reshape(weight.shape))
        # END SOLUTION
    return _with_masks(model, weights, masks, pattern)


def densify(model: M) -> M:
    """A new model without masks: pruned weights are zeros that training may change again."""
    params, linears, names = dict(model.params), dict(model.linears), model.trainable_names
    for name, kind in model.linears.items():
        inside = core(kind)
        check_applies("densify", inside, name)
        if inside.kind in ("masked", "sparse"):
            base, weight = getattr(inside, "base", Dense()), inside.dense(params, name, model.ops)
            for key in inside.shapes(name, *weight.shape):
                del params[key]
            params.update(base.pack(name, weight, model.ops))
            linears[name] = with_core(kind, base)
            if inside.kind == "sparse" and not kind.is_adapter:  # was not trainable before
                names = names | {f"{name}.weight"}
    return model.with_params(params, linears, names)


def report(model: Model) -> dict[str, dict[str, Any]]:
    """Of every pruned matrix: weights, kept, density (kept / weights), pattern, and bytes: dense, resident (with
    mask), stored.
    """
    out = {}
    for name, shape in linear_shapes(model.config).items():
        inside = core(model.linears[name])
        if not isinstance(inside, Masked):
            continue
        weight, bits = model.params[f"{name}.weight"], model.params[f"{name}.mask"]
        # BEGIN SOLUTION a5.6
        kept, size = int(np.unpackbits(bits, count=math.prod(shape), bitorder="little").sum()), math.prod(shape)
        out[name] = {
            "weights": size,
            "kept": kept,
            "density": kept / size,
            "pattern": inside.pattern,
            "dense_bytes": weight.nbytes,
            "resident_bytes": weight.nbytes + bits.nbytes,
            "stored_bytes": kept * weight.itemsize + bits.nbytes,
        }
        # END SOLUTION
    return out


def _without_smallest(weights: Sequence[Array], sparsity: float) -> list[Mask]:
    """Masks that leave out exactly round(sparsity * n) of all n weights: the smallest, lowest index first among
    equals.
    """
    # BEGIN SOLUTION a5.3
    size = np.concatenate([np.abs(weight).ravel() for weight in weights])
    remove = round(sparsity * size.size)
    keep = np.ones(size.size, bool)
    if remove:
        threshold = np.partition(size, remove - 1)[remove - 1]  # the largest magnitude that goes
        keep[size < threshold] = False
        ties = np.flatnonzero(size == threshold)
        keep[ties[: remove - np.count_nonzero(~keep)]] = False
    parts = np.split(keep, np.cumsum([weight.size for weight in weights])[:-1])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]
    # END SOLUTION


def _weights(model: Model, names: str | Iterable[str] | None) -> dict[str, Array]:
    """Module name -> weight to judge by; below adapters it is the base's."""
    out = {}
    for name in select(model.config, names, "names"):
        inside = core(model.linears[name])
        check_applies("prune", inside, name)
        out[name] = inside.dense(model.params, name, model.ops)
        if not np.isfinite(out[name]).all():
            raise UsageError(f"{name}: expected finite weights; this model has diverged or its file is damaged")
    return out


def _with_masks(model: M, weights: dict[str, Array], masks: list[Mask], pattern: str) -> M:
    _refuse_looser(model, weights, masks, "sparsity" if pattern == "unstructured" else "n")
    params, linears, kind = dict(model.params), dict(model.linears), Masked(Dense(), pattern)
    for (name, weight), mask in zip(weights.items(), masks, strict=True):
        bits = _bits(mask)
        params[f"{name}.weight"] = model.ops.mask_apply(weight, bits)
        params[f"{name}.mask"] = bits
        linears[name] = with_core(linears[name], kind)
    return model.with_params(params, linears)


def _refuse_looser(model: Model, weights: dict[str, Array], masks: list[Mask], argument: str) -> None:
    """UsageError for a mask that keeps more of a matrix than the one that is there: it would count zeros as kept."""
    before = report(model)
    for name, mask in zip(weights, masks, strict=True):
        old, kept = before.get(name), int(np.count_nonzero(mask))
        if old is not None and kept > old["kept"]:
            least = math.ceil(1000 * (1 - old["density"])) / 1000
            raise UsageError(
                f"{argument}: the model is pruned further already: of {name} {old['kept']:,} of {old['weights']:,} "
                f"weights are left, this would keep {kept:,}; remove a share of {least:g} or more"
            )


def _bits(mask: Mask) -> NDArray[np.uint8]:
    # BEGIN SOLUTION a5.1
    return np.packbits(mask.ravel(), bitorder="little")
    # END SOLUTION


def check_pattern(pattern: str) -> None:
    """Raise `UsageError` unless a kind may have this pattern."""
    if pattern != "unstructured":
        _parse_pattern(pattern)


def _parse_pattern(pattern: str) -> tuple[int, int]:
    n, _, m = str(pattern).partition(":")
    if not (n.isascii() and n.isdigit() and m.isascii() and m.isdigit() and 0 < int(n) < int(m) <= 256):
        raise UsageError(f"pattern: expected n:m with 0 < n < m, such as 2:4, got {pattern!r}")
    return int(n), int(m)
