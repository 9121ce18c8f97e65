"""Int4 weights in tiles of 16 rows: the storage layout of int4.py in another order, which fast kernels read in one
stream.

A vector of 16 rows times 4 columns is multiplied by the same 4 activations in all rows, so that 16 results grow side by
side. Files keep the storage layout; a weight is brought into tiles once, when it is loaded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minedge.ops.numpy_ops.int4 import int4_int8_linear

__all__ = ["int4_tile", "int4_tile_linear"]

Array = NDArray[np.floating]
ROWS, BLOCK, PIECE = 16, 32, 4  # rows of a tile, columns of a block, bytes of a row that lie together


def int4_tile(qweight: NDArray[np.uint8], scales: NDArray[np.float16]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Reorder a weight into tiles: `codes[i, b, p, r, j] = qweight[16 i + r, 16 b + 4 p + j]` and `tile_scales[i, g,
    r] = scales[16 i + r, g]`, zeros in rows beyond the weight's last.

    So a piece p of a block holds, of each of 16 rows, the columns 4 p + j in the low nibbles and 16 + 4 p + j in the
    high ones. qweight (out, in/2), scales (out, groups) -> codes (ceil(out/16), in/32, 4, 16, 4), tile_scales
    (ceil(out/16), groups, 16).
    """
    out, width = qweight.shape
    tiles = -(-out // ROWS)
    missing = tiles * ROWS - out
    rows = np.pad(qweight, ((0, missing), (0, 0))).reshape(tiles, ROWS, width // (BLOCK // 2), 4, PIECE)
    by_row = np.pad(scales, ((0, missing), (0, 0))).reshape(tiles, ROWS, scales.shape[1])
    return np.ascontiguousarray(rows.transpose(0, 2, 3, 1, 4)), np.ascontiguousarray(by_row.transpose(0, 2, 1))


def int4_tile_linear(
    x: Array, codes: NDArray[np.uint8], tile_scales: NDArray[np.float16], out_features: int
) -> NDArray[np.float32]:
    """`int4_int8_linear` of the weight (out_features, in) that `int4_tile` reordered, bit for bit. x (..., in) ->
    (..., out_features).
    """
    blocks, groups = codes.shape[1], tile_scales.shape[1]
    qweight = codes.transpose(0, 3, 1, 2, 4).reshape(-1, blocks * BLOCK // 2)[:out_features]
    scales = tile_scales.transpose(0, 2, 1).reshape(-1, groups)[:out_features]
    return int4_int8_linear(x, qweight, scales, blocks * BLOCK // groups)
