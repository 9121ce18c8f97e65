"""What a product with one weight matrix needs in memory beside its output, for every linear kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minedge.compress import int4, int8
from minedge.model.linears import LinearKind, core
from minedge.ops.numpy_ops.nf4 import TILE

__all__ = ["F", "Need", "need_of"]

F = 4  # bytes of a float32


@dataclass(frozen=True)
class Need:
    """kept: bytes in its cache beside its input; forward, backward: bytes used during the call."""

    kept: int
    forward: int
    backward: int


def _dense(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    return Need(0, 0, 0)


def _unpacked(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """A frozen matrix whose dense form is made for the product and dropped after it."""
    return Need(0, F * out * width, F * out * width)


def _int4(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """Some rows dense at a time, their part of the result beside it; in backward their part of the gradient too. The c
    tier's products read the codes and make nothing.
    """
    if tier == "c":
        return Need(0, 0, 0)
    part = min(out, max(1, int4.TILE // max(1, width)))
    tile = F * part * width
    if part == out:
        return Need(0, tile, tile)
    return Need(0, tile + F * rows * part, tile + F * rows * (width + part))


def _masked(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """Unpacked too, but trained: in backward the gradient stands twice for a moment, before and after the mask."""
    return Need(0, F * out * width, 2 * F * out * width)


def _lora(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """x A^T is kept; B's product stands beside the base's output, and A's input gradient beside the base's."""
    base = need_of(kind.base, rows, out, width, tier)
    if not kind.active:
        return base
    r = F * rows * kind.r
    return Need(base.kept + r, max(base.forward, F * rows * out), max(base.backward, F * rows * width + 2 * r))


def _dora(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """LoRA's, the product before its rows are scaled, and W and V in dense form while lengths are taken."""
    lora, y = _lora(kind, rows, out, width, tier), F * rows * out
    if not kind.active:
        return lora
    made = F * out * width * (1 if core(kind).kind == "dense" else 2)
    return Need(lora.kept + y, y + max(lora.forward, made), lora.backward + y)


def _nf4(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """The scales, kept in float32 for backward; but in the c tier some rows dense at a time, and their part of the
    result beside it.
    """
    tile = min(out * width, max(TILE, width))
    part = tile // max(1, width)
    absmax = F * (out * width // kind.block_size) if kind.double_quant else 0
    if tier == "c":
        return Need(absmax, absmax, 0)
    more = 0 if part == out else F * rows
    return Need(absmax, absmax + F * tile + more * part, F * tile + more * width)


def _int8(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """Some rows dense at a time, in backward also turned over, and their part of the result beside it."""
    tile = min(out * width, max(int8.TILE, width))
    part = tile // max(1, width)
    return Need(0, F * tile + (0 if part == out else F * rows * part), F * (2 * tile + rows * (width + part)))


def _half(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """In backward, but in the c tier, some rows float32 at a time, and their part of the result beside it."""
    if tier == "c":
        return Need(0, 0, 0)
    tile = min(out * width, max(TILE, width))
    return Need(0, 0, F * (tile + rows * (width + tile // max(1, width))))


def _sparse(kind: Any, rows: int, out: int, width: int, tier: str) -> Need:
    """But in the c tier some rows dense at a time, and their part of the result, or of the gradient, beside them."""
    if tier == "c":
        return Need(0, 0, 0)
    tile = min(out * width, max(TILE, width))
    return Need(0, F * (tile + rows * (tile // max(1, width))), F * (tile + rows * width))


_NEEDS: dict[str, Callable[[Any, int, int, int, str], Need]] = {
    "dense": _dense, "lora": _lora, "dora": _dora, "masked": _masked, "nf4": _nf4,
    "int8": _int8, "int4": _int4, "float16": _half, "bfloat16": _half,
    "sparse": _sparse,
}  # fmt: skip


def need_of(kind: LinearKind, rows: int, out: int, width: int, tier: str) -> Need:
    return _NEEDS.get(kind.kind, _unpacked)(kind, rows, out, width, tier)
