r"""Element types of GGUF tensors: block sizes, and how a block's bytes become float32.

A block is `block` weights in `nbytes` bytes. Every `dequantize` takes uint8 (n, nbytes) and gives float32 (n, block),
in float32 arithmetic, product first and sum second, as GGML's own code does it. d is a block's scale, m its minimum,
q a code.

    Q4_0  d * (q - 8)      Q4_1  d * q + m      4 bits: byte j holds code j low and code j + 16 high
    Q5_0  d * (q - 16)     Q5_1  d * q + m      the fifth bits stand in 32 bits of their own
    Q8_0  d * q                                 signed bytes
    Q4_K, Q5_K  (d * sc) * q - (dmin * mn)      8 sub-blocks of 32, their scales sc and minima mn in 6 bits each
    Q6_K        (d * sc) * (q - 32)             16 sub-blocks of 16, sc a signed byte
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TYPES", "BlockType", "type_named"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """A GGUF element type. `dequantize` is None where minedge cannot read it; `packed` where its codes are widened."""

    name: str
    block: int
    nbytes: int
    dequantize: Callable[[Bytes], Floats] | None = None
    packed: bool = True


def _as(kind: str, part: Bytes) -> Floats:
    """Bytes (n, k) read as numbers of a NumPy type, as float32 (n, k / itemsize)."""
    wide: Any = np.ascontiguousarray(part).view(kind).astype(np.float32)
    return wide


def _nibbles(part: Bytes) -> Bytes:
    """(n, k) -> (n, 2, k): low nibbles, then high ones."""
    return np.stack([part & 0x0F, part >> 4], axis=1)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 2:]).reshape(len(blocks), 32)
    return _as("<f2", blocks[:, :2]) * (codes.astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    codes = _nibbles(blocks[:, 4:]).reshape(len(blocks), 32)
    return _as("<f2", blocks[:, :2]) * codes + _as("<f2", blocks[:, 2:4])


def _five_bits(low: Bytes, high: Bytes) -> Floats:
    """16 bytes of nibbles and 4 bytes of fifth bits, bit i for code i -> (n, 32)."""
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    return (_nibbles(low).reshape(len(low), 32) | (fifth << 4)).astype(np.float32)


def _q5_0(blocks: Bytes) -> Floats:
    return _as("<f2", blocks[:, :2]) * (_five_bits(blocks[:, 6:], blocks[:, 2:6]) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    codes = _five_bits(blocks[:, 8:], blocks[:, 4:8])
    return _as("<f2", blocks[:, :2]) * codes + _as("<f2", blocks[:, 2:4])


def _q8_0(blocks: Bytes) -> Floats:
    return _as("<f2", blocks[:, :2]) * _as("i1", blocks[:, 2:])


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """d * sc and dmin * mn, both (n, 8, 1), from a K block's first 16 bytes.

    Of the 12 packed bytes a, b, c of four each: sub-blocks 0-3 have the low 6 bits of a and b; sub-blocks 4-7 have the
    nibbles of c, low for sc and high for mn, and above them the top two bits of a and b.
    """
    d, dmin = _as("<f2", blocks[:, :2]), _as("<f2", blocks[:, 2:4])
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    sc = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    mn = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)
    return (d * sc)[..., None], (dmin * mn)[..., None]


def _q4_k(blocks: Bytes) -> Floats:
    scale, minimum = _scales_and_minima(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(len(blocks), 8, 32)
    return (scale * codes - minimum).reshape(len(blocks), 256)


def _q5_k(blocks: Bytes) -> Floats:
    scale, minimum = _scales_and_minima(blocks)
    # Bit s of the 32 bytes of high bits belongs to sub-block s.
    fifth = np.unpackbits(blocks[:, None, 16:48], axis=1, bitorder="little")  # (n, 8, 32)
    codes = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(len(blocks), 8, 32) | (fifth << 4)
    return (scale * codes - minimum).reshape(len(blocks), 256)


def _q6_k(blocks: Bytes) -> Floats:
    n = len(blocks)
    low = blocks[:, :128].reshape(-1, 64)  # of each half of the block
    high = blocks[:, 128:192].reshape(-1, 1, 32)
    two_bits = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3  # (2n, 4, 32)
    codes = _nibbles(low).reshape(-1, 4, 32) | (two_bits << 4)
    scale = (_as("<f2", blocks[:, 208:]) * _as("i1", blocks[:, 192:208]))[..., None]  # (n, 16, 1)
    return (scale * (codes.reshape(n, 16, 16).astype(np.float32) - 32)).reshape(n, 256)


# Type code -> type. Those without a function can be listed, and their sizes checked, but not read.
TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, 4, lambda blocks: _as("<f4", blocks), packed=False),
    1: BlockType("F16", 1, 2, lambda blocks: _as("<f2", blocks), packed=False),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    9: BlockType("Q8_1", 32, 40),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1, packed=False),
    25: BlockType("I16", 1, 2, packed=False),
    26: BlockType("I32", 1, 4, packed=False),
    27: BlockType("I64", 1, 8, packed=False),
    28: BlockType("F64", 1, 8, packed=False),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2, _bf16, packed=False),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}


def type_named(name: str) -> BlockType:
    """The type of this name."""
    return next(kind for kind in TYPES.values() if kind.name == name)
