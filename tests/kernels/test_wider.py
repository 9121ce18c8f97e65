"""Wider vectors are faster, never different: each kernel's results are those of AVX2, bit for bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from minedge.ops import c_ops
from tests.kernels.cases import CASES, ISAS, bits_of, outputs

# A machine that should have it and has not fails in test_expected_instruction_sets.
WIDER = [isa for isa in ISAS if isa == "avx512"]
COUNTS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64, 65, 101)  # around the tiles' 8 and 16
SIZES = (1, 2, 7, 8, 9, 31, 32, 33, 100, 257, 700)


def rows(kind: str, count: int, width: int) -> np.ndarray:
    """Rows of x: ordinary, or with zeros, infinities, NaN, denormals and the largest numbers among them."""
    rng = np.random.default_rng([count, width])
    x = rng.standard_normal((count, width), dtype=np.float32)
    if kind == "odd":
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-41, -3e38, 3e38], np.float32)
        x = np.where(rng.random(x.shape) < 0.03, rng.choice(odd, x.shape), x)
    return x


@pytest.mark.parametrize(("isa", "name"), list(product(WIDER, CASES)))
def test_wider_vectors_change_no_bit(name, isa):
    for n in SIZES:
        want = bits_of(outputs(name, c_ops.load("avx2"), CASES[name](np.random.default_rng(n), n)))
        assert bits_of(outputs(name, c_ops.load(isa), CASES[name](np.random.default_rng(n), n))) == want, n


@pytest.mark.parametrize(("isa", "kind", "count"), list(product(WIDER, ["ordinary", "odd"], COUNTS)))
def test_integer_products_change_no_bit(count, kind, isa):
    """Every number of rows of x around the tiles', weights of odd sizes, all groups, both ends of the codes."""
    rng = np.random.default_rng(count)
    narrow, wide = c_ops.load("avx2"), c_ops.load(isa)
    for out, blocks in ((1, 1), (5, 3), (8, 4), (13, 5), (37, 12), (16, 33)):
        x = rows(kind, count, 32 * blocks)
        for group in (g for g in (32, 64, 128) if 32 * blocks % g == 0):
            q = rng.choice(np.array([0, 0x0F, 0xF0, 0xFF, 0x88, 0x37], np.uint8), (out, 16 * blocks))
            s = rng.standard_normal((out, 32 * blocks // group)).astype(np.float16)
            want = narrow["int4_int8_linear"](x, q, s, group)
            assert wide["int4_int8_linear"](x, q, s, group).tobytes() == want.tobytes(), (out, blocks, group)
        q8 = rng.choice(np.array([-128, -127, -1, 0, 1, 127, 53], np.int8), (out, 32 * blocks))
        s = rng.standard_normal((out, blocks)).astype(np.float16)
        want = narrow["q8_int8_linear"](x, q8, s)
        assert wide["q8_int8_linear"](x, q8, s).tobytes() == want.tobytes(), (out, blocks)


@pytest.mark.parametrize(("isa", "kind"), list(product(WIDER, ["ordinary", "odd"])))
def test_activations_change_no_bit(kind, isa):
    """Blocks of ordinary numbers, of zeros, infinities and NaN, of halves, and of numbers whose scale vanishes."""
    x = np.concatenate([rows(kind, 64, 320), rows(kind, 8, 320) * np.float32(1e-38), np.rint(rows(kind, 8, 320)) / 2])
    x[3], x[5, ::3] = 0, 127.5
    want = bits_of(c_ops.load("avx2")["int8_quantize"](x))
    assert bits_of(c_ops.load(isa)["int8_quantize"](x)) == want


@pytest.mark.parametrize(
    ("isa", "shape"),
    list(product(WIDER, [(1, 50, 96), (2, 17, 33), (5, 16, 385), (7, 33, 800), (97, 65, 390), (200, 400, 50)])),
)
def test_matrix_products_change_no_bit(shape, isa):
    """Remainders of every tile, sums over more than one part, each way the operands may lie."""
    M, N, K = shape
    x, weight, dout = rows("ordinary", M, K), rows("ordinary", N, K), rows("odd", M, N)
    narrow, wide = c_ops.load("avx2"), c_ops.load(isa)
    assert wide["linear_forward"](x, weight)[0].tobytes() == narrow["linear_forward"](x, weight)[0].tobytes()
    assert bits_of(wide["linear_backward"](dout, (x, weight))) == bits_of(narrow["linear_backward"](dout, (x, weight)))
