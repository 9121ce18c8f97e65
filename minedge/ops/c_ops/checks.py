"""What stands between Python and the kernels, which check nothing: dtype, shape, layout, writability and overlap.

The float inputs of ops that return something new are copied where they are not contiguous or not aligned, so views and
memory-mapped files may be passed. In-place arguments never are: a copy would take the update with it.
A decoded token calls hundreds of ops, so the usual case (everything fits) is a few attribute reads.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["dense", "f32", "f32_inplace", "ids64", "need", "no_overlap", "plain", "same_shape"]

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
READY = 0x101  # NumPy's flag bits C_CONTIGUOUS and ALIGNED


def need(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds. Only for cold paths: the message is built either way."""
    if not condition:
        raise ValueError(message)


def dense(a: Any, dtype: np.dtype, name: str) -> np.ndarray:
    """`a` itself, or a contiguous, aligned copy of it; TypeError unless it is an array of exactly `dtype`."""
    if not isinstance(a, np.ndarray) or a.dtype != dtype:
        raise TypeError(
            f"{name}: expected a {dtype} array, got {getattr(a, 'dtype', type(a).__name__)}; convert it, for instance "
            f"with {name}.astype('{dtype}')"
        )
    return a if a.flags.num & READY == READY else np.array(a, dtype=dtype, order="C", copy=True)


def f32(a: Any, name: str) -> np.ndarray:
    """A float32 array that a kernel may read."""
    if isinstance(a, np.ndarray) and a.dtype is F32 and a.flags.num & READY == READY:
        return a
    return dense(a, F32, name)


def f32_inplace(a: Any, name: str) -> np.ndarray:
    """A float32 array that a kernel may change."""
    return plain(a, F32, name, writable=True)


def plain(a: Any, dtype: np.dtype, name: str, writable: bool = False) -> np.ndarray:
    """`a` as it is: ValueError where it would have to be copied, or is read-only and must not be."""
    if not isinstance(a, np.ndarray) or a.dtype != dtype:
        raise TypeError(
            f"{name}: expected a {dtype} array, got {getattr(a, 'dtype', type(a).__name__)}; convert it, for instance "
            f"with {name}.astype('{dtype}')"
        )
    if a.flags.num & READY != READY:
        raise ValueError(f"{name}: expected a C-contiguous, aligned array; pass np.ascontiguousarray({name})")
    if writable and not a.flags.writeable:
        raise ValueError(f"{name}: is read-only and would be changed; pass a copy (model.trainable() makes one)")
    return a


def ids64(ids: Any, limit: int, name: str, find_bad: Any) -> np.ndarray:
    """Integer ids as contiguous int64, all in 0 .. limit - 1; IndexError names the first that is not."""
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an array of integers, got {getattr(ids, 'dtype', type(ids).__name__)}")
    out = ids if ids.dtype is I64 and ids.flags.num & READY == READY else np.array(ids, dtype=I64, order="C", copy=True)
    bad = find_bad(out, limit)
    if bad >= 0:
        raise IndexError(f"{name}: expected numbers in 0..{limit - 1}, got {ids.reshape(-1)[bad]} at position {bad}")
    return out


def same_shape(a: np.ndarray, b: np.ndarray, a_name: str, b_name: str) -> None:
    """ValueError unless both have one shape."""
    if a.shape != b.shape:
        raise ValueError(f"{a_name}: expected the shape of {b_name}, {b.shape}, got {a.shape}")


def no_overlap(**arrays: np.ndarray) -> None:
    """ValueError where two of the contiguous arrays share bytes."""
    spans = sorted((a.__array_interface__["data"][0], a.nbytes, name) for name, a in arrays.items() if a.nbytes)
    for (start, size, name), (other, _, other_name) in pairwise(spans):
        if start + size > other:
            raise ValueError(f"{name} and {other_name}: share memory, and one of them would be changed; pass copies")
