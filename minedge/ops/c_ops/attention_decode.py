"""Attention over a cache in C, as the engine runs it; numpy_ops/attention_decode.py says what it computes.

The engine keeps its cache as the kernel wants it. Here keys and values come as they are computed, (B, S, KV, D), and
are laid out for each call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minedge.ops.c_ops.attention import _sizes
from minedge.ops.c_ops.checks import dense, f32, need
from minedge.ops.c_ops.native import ffi, floats, lib
from minedge.ops.memory import huge_zeros

__all__ = ["OPS", "Cache"]

Array = np.ndarray
F32, I8 = np.dtype(np.float32), np.dtype(np.int8)
SPAN = 256  # keys, as in internal.h
PARTS = 1 << 20  # floats


class Cache:
    """Keys and values of one layer in the kernels' layout (minedge_kernels.h): `slots` sequences of up to `room`
    tokens. `pointer` is the struct me_cache; the arrays live as long as this object.
    """

    DTYPES = ("float32", "float16", "int8")

    def __init__(self, slots: int, room: int, n_kv_head: int, head_dim: int, dtype: str = "float32"):
        arrays = [np.zeros((slots, *shape), kind) for shape, kind in _shapes(room, n_kv_head, head_dim, dtype)]
        self._bind(arrays, dtype, head_dim)

    @classmethod
    def layers(cls, n: int, slots: int, room: int, n_kv_head: int, head_dim: int, dtype: str) -> list[Cache]:
        """Caches of n layers in one piece of memory, on huge pages where the system has them.

        It lies block after block, in a block all layers, so a sequence touches it from front to back as it grows.
        """
        parts = _shapes(room, n_kv_head, head_dim, dtype)
        sizes = [-(-int(np.prod(shape[1:])) * kind.itemsize // 64) * 64 for shape, kind in parts]
        blocks, each = parts[0][0][0], sum(sizes)
        space, out = huge_zeros(slots * blocks * n * each), []
        for layer in range(n):
            arrays, start = [], layer * each
            for (shape, kind), size in zip(parts, sizes, strict=True):
                inner = np.empty(shape[1:], kind).strides
                strides = (blocks * n * each, n * each, *inner)
                arrays.append(np.ndarray((slots, *shape), kind, space, start, strides))
                start += size
            cache = cls.__new__(cls)
            cache._bind(arrays, dtype, head_dim)
            out.append(cache)
        return out

    def _bind(self, arrays: list[Array], dtype: str, head_dim: int) -> None:
        self.k, self.v, self.k_scales, self.v_scales = self.arrays = arrays
        self.head_dim, self.dtype = head_dim, dtype
        k, v, k_scales, v_scales = (ffi.cast("float *", a.__array_interface__["data"][0]) for a in arrays)
        rows = self.v.shape[3] * (2 if dtype == "int8" else 1)
        strides = [s for a in (self.k, self.v, self.k_scales) for s in a.strides[:2]]
        self.pointer: Any = ffi.new("struct me_cache *")
        self.pointer[0] = (
            k, v, k_scales, v_scales, self.DTYPES.index(dtype), rows, *strides
        )  # fmt: skip

    def rows(self, slot: int, length: int) -> dict[str, Array]:
        """What is kept of the first `length` tokens of a sequence: k and v (length, KV, D) in the cache's dtype, with
        int8 also k_scales and v_scales (length, KV).
        """
        k, v = self._by_token(slot)
        out = {name: _merged(a, self.head_dim)[:length] for name, a in (("k", k), ("v", v))}
        if self.k_scales.size:
            for name in ("k_scales", "v_scales"):
                scales = getattr(self, name)[slot].transpose(0, 2, 1)  # (blocks, rows, KV)
                out[name] = np.ascontiguousarray(scales.reshape(-1, scales.shape[2])[:length])
        return out

    def fill(self, slot: int, rows: dict[str, Array]) -> None:
        """Put `rows` back as the first tokens of a sequence."""
        for name, a in zip(("k", "v"), self._by_token(slot), strict=True):
            new = np.zeros((a.shape[0] * a.shape[1] * a.shape[2], *a.shape[3:]), a.dtype)
            wide = new.reshape(len(new), a.shape[3], -1)
            wide[: len(rows[name]), :, : self.head_dim] = rows[name]
            a[...] = new.reshape(a.shape)
        if self.k_scales.size:
            for name in ("k_scales", "v_scales"):
                scales = getattr(self, name)[slot].transpose(0, 2, 1)
                new = np.zeros((scales.shape[0] * scales.shape[1], scales.shape[2]), F32)
                new[: len(rows[name])] = rows[name]
                scales[...] = new.reshape(scales.shape)

    def _by_token(self, slot: int) -> tuple[Array, Array]:
        """Views of k and v whose first three axes count tokens, then (KV, width) or (KV, width / 2, 2)."""
        k, v = self.k[slot], self.v[slot]
        if self.dtype == "int8":  # k (blocks, KV, panels, D / 2, 16, 2), v (blocks, KV, rows / 2, padded D, 2)
            return k.transpose(0, 2, 4, 1, 3, 5), v.transpose(0, 2, 4, 1, 3)
        return k.transpose(0, 2, 4, 1, 3), v[:, :, :, None].transpose(0, 2, 3, 1, 4)

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


def _shapes(room: int, KV: int, D: int, dtype: str) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Shapes and dtypes of k, v, k_scales and v_scales of one sequence: blocks first."""
    padded, kind = -(-D // 16) * 16, np.dtype(dtype)
    blocks, rows = max(1, -(-room // SPAN)), min(SPAN, -(-room // 16) * 16)
    k: tuple[int, ...] = (blocks, KV, rows // 16, D, 16)
    v: tuple[int, ...] = (blocks, KV, rows, padded)
    scales = (blocks, KV, 0)
    if kind == I8:
        k, v = (blocks, KV, rows // 16, -(-D // 2), 16, 2), (blocks, KV, rows // 2, padded, 2)
        scales = (blocks, KV, rows)
    return [(k, kind), (v, kind), (scales, F32), (scales, F32)]


def _merged(a: Array, head_dim: int) -> Array:
    """(tokens in three axes, KV, width in one or two) as a contiguous (tokens, KV, D)."""
    out = a.reshape(a.shape[0] * a.shape[1] * a.shape[2], a.shape[3], -1)
    return np.ascontiguousarray(out[:, :, :head_dim])


def cached_attention_int8(isa: int, q: Array, k: Array, k_scales: Array, v: Array, v_scales: Array) -> Array:
    q, k, v = f32(q, "q"), dense(k, I8, "k"), dense(v, I8, "v")
    B, _, S, _, KV, D = _sizes(q, k, v)
    k_scales, v_scales = f32(k_scales, "k_scales"), f32(v_scales, "v_scales")
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        need(scales.shape == k.shape[:3], f"{name}: expected shape {k.shape[:3]}, got {scales.shape}")
    out = np.empty(q.shape, F32)
    if B == 0:
        return out
    cache = Cache(1, S, KV, D, "int8")
    for b in range(B):
        cache.fill(0, {"k": k[b], "v": v[b], "k_scales": k_scales[b], "v_scales": v_scales[b]})
        _attend(isa, out[b], q[b], cache, S)
    return out


def cached_attention(isa: int, q: Array, k: Array, v: Array) -> Array:
    q = f32(q, "q")
    for name, a in (("k", k), ("v", v)):
        if not isinstance(a, np.ndarray) or a.dtype != F32 or a.ndim != 4:
            f32(a, name)
            raise ValueError(f"{name}: expected (B, S, KV, D), got {a.shape}")
    B, _, S, _, KV, D = _sizes(q, k, v)
    out = np.empty(q.shape, F32)
    if B == 0:
        return out
    cache, group = Cache(1, S, KV, D), ffi.new("struct me_rows[1]")
    for b in range(B):
        group[0] = (0, S, 0, 0)
        lib.me_cache_store(
            isa, cache.pointer, floats(dense(k[b], F32, "k")), floats(dense(v[b], F32, "v")), group, 1, KV, D
        )
        _attend(isa, out[b], q[b], cache, S)
    return out


def _attend(isa: int, out: Array, q: Array, cache: Cache, S: int) -> None:
    """out (T, H, D) = attention of the last T of S tokens, q, over the cache's first sequence."""
    T, H, D = q.shape
    size = T * H * -(-S // SPAN) * (-(-D // 16) * 16 + 2)  # partial results, one a span
    parts = np.empty(size if size <= PARTS else 0, F32)
    group = ffi.new("struct me_rows[1]")
    group[0] = (0, T, S - T, 0)
    KV = cache.v.shape[2]
    lib.me_cached_attention(isa, floats(out), floats(parts), parts.size, floats(q), cache.pointer, group, 1, H, KV, D)


OPS = {"cached_attention": cached_attention, "cached_attention_int8": cached_attention_int8}
