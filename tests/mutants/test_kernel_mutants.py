"""Planted bugs in the C kernels: each changes the bits of a result somewhere in the shapes that tests/kernels sweeps.

A mutant rebuilds one kernel file, with the text replaced, into a library of its own; kernel_driver.c calls it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from minedge.ops import c_ops

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
COMPILER = os.environ.get("CC") or shutil.which("cc") or "gcc"
X_ROWS = {"avx2": 8, "avx512": 16, "neon": 8}
FILES = {
    "int4_int8_linear": "int_product.c", "q8_int8_linear": "int_product.c", "int8_quantize": "int4.c", "gemm": "gemm.c",
    "int4_quantize": "int4.c",
    "sparse_linear": "sparse.c", "cached_attention": "attention_decode.c",
}  # fmt: skip


class Mutant(NamedTuple):
    """`old` -> `new` in kernels/`file`, seen through `kernel` of instruction set `isa`."""

    name: str
    isa: str
    kernel: str
    file: str
    old: str
    new: str


SPARSE, GEMM, NOISE = "scalar/sparse.c", "scalar/gemm.c", "avx2/noise.c"
FEW, SUMS, ROWS = "avx512/int_few.h", "avx512/int_sums.h", "avx2/int_sums.h"
TILES, MANY = "int4_tiles.h", "int_product.h"
MUTANTS = [
    Mutant("high nibbles a bit too far", "avx512", "int4_int8_linear", FEW, "epi16(v, 4)", "epi16(v, 3)"),
    Mutant("columns 16 to 31 times columns 0 to 15", "avx512", "int4_int8_linear", FEW, "x + 16 + 4 * p", "x + 4 * p"),
    Mutant("8 not taken off", "avx512", "int4_int8_linear", FEW, "set1_epi32(-a->xsums[at])", "setzero_si512()"),
    Mutant("every block a group", "avx512", "int4_int8_linear", FEW, "stop = b + group", "stop = b + 1"),
    Mutant("another token's scale", "avx512", "int4_int8_linear", FEW, "ps(a->xscales[at])", "ps(a->xscales[b])"),
    Mutant("sixteen sums, the last eight twice", "avx2", "int4_int8_linear", ROWS, "64 * p + 32 * h", "64 * p + 32"),
    Mutant(
        "a tile's rows changed places",
        "avx2",
        "int4_int8_linear",
        TILES,
        "w[i + 2][0], w[i][1]",
        "w[i][1], w[i + 2][0]",
    ),
    Mutant(
        "words of a piece changed places", "avx2", "int4_int8_linear", TILES, "p * 64 + r * 4", "(3 - p) * 64 + r * 4"
    ),
    Mutant("the last row left out", "avx2", "int4_int8_linear", TILES, "r + i < rows", "r + i + 1 < rows"),
    Mutant("scales of a tile from its first row", "avx2", "int4_int8_linear", TILES, "s[r * row + g]", "s[g]"),
    Mutant("the second part's scales are the first's", "avx2", "int4_int8_linear", TILES, " + (b >> shift), g", ", g"),
    Mutant("the last row not stored", "avx2", "int4_int8_linear", TILES, "rows - LANES);", "rows - LANES - 1);"),
    Mutant(
        "tokens' sums changed places", "avx2", "int4_int8_linear", TILES, "vi part = sums[t][h]", "vi part = sums[0][h]"
    ),
    Mutant("tiles read as rows", "avx2", "int4_int8_linear", TILES, "if (a->tiled) {", "if (0) {"),
    Mutant(
        "many rows of x: nibbles changed places",
        "avx512",
        "int4_int8_linear",
        MANY,
        "(4 + p) * sizeof",
        "(7 - p) * sizeof",
    ),
    Mutant("many rows of x: another row's scales", "avx2", "int4_int8_linear", MANY, "eight + r0 % LANES", "eight"),
    Mutant(
        "128 not taken off",
        "avx512",
        "q8_int8_linear",
        FEW,
        "dpbusd_epi32(start, c",
        "dpbusd_epi32(_mm512_setzero_si512(), c",
    ),
    Mutant(
        "halves of int8 blocks not added",
        "avx512",
        "q8_int8_linear",
        FEW,
        "(rows0, rows4, 0xdd))",
        "(rows0, rows4, 0x88))",
    ),
    Mutant(
        "offset forgotten in eight rows of x",
        "avx512",
        "int4_int8_linear",
        SUMS,
        "__m256i *)x[b].sum",
        "__m256i *)x->sum",
    ),
    Mutant(
        "scale of another row",
        "avx512",
        "int4_int8_linear",
        SUMS,
        "set1_ps(ws[b * MANY_ROWS + r])",
        "set1_ps(ws[b * MANY_ROWS])",
    ),
    Mutant("columns of a block turned round", "avx512", "q8_int8_linear", SUMS, "x16[b].code[k]", "x16[b].code[7 - k]"),
    Mutant(
        "product and sum rounded apart",
        "avx512",
        "int4_int8_linear",
        SUMS,
        "s[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), "
        "_mm512_mul_ps(_mm512_set1_ps(ws[b * MANY_ROWS + r]), scale), s[r]);",
        "s[r] += _mm512_cvtepi32_ps(sum[r]) * (_mm512_set1_ps(ws[b * MANY_ROWS + r]) * scale);",
    ),
    Mutant(
        "sixteen rows of x, eight of them twice",
        "avx512",
        "int4_int8_linear",
        "calls_int.c",
        "8 * (g & 1) : 0",
        "0 : 0",
    ),
    Mutant(
        "halves to even",
        "avx512",
        "int8_quantize",
        "avx512/int4.c",
        "cvttps_epi32(_mm512_add_ps(v, _mm512_castsi512_ps(away)))",
        "cvtps_epi32(v)",
    ),
    Mutant(
        "NaN lost in the maximum",
        "avx512",
        "int8_quantize",
        "avx512/int4.c",
        "_CMP_UNORD_Q)) return 0",
        "_CMP_UNORD_Q)) return (*scale = 0, 1)",
    ),
    Mutant(
        "infinity times 0 not 0",
        "avx512",
        "int8_quantize",
        "avx512/int4.c",
        "_mm512_cvtepi32_epi8(q)",
        "_mm512_cvtsepi32_epi8(q)",
    ),
    Mutant(
        "float tile rounds twice",
        "avx512",
        "gemm",
        "tile.h",
        "s[r] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_row + k * a_k]), now, s[r])",
        "s[r] += a[r * a_row + k * a_k] * now",
    ),
    Mutant(
        "the last columns take their neighbours",
        "avx512",
        "gemm",
        "tile.h",
        "i < n ? x[i * x_row + k] : 0",
        "x[(i > 0 && i == n - 1 ? i - 1 : 0) * x_row + k]",
    ),
    Mutant(
        "the last of a group spills into the next",
        "avx512",
        "gemm",
        "scalar/gemm.c",
        "m + LANES <= g->M && k + 1 < depth",
        "m + LANES <= g->M",
    ),
    Mutant(
        "the second look with the first's weights", "avx512", "gemm", GEMM, "&minus, packed_minus", "&minus, packed_b"
    ),
    Mutant("the second look at the first's input", "avx512", "gemm", GEMM, "minus.a = g->a_minus", "minus.a = g->a"),
    Mutant("z of a tile from the row's start", "avx512", "gemm", GEMM, "start + n * g->K + k0,", "start + n * g->K,"),
    Mutant(
        "weights of a tile from the row's start",
        "avx512",
        "gemm",
        GEMM,
        "weight + n * g->K + k0;",
        "weight + n * g->K;",
    ),
    Mutant(
        "a tile's next row goes on with its own numbers", "avx2", "gemm", NOISE, "&k, at, next);", "&k, at, at + 64);"
    ),
    Mutant(
        "rows of a tile side by side",
        "avx2",
        "gemm",
        NOISE,
        "one.weight += a->row, one.start",
        "one.weight += a->n, one.start",
    ),
    Mutant(
        "activations without the weight's sign",
        "avx2",
        "q8_int8_linear",
        "avx2/int_sums.h",
        "_mm256_sign_epi8(xb, w)",
        "xb",
    ),
    Mutant(
        "high digit counted eightfold", "avx2", "q8_int8_linear", "avx2/int_sums.h", "digit ? 16 : 1", "digit ? 8 : 1"
    ),
    Mutant("the sign of a tie", "avx2", "int4_quantize", "scalar/int4.c", "above != below && ", ""),
    Mutant("codes of the second half in the first's place", "avx2", "int4_quantize", "scalar/int4.c", "0xd8", "0xe4"),
    Mutant("four rows of x, the first one stored", "avx2", "q8_int8_linear", MANY, "y[t], rows);", "y[0], rows);"),
    Mutant("digits of int8 changed places", "avx2", "q8_int8_linear", MANY, "to + d * MANY", "to + (1 - d) * MANY"),
    Mutant(
        "a row's second half first", "avx512", "q8_int8_linear", MANY, "b % 2 * MANY_ROWS", "(1 - b % 2) * MANY_ROWS"
    ),
    Mutant(
        "values stay where sixteen are kept",
        "avx2",
        "sparse_linear",
        SPARSE,
        "p[r] += (half ? 2 : 4) * count_all(mask);",
        "p[r] += (half ? 2 : 4) * (count_all(mask) & 15);",
    ),
    Mutant(
        "the last values left out", "avx2", "sparse_linear", SPARSE, "if (p < end) memcpy", "if (p + 8 < end) memcpy"
    ),
    Mutant(
        "three rows of x, one of them thrice",
        "avx2",
        "sparse_linear",
        SPARSE,
        "now[t] = v_load(x + t * in);",
        "now[t] = v_load(x);",
    ),
    Mutant(
        "every row the first of its part", "avx2", "sparse_linear", SPARSE, "* a->in, a, o, 0,", "* a->in, a, o0, 0,"
    ),
    Mutant(
        "half the sums left out",
        "avx512",
        "sparse_linear",
        "avx512/sparse.c",
        "extractf32x8_ps(w, 1)",
        "extractf32x8_ps(w, 0)",
    ),
    Mutant(
        "pruned weights take a neighbour's value",
        "avx2",
        "sparse_linear",
        "avx2/sparse.c",
        "moved, _mm256_setzero_ps(),",
        "moved, moved,",
    ),
]
HERE = [name for name, supported in c_ops.isas() if supported]
SHAPES = [
    (1, 8, 1),
    (2, 13, 3),
    (3, 9, 12),
    (4, 8, 7),
    (8, 16, 4),
    (9, 11, 6),
    (16, 8, 5),
    (41, 21, 8),
    (2, 37, 36),
]  # N, out, blocks


def pointer(a: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(a.ctypes.data)


def sizes(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in numbers]


def products(lib: ctypes.CDLL | None, isa: str, kernel: str) -> Iterator[bytes]:
    """Results of the kernel over the shapes, by the library, or by the package's own extension where that is None."""
    rng, ops = np.random.default_rng(0), c_ops.load(isa)
    for N, out, blocks in SHAPES:
        width = 32 * blocks
        x = rng.standard_normal((N, width), dtype=np.float32)
        if kernel == "gemm":
            x = np.tile(x, (1, 2))
            w = rng.standard_normal((out, 2 * width), dtype=np.float32)
            y = np.zeros((N, out), np.float32)
            if lib:
                lib.me_gemm(0, pointer(y), pointer(x), pointer(w), 0, 1, *sizes(N, out, 2 * width))
            yield y.tobytes() if lib else ops["linear_forward"](x, w)[0].tobytes()
            dout, dw = rng.standard_normal((N, out), dtype=np.float32), np.zeros((out, 2 * width), np.float32)
            if lib:  # the weight's gradient: both operands lie the other way
                lib.me_gemm(0, pointer(dw), pointer(dout), pointer(x), 1, 0, *sizes(out, 2 * width, N))
            yield dw.tobytes() if lib else ops["linear_backward"](dout, (x, w))[1].tobytes()
            both, y = np.stack([x, x + 1]), np.zeros((2, N, out), np.float32)
            if lib:
                given = map(pointer, (y, both, w)), map(ctypes.c_uint32, (5, 0, 1, 2, 3))
                lib.me_linear_both(0, *given[0], ctypes.c_float(0.25), *given[1], *sizes(N, out, 2 * width))
            yield y.tobytes() if lib else ops["linear_both"](both, w, 0.25, 5, 1, 2, 3).tobytes()
        elif kernel == "sparse_linear":
            for dtype in (np.float32, np.float16):
                keep = rng.random((out, width)) < rng.choice([0.1, 0.5, 1.0])
                starts = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
                values = rng.standard_normal(int(starts[-1]), dtype=np.float32).astype(dtype)
                bits, y = np.packbits(keep, bitorder="little"), np.zeros((N, out), np.float32)
                if lib:
                    given = *map(pointer, (y, x, bits, values, starts)), int(dtype is np.float16)
                    lib.me_sparse_linear(0, *given, *sizes(N, out, width))
                yield y.tobytes() if lib else ops["sparse_linear_forward"](x, bits, values, starts)[0].tobytes()
        elif kernel == "int4_quantize":
            x[0, :5], x[-1, 7], x[-1, 3] = (np.nan, np.inf, 0.5, 127.5, -0.0), -9, 9
            q, s = np.zeros((N, width // 2), np.uint8), np.zeros((N, blocks), np.float16)
            if lib:
                lib.me_int4_quantize(0, pointer(q), pointer(s), pointer(x), *sizes(32, N, width))
            else:
                q, s = ops["int4_quantize"](x, 32)
            yield q.tobytes() + np.nan_to_num(s, nan=-1).tobytes()
        elif kernel == "int8_quantize":
            x[0, :5] = np.nan, np.inf, 0.5, 127.5, -0.0
            x[-1, -32:] = [127, *np.arange(31) + 0.5]
            x[N // 2, -3] = np.inf
            xq, xscales = np.zeros(x.shape, np.int8), np.zeros((N, blocks), np.float32)
            if lib:
                lib.me_int8_quantize(0, pointer(xq), pointer(xscales), pointer(x), *sizes(N, width))
            else:
                xq, xscales = ops["int8_quantize"](x)
            yield xq.tobytes() + np.nan_to_num(xscales, nan=-1).tobytes()
        else:
            yield from integer_product(lib, ops, kernel, x, out, rng)


def integer_product(lib, ops: dict[str, Callable], kernel: str, x: np.ndarray, out: int, rng) -> Iterator[bytes]:
    N, width = x.shape
    xq, xscales = ops["int8_quantize"](x)
    sums = (8 * xq.reshape(N, -1, 32).astype(np.int32).sum(axis=-1)).astype(np.int32)
    for group in [g for g in (32, 64, 128) if width % g == 0] if kernel == "int4_int8_linear" else [32]:
        s = (rng.standard_normal((out, width // group)) + 3).astype(np.float16)
        y = np.full((N, out), 7, np.float32)
        if kernel == "int4_int8_linear":
            q = rng.integers(0, 256, (out, width // 2), dtype=np.uint8)
            given = *map(pointer, (y, sums, xq, xscales, q, s)), *sizes(group, N, out, width)
            want = (x, q, s, group)
        else:
            q = rng.integers(-128, 128, (out, width), dtype=np.int8)
            given = *map(pointer, (y, xq, xscales, q, s)), *sizes(N, out, width)
            want = (x, q, s)
        if lib:
            getattr(lib, f"me_{kernel}")(0, *given)
        yield y.tobytes() if lib else ops[kernel](*want).tobytes()
        if kernel == "int4_int8_linear":
            codes, tile_scales = ops["int4_tile"](q, s)
            if lib:
                codes, tile_scales, y = np.zeros_like(codes), np.zeros_like(tile_scales), np.full_like(y, 7)
                lib.me_int4_tile(*map(pointer, (codes, tile_scales, q, s)), *sizes(group, out, width))
                given = *map(pointer, (y, sums, xq, xscales, codes, tile_scales)), *sizes(group, N, out, width)
                lib.me_int4_tile_linear(0, *given)
            else:
                y = ops["int4_tile_linear"](x, codes, tile_scales, out)
            yield codes.tobytes() + tile_scales.tobytes() + y.tobytes()


def library(folder: Path, isa: str, kernel: str, change: Mutant | None) -> ctypes.CDLL:
    copy = folder / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("*.o", "__pycache__", "ladder"))
    if change:
        text = (copy / change.file).read_text(encoding="utf-8")
        found = text.count(change.old)
        assert found == 1, (
            f"kernels/{change.file}: expected {change.old!r} once, found it {found} times; adapt the mutant"
        )
        (copy / change.file).write_text(text.replace(change.old, change.new), encoding="utf-8")
    build = runpy.run_path(str(KERNELS / "build_ffi.py"))
    flags = [
        *build["COMPILE_ARGS"],
        *build["isa_sources"](platform.machine())[isa][1],
        f"-DISA={isa}",
        f"-DKERNEL={kernel}",
        *(["-DWITH_CACHE"] if kernel == "cached_attention" else ["-DWITH_NOISE"] if kernel == "gemm" else []),
    ]
    flags = [flag for flag in flags if flag not in ("-O3", "-fvisibility=hidden")]
    sources = [
        copy / isa / FILES[kernel],
        *([copy / isa / "noise.c"] if kernel == "gemm" else []),
        copy / "calls.c",
        copy / "calls_int.c",
        copy / "engine.c",
        ROOT / "tests/mutants/kernel_driver.c",
    ]
    command = [
        COMPILER,
        "-O0",
        "-fPIC",
        "-shared",
        *flags,
        f"-DX_ROWS={X_ROWS[isa]}",
        f"-I{copy}",
        *map(str, sources),
        "-lm",
    ]
    done = subprocess.run([*command, "-o", str(folder / "mutant.so")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "mutant.so"))


@pytest.mark.parametrize(("isa", "kernel"), sorted({(m.isa, m.kernel) for m in MUTANTS if m.isa in HERE}))
def test_the_unchanged_kernel_gives_the_same_bits(isa, kernel, tmp_path):
    lib = library(tmp_path, isa, kernel, None)
    assert list(products(lib, isa, kernel)) == list(products(None, isa, kernel))


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.isa in HERE], ids=lambda m: m.name)
def test_kernel_mutant_is_caught(mutant, tmp_path):
    lib = library(tmp_path, mutant.isa, mutant.kernel, mutant)
    assert list(products(lib, mutant.isa, mutant.kernel)) != list(products(None, mutant.isa, mutant.kernel))
