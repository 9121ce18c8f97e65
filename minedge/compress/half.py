r"""Float16 and BFloat16: frozen weights in 16 bits, half the memory of float32, arithmetic in float32.

    weight[o, i] = float32(half[o, i]),    out = x @ weight.T

float16 keeps 11 bits (an error of at most 2^-11 of a weight, or 2^-25) and reaches 65,504; bfloat16 keeps 8 bits
(2^-8) and float32's range. Checkpoints are published in one of the two, so a matrix read from one loses nothing.
Weights of 16 bits are not trained: a step that is smaller than their spacing would be lost. A matrix passes gradients
on to its input and is trained through an adapter on top, `LoRA(Float16(), r=8, lora_alpha=16)`.

`half(model)` rounds each weight to the nearest (minedge/ops/numpy_ops/half.py has the rule). Products read the 16 bits
and never make the whole matrix float32; an embedding makes only the rows that are asked for.

Legend: in/out the matrix's widths, weights (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.packing import pack_linears
from minedge.config import did_you_mean
from minedge.errors import UsageError
from minedge.model.linears import LinearKind, Params, Shapes, register
from minedge.model.model import Model
from minedge.ops import Ops

__all__ = ["BFloat16", "Float16", "half"]

Array = NDArray[Any]
M = TypeVar("M", bound=Model)


@register("float16")
@dataclass(frozen=True)
class Float16(LinearKind):
    """`name.half` float16 (out, in)."""

    stored: ClassVar[str] = "float16"
    by_rows: ClassVar[bool] = True
    width_step: ClassVar[int] = 1  # divides every width: no matrix is left out

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        return {f"{name}.half": ((out_features, in_features), self.stored)}

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        return ops.half_linear_forward(x, params[f"{name}.half"])

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        return ops.half_linear_backward(dout, cache), {}

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        return ops.half_widen(params[f"{name}.half"])

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        """Widens only the rows asked for: an embedding's other rows stay in 16 bits."""
        return ops.half_widen(params[f"{name}.half"][ids])

    def trainable(self, name: str) -> tuple[str, ...]:
        return ()

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        rounded = ops.half_round(np.asarray(weight, np.float32), self.kind)
        if not np.isfinite(ops.half_widen(rounded)).all():  # they would spread in use
            raise UsageError(f"{name}: weights that are not finite, or beyond {self.kind}'s range, cannot be rounded")
        return {f"{name}.half": rounded}


@register("bfloat16")
@dataclass(frozen=True)
class BFloat16(Float16):
    """`name.half` uint16 (out, in): the bits, for NumPy has no bfloat16."""

    stored: ClassVar[str] = "uint16"


_KINDS = {"float16": Float16, "bfloat16": BFloat16}


def half(model: M, dtype: str = "float16", embeddings: bool = True) -> M:
    """A new model whose linear weights stand in 16 bits; all other arrays are shared with `model`.

    dtype       "float16" or "bfloat16"
    embeddings  also the token embedding, and with it a head tied to it

    Adapters stay on top: LoRA(Dense) becomes LoRA(Float16). A pruned matrix becomes Float16 whose pruned weights still
    read as exactly 0. Trainable names stay, less the arrays that are gone. Raises `UsageError` for a matrix that is in
    fewer bits or the other 16 already, or has weights that are not finite or beyond float16's 65,504.
    """
    if dtype not in _KINDS:
        raise UsageError(f"dtype: expected 'float16' or 'bfloat16', got {dtype!r}{did_you_mean(dtype, list(_KINDS))}")
    return pack_linears(model, _KINDS[dtype](), "width_step", embeddings, strict=True)
