r"""Int8: weights as 8-bit codes with one float16 scale per 32, 8.5 bits a weight instead of 32.

    weight[o, i] = scales[o, i // 32] * code[o, i],    code in -127 .. 127

Codes and scales are those of GGML's Q8_0 (minedge/ops/numpy_ops/q8.py has rule and layout), so a weight is off by at
most 1/254 of the largest of its group: next to nothing is lost, where 4 bits lose something. Codes have no gradient:
a matrix in Int8 passes gradients on to its input and is trained through an adapter on top, `LoRA(Int8(), r=8,
lora_alpha=16)`.

In training products are those of a dense matrix, some rows of it made dense at a time. Generating text takes integer
products over activations rounded to int8.

Legend: in/out the matrix's widths, weights (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.packing import pack_linears
from minedge.config import integer
from minedge.errors import UsageError
from minedge.model.linears import LinearKind, Params, Shapes, register
from minedge.model.model import Model
from minedge.ops import Ops

__all__ = ["TILE", "Int8", "int8"]

Array = NDArray[Any]
M = TypeVar("M", bound=Model)

TILE = 1 << 20  # weights that are dense at a time


@register("int8")
@dataclass(frozen=True)
class Int8(LinearKind):
    """`name.qweight` int8 (out, in) and `name.scales` float16 (out, in/32)."""

    by_rows: ClassVar[bool] = True
    group_size: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_size", integer("group_size", self.group_size, 1, "32, the only one of int8"))
        if self.group_size != 32:
            raise UsageError(f"group_size: expected 32, the only one of int8, got {self.group_size!r}")

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        if in_features % self.group_size:
            raise UsageError(f"{name}: width {in_features} is not a multiple of group_size {self.group_size}")
        return {
            f"{name}.qweight": ((out_features, in_features), "int8"),
            f"{name}.scales": ((out_features, in_features // self.group_size), "float16"),
        }

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        """`out = x @ dequantize(weight).T`, tile by tile. The tier's own product, so that its promises hold: in the c
        tier a row's result does not depend on how many rows there are.
        """
        qweight, scales = params[f"{name}.qweight"], params[f"{name}.scales"]
        if int8:  # decoding: integer dot products over activations rounded to int8; never differentiated
            return ops.q8_int8_linear(x, qweight, scales), ()
        tiles = _tiles(*qweight.shape)
        if len(tiles) == 1:
            return ops.linear_forward(x, ops.q8_dequantize(qweight, scales))[0], (qweight, scales)
        out = np.empty((*x.shape[:-1], len(qweight)), x.dtype)
        for rows in tiles:
            out[..., rows] = ops.linear_forward(x, ops.q8_dequantize(qweight[rows], scales[rows]))[0]
        return out, (qweight, scales)

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        """`dx = dout @ dequantize(weight)`, summed over forward's tiles in order."""
        qweight, scales = cache
        dx = np.zeros((*dout.shape[:-1], qweight.shape[1]), dout.dtype)
        for rows in _tiles(*qweight.shape):
            weight = np.ascontiguousarray(ops.q8_dequantize(qweight[rows], scales[rows]).T)
            dx += ops.linear_forward(np.ascontiguousarray(dout[..., rows]), weight)[0]
        return dx, {}

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        return ops.q8_dequantize(params[f"{name}.qweight"], params[f"{name}.scales"])

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        """Dequantizes only the rows asked for: an embedding's other rows stay packed."""
        flat = ids.reshape(-1)
        rows = ops.q8_dequantize(params[f"{name}.qweight"][flat], params[f"{name}.scales"][flat])
        return rows.reshape(*ids.shape, -1)

    def trainable(self, name: str) -> tuple[str, ...]:
        return ()

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        qweight, scales = ops.q8_quantize(np.ascontiguousarray(weight, np.float32))
        if not np.isfinite(scales).all():  # they would spread in use
            raise UsageError(f"{name}: weights that are not finite, or above 8,300,000, have no int8 scale")
        return {f"{name}.qweight": qweight, f"{name}.scales": scales}

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        return {key: params[key] for key in (f"{name}.qweight", f"{name}.scales")}


def int8(model: M, embeddings: bool = False, strict: bool = False) -> M:
    """A new model whose linear weights are 8-bit; arrays that are not quantized are shared with `model`.

    embeddings  also the token embedding, and with it a head tied to it
    strict      refuse a model that has a matrix whose width 32 does not divide; otherwise such a matrix stays as it
                is and one warning lists them

    Adapters stay on top: LoRA(Dense) becomes LoRA(Int8). A pruned matrix becomes Int8 whose pruned weights still read
    as exactly 0. Trainable names stay, less the arrays that are gone. Raises `UsageError` for a matrix that is in 4
    bits already, or has weights that are not finite.
    """
    return pack_linears(model, Int8(), "group_size", embeddings, strict)


def _tiles(rows: int, width: int) -> list[slice]:
    """Slices of rows with about `TILE` weights each."""
    step = max(1, TILE // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
