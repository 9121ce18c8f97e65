r"""Int4: weights as 4-bit codes with one float16 scale per group, 4.5 bits a weight (group size 32) instead of 32.

    weight[o, i] = scales[o, i // group_size] * (code[o, i] - 8),    code in 0 .. 15

Codes and scales are those of GGML's Q4_0 (see minedge/ops/numpy_ops/int4.py for rule and layout), so the rounding of
a group is finest at its largest weight and costs at most |scale|/2 a weight, |scale| on the one side that clips.
Codes have no gradient: a quantized matrix passes gradients on to its input and is trained through an adapter on top
(`LoRA(Int4(32))`, arXiv:2305.14314).

`int4(model)` rounds each weight to the nearest code. "max" takes a group's scale from its largest weight; "mse" tries
scales around that one and keeps the one with the smallest squared error, in the same format.

Legend: in/out the matrix's widths, weights (out, in), G = in / group_size groups a row.
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

__all__ = ["GROUP_SIZES", "Int4", "int4", "mse_quantize"]

Array = NDArray[Any]
M = TypeVar("M", bound=Model)

GROUP_SIZES = (32, 64, 128)
# Scales tried by "mse", as multiples of the signed-maximum rule's. Below 1 the largest weights clip and all others
# round finer; 8/7 is where the side that clips just fits.
MULTIPLIERS = tuple(np.arange(0.72, 1.16, 0.02).round(2).tolist())
CHUNK = 1 << 20  # weights searched at a time
TILE = 1 << 20  # weights dense at a time in a float product, c apart: a head of 65 million would take 262 MB


@register("int4")
@dataclass(frozen=True)
class Int4(LinearKind):
    """`name.qweight` uint8 (out, in/2) and `name.scales` float16 (out, in/group_size)."""

    by_rows: ClassVar[bool] = True
    group_size: int = 32

    def __post_init__(self) -> None:
        sizes = ", ".join(map(str, GROUP_SIZES))
        object.__setattr__(self, "group_size", integer("group_size", self.group_size, 1, sizes))
        if self.group_size not in GROUP_SIZES:
            raise UsageError(f"group_size: expected {sizes}, got {self.group_size!r}")

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        if in_features % self.group_size:
            raise UsageError(f"{name}: width {in_features} is not a multiple of group_size {self.group_size}")
        return {
            f"{name}.qweight": ((out_features, in_features // 2), "uint8"),
            f"{name}.scales": ((out_features, in_features // self.group_size), "float16"),
        }

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        qweight, scales = params[f"{name}.qweight"], params[f"{name}.scales"]
        if int8:  # decoding: integer dot products over activations rounded to int8; never differentiated
            return ops.int4_int8_linear(x, qweight, scales, self.group_size), ()
        tiles = _tiles(*qweight.shape)
        if ops.name == "c" or len(tiles) == 1:  # c reads the codes as it multiplies, nothing stands dense
            return ops.int4_linear_forward(x, qweight, scales, self.group_size)
        out = np.empty((*x.shape[:-1], len(qweight)), x.dtype)
        for rows in tiles:
            out[..., rows] = ops.int4_linear_forward(x, qweight[rows], scales[rows], self.group_size)[0]
        return out, (qweight, scales, self.group_size)

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        qweight, scales, group_size = cache
        tiles = _tiles(*qweight.shape)
        if ops.name == "c" or len(tiles) == 1:
            return ops.int4_linear_backward(dout, cache), {}
        dx = np.zeros((*dout.shape[:-1], 2 * qweight.shape[1]), dout.dtype)
        for rows in tiles:  # the part of each tile is added in order
            part = np.ascontiguousarray(dout[..., rows])
            dx += ops.int4_linear_backward(part, (qweight[rows], scales[rows], group_size))
        return dx, {}

    def dense(self, params: Params, name: str, ops: Ops) -> Array:
        return ops.int4_dequantize(params[f"{name}.qweight"], params[f"{name}.scales"], self.group_size)

    def rows(self, ids: Array, params: Params, name: str, ops: Ops) -> Array:
        """Dequantizes only the rows asked for: an embedding's other rows stay packed."""
        qweight, scales, flat = params[f"{name}.qweight"], params[f"{name}.scales"], ids.reshape(-1)
        rows = ops.int4_dequantize(qweight[flat], scales[flat], self.group_size)
        return rows.reshape(*ids.shape, -1)

    def trainable(self, name: str) -> tuple[str, ...]:
        return ()

    def pack(self, name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        qweight, scales = ops.int4_quantize(np.ascontiguousarray(weight, np.float32), self.group_size)
        return self._named(name, qweight, scales)

    def to_storage(self, params: Params, name: str, ops: Ops) -> dict[str, Array]:
        return {key: params[key] for key in (f"{name}.qweight", f"{name}.scales")}

    @staticmethod
    def _named(name: str, qweight: Array, scales: Array) -> dict[str, Array]:
        # A NaN anywhere in a group makes its scale NaN, a weight above 8 * 65504 makes it infinite: both would spread
        # in use.
        if not np.isfinite(scales).all():
            raise UsageError(f"{name}: weights that are not finite, or above 524,000, have no int4 scale")
        return {f"{name}.qweight": qweight, f"{name}.scales": scales}


def int4(model: M, group_size: int = 32, embeddings: bool = False, scale: str = "max", strict: bool = False) -> M:
    """A new model whose linear weights are 4-bit; arrays that are not quantized are shared with `model`.

    group_size  32, 64 or 128 weights along a row share a scale: 4.5, 4.25, 4.125 bits a weight
    embeddings  also the token embedding, and with it a head tied to it (an untied head is a linear weight like any
                other)
    scale       "max": GGML's rule; "mse": the scale with the smallest squared error, same format, slower to find
    strict      refuse a model that has a matrix whose width the group does not divide; otherwise such a matrix stays
                as it is and one warning lists them

    Adapters stay on top: LoRA(Dense) becomes LoRA(Int4). A pruned matrix becomes Int4 whose pruned weights still read
    as exactly 0. Trainable names stay, less the arrays that are gone: norms, biases and adapters can still be
    trained, codes and scales cannot. Raises `UsageError` for a matrix that is int4 already with another group size,
    a model that is so throughout, or weights that are not finite.
    """
    kind = Int4(group_size)
    if scale not in ("max", "mse"):
        raise UsageError(f'scale: expected "max" or "mse", got {scale!r}')

    def pack(name: str, weight: Array, ops: Ops) -> dict[str, Array]:
        return (
            kind._named(name, *mse_quantize(weight, group_size, ops))
            if scale == "mse"
            else kind.pack(name, weight, ops)
        )

    return pack_linears(model, kind, "group_size", embeddings, strict, pack)


def mse_quantize(weight: Array, group_size: int, ops: Ops) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    r"""The codes and the scale with the smallest sum of (w - scale * (code - 8))^2 per group, among `MULTIPLIERS` of
    the usual scale.

    The signed-maximum rule's own result is the first candidate, so no group gets worse by it. Codes are rounded
    against the float16 scale that will be stored. weight (out, in) -> qweight (out, in/2), scales (out,
    in/group_size).
    """
    out_features, in_features = weight.shape
    step = max(1, CHUNK // in_features)
    parts = [_mse_rows(weight[row : row + step], group_size, ops) for row in range(0, out_features, step)]
    return np.concatenate([q for q, _ in parts]), np.concatenate([s for _, s in parts])


def _mse_rows(weight: Array, group_size: int, ops: Ops) -> tuple[Array, Array]:
    weight = np.ascontiguousarray(weight, np.float32)
    qweight, scales = ops.int4_quantize(weight, group_size)
    x = weight.reshape(len(weight), -1, group_size)  # (rows, G, group_size)
    first = ops.int4_dequantize(qweight, scales, group_size).reshape(x.shape)
    best_error = np.square(x - first, dtype=np.float64).sum(-1)  # (rows, G)
    best_scale, best_codes = scales.copy(), _unpack(qweight).reshape(x.shape)
    for multiplier in MULTIPLIERS:
        with np.errstate(over="ignore"):  # an infinite scale makes an infinite error and loses
            candidate = (scales.astype(np.float32) * np.float32(multiplier)).astype(np.float16)
        # BEGIN SOLUTION a6.6
        d = candidate.astype(np.float32)[..., None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            codes = np.clip(np.nan_to_num(np.trunc(x / d + np.float32(8.5)), nan=8.0), 0, 15)
            error = np.square(x - d * (codes - 8), dtype=np.float64).sum(-1)
        better = error < best_error  # False for NaN
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, candidate, best_scale)
        best_codes = np.where(better[..., None], codes.astype(np.uint8), best_codes)
        # END SOLUTION
    return _pack(best_codes.reshape(weight.shape)), best_scale


def _tiles(rows: int, packed_width: int) -> list[slice]:
    """Slices of rows with about `TILE` weights each."""
    step = max(1, TILE // max(1, 2 * packed_width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (out, in) -> bytes (out, in/2): of 32 columns, byte j holds code j low and code j + 16 high."""
    # BEGIN SOLUTION a6.2
    blocks = codes.reshape(len(codes), -1, 32)
    packed: Any = blocks[..., :16] | (blocks[..., 16:] << 4)
    return packed.reshape(len(codes), -1)
    # END SOLUTION


def _unpack(qweight: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Inverse of `_pack`."""
    # BEGIN SOLUTION a6.2
    blocks = qweight.reshape(len(qweight), -1, 16)
    return np.concatenate([blocks & 0x0F, blocks >> 4], axis=-1).reshape(len(qweight), -1)
    # END SOLUTION
