"""Eight-bit weights times eight-bit activations as loops. The rule stands in `numpy_ops/q8.py`."""

from __future__ import annotations

import numpy as np

from minedge.ops.numba_ops.int4 import int8_quantize
from minedge.ops.numba_ops.runtime import kernel

__all__ = ["q8_int8_linear"]

Array = np.ndarray
BLOCK = 32
ZERO = np.float32(0)


@kernel("i i c2 f2 c2 f2 f2!")
def _product(start, stop, xq, xscales, qweight, scales, out):
    """Blocks add up in order, so the number of rows changes no bit."""
    for o in range(start, stop):
        for n in range(xq.shape[0]):
            total = ZERO
            for block in range(xscales.shape[1]):
                partial = np.int32(0)
                for i in range(block * BLOCK, (block + 1) * BLOCK):
                    partial += np.int32(xq[n, i]) * np.int32(qweight[o, i])
                total += np.float32(partial) * (scales[o, block] * xscales[n, block])
            out[n, o] = total


def q8_int8_linear(x: Array, qweight: Array, scales: Array) -> Array:
    if not isinstance(qweight, np.ndarray) or qweight.dtype != np.int8 or qweight.ndim != 2:
        raise TypeError("qweight: expected an int8 array (out, in)")
    if qweight.shape[1] % BLOCK or scales.shape != (len(qweight), qweight.shape[1] // BLOCK):
        raise ValueError(f"scales: expected one a group of {BLOCK} codes of {qweight.shape}, got {scales.shape}")
    xq, xscales = int8_quantize(x)
    if x.shape[-1] != qweight.shape[1]:
        raise ValueError(f"x: expected (..., {qweight.shape[1]}), got {x.shape}")
    flat, blocks = xq.reshape(-1, x.shape[-1]), x.shape[-1] // BLOCK
    out = np.empty((len(flat), len(qweight)), np.float32)
    wide = np.ascontiguousarray(scales, dtype=np.float32)
    args = (flat, xscales.reshape(-1, blocks), np.ascontiguousarray(qweight), wide, out)
    _product.rows(len(qweight), x.shape[-1] * out.size // 4, *args)
    return out.reshape(*x.shape[:-1], len(qweight))
