"""Planted bugs in attention over a cache (kernels/scalar/attention_decode.c and its products): each changes bits.

They are built and called as those of test_kernel_mutants.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from minedge.ops import c_ops
from minedge.ops.c_ops import native
from minedge.ops.c_ops.attention_decode import Cache
from tests.mutants.test_kernel_mutants import HERE, Mutant, library, pointer, sizes

KERNEL, FILE = "cached_attention", "scalar/attention_decode.c"
PLANTED = {
    "a query's scale forgotten": (FILE, "v_set(q->scales[r]) * v_load(x->k_scales + j)", "v_load(x->k_scales + j)"),
    "the values' scales forgotten": (FILE, "e * v_load(scales + j)", "e"),
    "weights of values in seven bits": (FILE, "seen[r], x->keys, 32767)", "seen[r], x->keys, 127)"),
    "the last of an odd number of values left out": (
        FILE,
        "32, round_up(x->most, 2), &keys)",
        "32, x->most / 2 * 2, &keys)",
    ),
    "a query sees the next token": (
        FILE,
        "seen[r] = smaller(ME_SPAN, before + (x->first + r) / G);",
        "seen[r] = smaller(ME_SPAN, before + (x->first + r) / G + 1);",
    ),
    "the last number of a value not rounded": (
        FILE,
        "round16(narrow[1], x[1], D, Dp, 127)",
        "round16(narrow[1], x[1], D - 1, Dp, 127)",
    ),
    "a later span not scaled down": (FILE, "v_fma(v_load(acc2 + d), factor2,", "v_fma(v_load(acc2 + d), v_set(1),"),
    "the total of one span alone": (
        FILE,
        "*total = *total * factor[0] + total2 * factor2[0];",
        "*total = *total * factor[0] + total2;",
    ),
    "all values a chunk of the first": (FILE, "(const char *)x->v + j * Dp *", "(const char *)x->v + 0 * j * Dp *"),
    "the second key of a pair left out": ("cache_codes.h", "a + r * a_row + k);", "a + r * a_row + k / 4 * 4);"),
}
MUTANTS = [Mutant(name, isa, KERNEL, *change) for name, change in PLANTED.items() for isa in HERE[-1:]]
# queries, keys, key heads, heads a key head, numbers a head
SHAPES = [(1, 1, 1, 1, 16), (1, 37, 2, 3, 20), (5, 300, 1, 4, 32), (30, 70, 2, 1, 7), (2, 600, 1, 1, 64)]


def results(lib: ctypes.CDLL | None, isa: str) -> Iterator[bytes]:
    """Outputs over shapes, types of cache, spans joined or walked, of the library or of the package's own extension."""
    rng, ffi = np.random.default_rng(0), native.ffi
    number = [name for name, _ in c_ops.isas()].index(isa)
    for T, S, KV, G, D in SHAPES:
        q = rng.standard_normal((T, KV * G, D), dtype=np.float32)
        k, v = (
            rng.standard_normal((S, KV, D), dtype=np.float32) * rng.uniform(0.5, 2, (S, KV, 1)).astype(np.float32)
            for _ in "kv"
        )
        for dtype in Cache.DTYPES:
            cache, group = Cache(1, S, KV, D, dtype), ffi.new("struct me_rows[1]")
            for room in (0, 1 << 20):
                out, parts = np.zeros_like(q), np.zeros(room, np.float32)
                if lib:
                    at, rows = (ctypes.c_void_p(int(ffi.cast("intptr_t", p))) for p in (cache.pointer, group))
                    group[0] = (0, S, 0, 0)
                    lib.me_cache_store(0, at, pointer(k), pointer(v), rows, *sizes(1, KV, D))
                    group[0] = (0, T, S - T, 0)
                    given = pointer(out), pointer(parts), *sizes(room), pointer(q), at, rows
                    lib.me_cached_attention(0, *given, *sizes(1, KV * G, KV, D))
                else:
                    group[0] = (0, S, 0, 0)
                    native.lib.me_cache_store(
                        number, cache.pointer, native.floats(k), native.floats(v), group, 1, KV, D
                    )
                    group[0] = (0, T, S - T, 0)
                    given = native.floats(out), native.floats(parts), room, native.floats(q), cache.pointer, group
                    native.lib.me_cached_attention(number, *given, 1, KV * G, KV, D)
                yield out.tobytes()


@pytest.mark.skipif(not HERE, reason="needs the C tier")
def test_the_unchanged_kernel_gives_the_same_bits(tmp_path):
    assert list(results(library(tmp_path, HERE[-1], KERNEL, None), HERE[-1])) == list(results(None, HERE[-1]))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_cache_mutant_is_caught(mutant, tmp_path):
    assert list(results(library(tmp_path, mutant.isa, KERNEL, mutant), mutant.isa)) != list(results(None, mutant.isa))
