r"""NF4: weights as 4-bit codes of values that a normal distribution makes equally likely, and the 8-bit form of their
block scales (Dettmers et al., QLoRA, arXiv:2305.14314, sec. 3 and App. E). The specification.

    weight[o, i] = absmax[o, i // block_size] * CODEBOOK[code[o, i]]

A block of `block_size` weights along a row is divided by its largest magnitude, so it lies in [-1, 1], and every weight
takes the nearest of 16 values, one of which is exactly 0. Byte j of a row holds code 2j in its high nibble and code
2j + 1 in its low one. Rules and layout are bitsandbytes', codes and scales equal its own on a CPU:

    qweight uint8 (out, in / 2)        absmax float32 (out, in / block_size)

Double quantization: 32 bits for 64 weights are half a bit each, so the absmax are quantized too. Their mean is taken
off, then blocks of 256 of them, counted along the rows and over their ends, are divided by their largest magnitude and
take the nearest of 256 values (`DYNAMIC`): 8/64 + 32/(64 * 256) = 0.127 bits a weight instead of 0.5.

    absmax[k] = nested[k // 256] * DYNAMIC[code[k]] + offset
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "absmax_dequantize",
    "absmax_quantize",
    "nf4_dequantize",
    "nf4_linear_backward",
    "nf4_linear_forward",
    "nf4_quantize",
]

Array = NDArray[np.floating]
F32 = np.float32
NESTED_BLOCK = 256  # absmax that share a scale
TILE = 1 << 20  # weights that are dense at a time
SMALLEST = F32(1e-38)  # stands in for an absmax below it, whose inverse would be infinite

# App. E of the paper: quantiles of N(0, 1), half of them for each sign, normalized to [-1, 1], with a 0.
CODEBOOK = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    F32,
)  # fmt: skip
MIDPOINTS = (CODEBOOK[:-1] + CODEBOOK[1:]) / F32(2)  # a weight on one takes the lower code
# Both values of a byte, as one 8-byte item that a single lookup fetches.
_PAIRS = np.stack([np.repeat(CODEBOOK, 16), np.tile(CODEBOOK, 16)], axis=1).view(np.complex64)[:, 0]


def _dynamic() -> NDArray[np.float32]:
    """The 8-bit values: seven decades up to 1, each half as finely cut as the next, with both signs; 0; and 1.

    In a decade they lie between the points of an even grid over [0.1, 1]. Grid points are rounded to float32 once.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        cells = 2**exponent
        step, i = float(F32(F32(0.9) / F32(cells))), np.arange(cells + 1)
        low, high = float(F32(0.1)) + step * i, 1.0 - step * (cells - i)
        grid = np.where(i < (cells + 1) // 2, low, high).astype(F32)  # counted from the nearer end
        means = (grid[:-1] + grid[1:]) / F32(2) * F32(10.0 ** (exponent - 6))
        values += [*means.tolist(), *(-means).tolist()]
    return np.sort(np.array(values, F32))


DYNAMIC = _dynamic()
STEPS = 65535  # [-1, 1] is cut into so many steps, and a table says which value is nearest to each point
_between = (DYNAMIC[:-1].astype(np.float64) + DYNAMIC[1:]) / 2
NEAREST = np.searchsorted(_between, (np.arange(STEPS + 1) / STEPS * 2 - 1).astype(F32)).astype(np.uint8)


def nf4_quantize(weight: Array, block_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    r"""absmax = max |x| over the block; code = the nearest value's to x * (1 / absmax), in float32.

    weight (out, in), in a multiple of block_size -> qweight (out, in/2), absmax (out, in/block_size). A block of zeros
    has absmax 0 and the code of 0. Error: at most absmax times half the widest gap of the codebook, 0.152, and
    rounding.
    """
    out_features, in_features = weight.shape
    if in_features % block_size or block_size % 2:
        raise ValueError(f"weight: expected (out, in) with in a multiple of {block_size}, got {weight.shape}")
    qweight = np.empty((out_features, in_features // 2), np.uint8)
    absmax = np.empty((out_features, in_features // block_size), F32)
    for rows in _tiles(out_features, in_features):
        x = np.ascontiguousarray(weight[rows], F32).reshape(-1, absmax.shape[1], block_size)
        absmax[rows] = np.abs(x).max(axis=-1)
        with np.errstate(invalid="ignore"):  # an infinite weight makes NaN, which reads as code 15
            scaled = x * (F32(1) / np.maximum(absmax[rows], SMALLEST))[..., None]
        codes = np.searchsorted(MIDPOINTS, scaled.reshape(len(x), -1)).astype(np.uint8)
        qweight[rows] = codes[:, ::2] << 4 | codes[:, 1::2]
    return qweight, absmax


def nf4_dequantize(qweight: NDArray[np.uint8], absmax: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """`weight = absmax * CODEBOOK[code]` in float32. -> (out, in)."""
    if absmax.shape != (len(qweight), 2 * qweight.shape[1] // block_size):
        raise ValueError(f"absmax: expected one a block of {block_size} of {qweight.shape} bytes, got {absmax.shape}")
    weight = _PAIRS[qweight].view(F32)  # (out, in)
    blocks = weight.reshape(*absmax.shape, block_size)
    blocks *= absmax[..., None]
    return weight


def nf4_linear_forward(
    x: Array, qweight: NDArray[np.uint8], absmax: NDArray[np.float32], block_size: int
) -> tuple[Array, tuple]:
    """`out = x @ dequantize(weight).T`, only some rows of the weight dense at a time. x (..., in) -> (..., out)."""
    out = np.empty((*x.shape[:-1], len(qweight)), x.dtype)
    for rows in _tiles(len(qweight), x.shape[-1]):
        weight = nf4_dequantize(qweight[rows], absmax[rows], block_size).astype(x.dtype, copy=False)
        out[..., rows] = x @ weight.T
    return out, (qweight, absmax, block_size)


def nf4_linear_backward(dout: Array, cache: tuple) -> Array:
    """`dx = dout @ dequantize(weight)`, summed over tiles in order; codes have no gradient."""
    qweight, absmax, block_size = cache
    dx = np.zeros((*dout.shape[:-1], 2 * qweight.shape[1]), dout.dtype)
    for rows in _tiles(len(qweight), dx.shape[-1]):
        dx += dout[..., rows] @ nf4_dequantize(qweight[rows], absmax[rows], block_size).astype(dout.dtype, copy=False)
    return dx


def absmax_quantize(
    absmax: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    r"""offset = mean(absmax); nested = max |absmax - offset| over each 256; code = the value nearest to
    (absmax - offset) * (1 / nested), itself first rounded to one of 65,536 points of [-1, 1].

    absmax of any shape -> codes of that shape, nested (ceil(n / 256),), offset (1,). Where all of a block equal the
    mean, nested is 0 and the codes are 0. The mean is summed in float64; bitsandbytes' sum in float32 may end one unit
    in the last place away.
    """
    offset = np.mean(absmax, dtype=np.float64, keepdims=True).astype(F32).reshape(1)
    n = absmax.size
    centred = np.zeros(-(-n // NESTED_BLOCK) * NESTED_BLOCK, F32)  # the last block filled up with zeros
    centred[:n] = absmax.reshape(-1) - offset
    blocks = centred.reshape(-1, NESTED_BLOCK)
    nested = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = np.clip(blocks * (F32(1) / nested)[:, None], F32(-1), F32(1))
        point = (scaled + F32(1)) * F32(0.5) * F32(STEPS) + F32(0.5)
    codes = np.where(nested[:, None] > 0, NEAREST[np.nan_to_num(point).astype(np.int64)], 0).astype(np.uint8)
    return codes.reshape(-1)[:n].reshape(absmax.shape), nested, offset


def absmax_dequantize(
    codes: NDArray[np.uint8],
    nested: NDArray[np.float32],
    offset: NDArray[np.float32],
    position: NDArray[np.integer] | None = None,
) -> NDArray[np.float32]:
    """`nested * DYNAMIC[code] + offset` in float32. `position` is where each code stands in the whole array, for a part
    of one; None: the codes are all there are.
    """
    if position is None:
        position = np.arange(codes.size).reshape(codes.shape)
    return DYNAMIC[codes] * nested[position // NESTED_BLOCK] + offset


def _tiles(rows: int, width: int) -> list[slice]:
    """Slices of rows with about `TILE` weights each."""
    step: Any = max(1, TILE // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
