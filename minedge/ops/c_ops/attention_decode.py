"""Attention over a cache in C, as the engine runs it; numpy_ops/attention_decode.py says what it computes.

The engine keeps its cache as the kernel wants it. Here keys and values come as they are computed, (B, S, KV, D), and
are laid out for each call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minedge.ops.c_ops.attention import _sizes
from minedge.ops.c_ops.checks import dense, f32
from minedge.ops.c_ops.native import ffi, floats, lib

__all__ = ["OPS", "Cache"]

Array = np.ndarray
F32 = np.dtype(np.float32)
SPAN = 256  # keys, as in internal.h
PARTS = 1 << 20  # floats


class Cache:
    """Keys and values of one layer in the kernels' layout (minedge_kernels.h): `slots` sequences of up to `room`
    tokens. `pointer` is the struct me_cache; the arrays live as long as this object.
    """

    DTYPES = ("float32", "float16", "int8")

    def __init__(self, slots: int, room: int, n_kv_head: int, head_dim: int, dtype: str = "float32"):
        room, padded = -(-room // 16) * 16, -(-head_dim // 16) * 16
        self.k = np.zeros((slots, n_kv_head, room // 16, head_dim, 16), dtype)
        self.v = np.zeros((slots, n_kv_head, room, padded), dtype)
        scales = (slots, n_kv_head, room) if dtype == "int8" else (0,)
        self.k_scales, self.v_scales = np.zeros(scales, F32), np.zeros(scales, F32)
        self.arrays = (self.k, self.v, self.k_scales, self.v_scales)
        self._alive = [ffi.from_buffer(a) for a in self.arrays]
        k, v, k_scales, v_scales = self._alive
        self.pointer: Any = ffi.new("struct me_cache *")
        self.pointer[0] = (
            k, v, ffi.cast("float *", k_scales), ffi.cast("float *", v_scales), self.DTYPES.index(dtype), room
        )  # fmt: skip

    def rows(self, slot: int, length: int) -> dict[str, Array]:
        """What is kept of the first `length` tokens of a sequence: k and v (length, KV, D) in the cache's dtype, with
        int8 also k_scales and v_scales (length, KV).
        """
        k, v = self.k[slot], self.v[slot]  # (KV, panels, D, 16) and (KV, room, padded D)
        out = {
            "k": np.ascontiguousarray(k.transpose(1, 3, 0, 2).reshape(-1, *k.shape[0:3:2])[:length]),
            "v": np.ascontiguousarray(v.transpose(1, 0, 2)[:length, :, : k.shape[2]]),
        }
        if self.k_scales.size:
            out["k_scales"] = np.ascontiguousarray(self.k_scales[slot].T[:length])
            out["v_scales"] = np.ascontiguousarray(self.v_scales[slot].T[:length])
        return out

    def fill(self, slot: int, rows: dict[str, Array]) -> None:
        """Put `rows` back as the first tokens of a sequence."""
        k, v, n = rows["k"], rows["v"], len(rows["k"])
        padded = np.zeros((-(-n // 16) * 16, *k.shape[1:]), k.dtype)
        padded[:n] = k
        panels = padded.reshape(-1, 16, *k.shape[1:]).transpose(2, 0, 3, 1)  # (KV, panels, D, 16)
        self.k[slot, :, : panels.shape[1]] = panels
        self.v[slot, :, :n, : v.shape[2]] = v.transpose(1, 0, 2)
        if self.k_scales.size:
            self.k_scales[slot, :, :n], self.v_scales[slot, :, :n] = rows["k_scales"].T, rows["v_scales"].T

    def unpacked(self, slot: int, length: int) -> tuple[Array, Array]:
        """Keys and values of the first `length` tokens of a sequence as float32 (length, KV, D)."""
        rows = self.rows(slot, length)
        k, v = rows["k"].astype(F32), rows["v"].astype(F32)
        if self.k_scales.size:
            k *= rows["k_scales"][..., None]
            v *= rows["v_scales"][..., None]
        return k, v

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)


def cached_attention(isa: int, q: Array, k: Array, v: Array) -> Array:
    q = f32(q, "q")
    for name, a in (("k", k), ("v", v)):
        if not isinstance(a, np.ndarray) or a.dtype != F32 or a.ndim != 4:
            f32(a, name)
            raise ValueError(f"{name}: expected (B, S, KV, D), got {a.shape}")
    B, T, S, H, KV, D = _sizes(q, k, v)
    out = np.empty(q.shape, F32)
    if B == 0:
        return out
    cache = Cache(1, S, KV, D)
    size = T * H * -(-S // SPAN) * (-(-D // 16) * 16 + 2)  # partial results, one a span
    parts = np.empty(size if size <= PARTS else 0, F32)
    group = ffi.new("struct me_rows[1]")
    for b in range(B):
        group[0] = (0, S, 0, 0)
        lib.me_cache_store(
            isa, cache.pointer, floats(dense(k[b], F32, "k")), floats(dense(v[b], F32, "v")), group, 1, KV, D
        )
        group[0] = (0, T, S - T, 0)
        lib.me_cached_attention(
            isa, floats(out[b]), floats(parts), parts.size, floats(q[b]), cache.pointer, group, 1, H, KV, D
        )
    return out


OPS = {"cached_attention": cached_attention}
