r"""NF4: weights as 4-bit codes of sixteen values spaced as a normal distribution is, one scale per block (Dettmers et
al., QLoRA, arXiv:2305.14314, sec. 3).

    weight[o, i] = absmax[o, i // block_size] * CODEBOOK[code[o, i]]

Trained weights are close to normal, so each of the sixteen values is used about equally often, where even steps waste
codes on the rare large weights. With double quantization the scales themselves take 8 bits: 4 + 0.127 bits a weight
for blocks of 64, instead of 4.5. Codebook, rules and layout are in minedge/ops/numpy_ops/nf4.py; codes and scales
equal bitsandbytes' on a CPU.

Codes have no gradient: a matrix in NF4 passes gradients on to its input and is trained through an adapter on top.
`LoRA(NF4(64), r=8, lora_alpha=16)` is QLoRA. Deviations: blocks never go over the end of a row, so a width that the
block size does not divide stays as it is; products are in float32, not bfloat16. There is no product over int8
activations, so text generation from Int4 is faster.

Legend: in/out the matrix's widths, weights (out, in), G = in / block_size blocks a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minedge.compress.packing import pack_linears
from minedge.config import integer
from minedge.errors import UsageError
from minedge.model.linears import LinearKind, Params, Shapes, register
from minedge.model.model import Model
from minedge.ops import Ops

__all__ = ["BLOCK_SIZES", "NF4", "constant_bits", "nf4"]

Array = NDArray[Any]
M = TypeVar("M", bound=Model)

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED = 256  # scales that share a scale


@register("nf4")
@dataclass(frozen=True)
class NF4(LinearKind):
    """`name.qweight` uint8 (out, in/2) and `name.absmax` (out, G): float32, or with double quantization uint8 beside
    `name.nested_absmax` float32 (ceil(out G / 256),) and `name.nested_offset` float32 (1,).
    """

    block_size: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        object.__setattr__(self, "block_size", integer("block_size", self.block_size, 1, sizes))
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block_size: expected {sizes}, got {self.block_size!r}")
        if not isinstance(self.double_quant, bool):
            raise UsageError(f"double_quant: expected True or False, got {self.double_quant!r}")

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        if in_features % self.block_size:
            raise UsageError(f"{name}: width {in_features} is not a multiple of block_size {self.block_size}")
        blocks = in_features // self.block_size
        codes: Shapes = {f"{name}.qweight": ((out_features, in_features // 2), "uint8")}
        if not self.double_quant:
            return {**codes, f"{name}.absmax": ((out_features, blocks), "float32")}
        return {
            **codes,
            f"{name}.absmax": ((out_features, blocks), "uint8"),
            f"{name}.nested_absmax": ((-(-out_features * blocks // NESTED),), "float32"),
            f"{name}.nested_offset": ((1,), "float32"),
        }

    def absmax(self, params: Params, name: str, ops: Ops, rows: Array | None = None) -> Array:
        """The scales in float32, (out, G), or those of some rows of the weight."""
        codes = params[f"{name}.absmax"]
        some = codes if rows is None else codes[rows]
        if not self.double_quant:
            return some
        position = None if rows is None else rows[:, None] * codes.shape[1] + np.arange(codes.shape[1])
        return ops.absmax_dequantize(some, params[f"{name}.nested_absmax"], params[f"{name}.nested_offset"], position)

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        absmax = self.absmax(params, name, ops)
        return ops.nf4_linear_forward(x, params[f"{name}.qweight"], absmax, self.block_size)

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        return ops.nf4_linear_backward(dout, cache), {}

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        return ops.nf4_dequantize(params[f"{name}.qweight"], self.absmax(params, name, ops), self.block_size)

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        """Dequantizes only the rows asked for: an embedding's other rows stay packed."""
        flat = ids.reshape(-1)
        absmax = self.absmax(params, name, ops, flat)
        return ops.nf4_dequantize(params[f"{name}.qweight"][flat], absmax, self.block_size).reshape(*ids.shape, -1)

    def trainable(self, name: str) -> tuple[str, ...]:
        return ()

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        qweight, absmax = ops.nf4_quantize(np.ascontiguousarray(weight, np.float32), self.block_size)
        if not np.isfinite(absmax).all():  # one NaN or infinity spreads over its block, and by the mean over all
            raise UsageError(f"{name}: weights that are not finite have no NF4 scale")
        if not self.double_quant:
            return {f"{name}.qweight": qweight, f"{name}.absmax": absmax}
        codes, nested, offset = ops.absmax_quantize(absmax)
        return {
            f"{name}.qweight": qweight,
            f"{name}.absmax": codes,
            f"{name}.nested_absmax": nested,
            f"{name}.nested_offset": offset,
        }

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        return {key: params[key] for key in self.shapes(name, 1, self.block_size)}

    def exact_storage(self, name: str) -> tuple[str, ...]:
        return tuple(key for key, (_, dtype) in self.shapes(name, 1, self.block_size).items() if dtype == "float32")


def nf4(model: M, block_size: int = 64, double_quant: bool = True, embeddings: bool = False, strict: bool = False) -> M:
    """A new model whose linear weights are in NF4; arrays that are not quantized are shared with `model`.

    block_size    weights along a row that share a scale: 32 to 4096, a power of two; the paper takes 64
    double_quant  scales in 8 bits: with blocks of 64, 4.127 bits a weight instead of 4.5
    embeddings    also the token embedding, and with it a head tied to it
    strict        refuse a model that has a matrix whose width the block size does not divide; otherwise such a matrix
                  stays as it is and one warning lists them

    Adapters stay on top: LoRA(Dense) becomes LoRA(NF4). A pruned matrix becomes NF4 whose pruned weights still read as
    exactly 0. Trainable names stay, less the arrays that are gone. Raises `UsageError` for a matrix that is quantized
    already, or has weights that are not finite.
    """
    return pack_linears(model, NF4(block_size, double_quant), "block_size", embeddings, strict)


def constant_bits(model: Model) -> float:
    """Bits a weight that the scales of a model's NF4 matrices take, from the real buffers; 0.127 in the paper."""
    names = [key.removesuffix(".absmax") for key in model.params if key.endswith(".absmax")]
    parts = ("absmax", "nested_absmax", "nested_offset")
    size = sum(model.params[f"{n}.{part}"].nbytes for n in names for part in parts if f"{n}.{part}" in model.params)
    weights = sum(2 * model.params[f"{n}.qweight"].size for n in names)
    return 8 * size / weights if weights else 0.0
