"""Kernels on small integers, where every rounding is exact, and integer kernels against int64: equal bits."""

from __future__ import annotations

import numpy as np
import pytest

from minedge.ops import c_ops, numpy_ops
from tests.kernels.cases import ISAS

pytestmark = [
    pytest.mark.parametrize("isa", ISAS),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # infinities and NaN are part of the cases
]
WIDTHS = (1, 2, 7, 8, 9, 16, 31, 32, 33, 64, 100)


def ints(rng: np.random.Generator, *shape: int, low: int = -8, high: int = 8) -> np.ndarray:
    return rng.integers(low, high + 1, shape).astype(np.float32)


def exact(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_array_equal(got.astype(np.float64), want)


@pytest.mark.parametrize("width", WIDTHS)
def test_sums_products_and_lookups(isa, width):
    ops, rng = c_ops.load(isa), np.random.default_rng(width)
    x, b = ints(rng, 3, 70, width), ints(rng, width)
    exact(ops["bias_forward"](x, b)[0], x.astype(np.float64) + b)
    exact(ops["bias_backward"](x, ())[1], x.astype(np.float64).sum((0, 1)))
    ids = rng.integers(0, 6, (3, 70))
    table = ints(rng, 6, width)
    exact(ops["embedding_forward"](ids, table)[0], table[ids].astype(np.float64))
    want = np.stack([x.astype(np.float64)[ids == i].sum(0) for i in range(6)])
    exact(ops["embedding_backward"](x, (ids, table.shape)), want)
    w = ints(rng, 5, width)
    exact(ops["linear_forward"](x, w)[0], x.astype(np.float64) @ w.T.astype(np.float64))
    d = ints(rng, 3, 70, 5)
    dx, dw = ops["linear_backward"](d, (x, w))
    exact(dx, d.astype(np.float64) @ w)
    exact(dw, d.reshape(-1, 5).T.astype(np.float64) @ x.reshape(-1, width))
    assert ops["sum_squares"](x) == float((x.astype(np.int64) ** 2).sum())


@pytest.mark.parametrize("width", (2, 8, 32, 64, 128))
def test_norms_of_plus_and_minus_one(isa, width):
    """Rows of as many +1 as -1: mean 0, variance 1, rstd 1, so all is exact; widths are powers of two."""
    ops, rng = c_ops.load(isa), np.random.default_rng(width)
    x = np.tile(np.float32([1, -1]), (70, width // 2))
    rng.permuted(x, axis=1, out=x)
    w, b, d = ints(rng, width), ints(rng, width), ints(rng, 70, width)
    x64, g = x.astype(np.float64), d.astype(np.float64) * w
    for name, args in (("rms_norm", (w,)), ("layer_norm", (w, b))):
        out, cache = ops[f"{name}_forward"](x, *args, 0.0)
        exact(out, x64 * w + (b if name == "layer_norm" else 0))
        dx, dweight, *dbias = ops[f"{name}_backward"](d, cache)
        centre = g.mean(1, keepdims=True) if dbias else 0
        exact(dx, g - centre - x64 * (g * x64).mean(1, keepdims=True))
        exact(dweight, (d * x64).sum(0))
        if dbias:
            exact(dbias[0], d.astype(np.float64).sum(0))


@pytest.mark.parametrize("half", (1, 3, 4, 8, 9, 16, 32))
def test_quarter_turns(isa, half):
    ops, rng = c_ops.load(isa), np.random.default_rng(half)
    x = ints(rng, 2, 4, 3, 2 * half)
    quarter = rng.integers(0, 4, (4, half))
    cos, sin = np.float32([1, 0, -1, 0])[quarter], np.float32([0, 1, 0, -1])[quarter]
    out, cache = ops["rotary_forward"](x, cos, sin)
    z = (x[..., :half] + 1j * x[..., half:]) * (1j**quarter).round()[:, None, :]
    exact(out, np.concatenate([z.real, z.imag], axis=-1))
    exact(ops["rotary_backward"](out, cache), x.astype(np.float64))


def test_attention_to_one_key(isa):
    ops, rng = c_ops.load(isa), np.random.default_rng(0)
    q, k, v = ints(rng, 3, 1, 4, 17), ints(rng, 3, 1, 2, 17), ints(rng, 3, 1, 2, 17)
    out, _ = ops["attention_forward"](q, k, v)
    exact(out, np.repeat(v, 2, axis=2).astype(np.float64))


@pytest.mark.parametrize("n", WIDTHS)
def test_adamw_without_memory_steps_by_the_sign(isa, n):
    """beta1 = beta2 = 0, eps = 0, lr = 1: param -= g / sqrt(g^2) = sign(g)."""
    ops, rng = c_ops.load(isa), np.random.default_rng(n)
    param, grad = ints(rng, n), ints(rng, n, low=1) * rng.choice(np.float32([-1, 1]), n)
    m, v, want = ints(rng, n), ints(rng, n, low=0), param.astype(np.float64) - np.sign(grad)
    ops["adamw_"](param, grad, m, v, 1.0, 0.0, 0.0, 0.0, 0.0, 1)
    exact(param, want)
    exact(m, grad.astype(np.float64))
    exact(v, grad.astype(np.float64) ** 2)


@pytest.mark.parametrize("blocks", (1, 2, 7, 8, 9, 16, 17))
@pytest.mark.parametrize("rows", (1, 2, 3, 4, 5, 9))
def test_integer_products_full_range(isa, blocks, rows):
    ops, rng = c_ops.load(isa), np.random.default_rng(blocks * 10 + rows)
    xq = rng.integers(-128, 128, (rows, 32 * blocks), dtype=np.int8)
    xq[0] = -128  # the extreme of both: -128 * (0 - 8) and -128 * (15 - 8)
    q = rng.integers(0, 256, (5, 16 * blocks), dtype=np.uint8)
    q[0], q[1] = 0, 255
    codes = np.concatenate([q.reshape(5, -1, 16) & 15, q.reshape(5, -1, 16) >> 4], axis=-1).astype(np.int64) - 8
    want = np.einsum("nbi,obi->nob", xq.astype(np.int64).reshape(rows, -1, 32), codes)
    got = ops["int4_int8_partials"](xq, q)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("group", (32, 64, 128))
def test_int4_equals_the_specification(isa, group):
    """Quantizing and dequantizing are elementwise with stated roundings: equal bits, odd groups included."""
    ops, rng = c_ops.load(isa), np.random.default_rng(group)
    w = rng.standard_normal((40, 256)).astype(np.float32)
    w[0], w[1], w[2], w[3] = 0, 1e-41, 7, -7
    w[4], w[5] = rng.choice(np.float32([-1, 1]), 256), w[5] * 1e38
    w[6, 3], w[7, 5], w[8, 6] = np.inf, -np.inf, np.nan
    w[9, 5], w[9, 9], w[10, 9], w[10, 5] = 9, -9, 9, -9  # the first of equals, of either sign
    w[11], w[12], w[13, :9] = np.abs(w[11]), -np.abs(w[12]), -0.0  # one sign only
    w[14, 1], w[14, 2], w[15, 1], w[15, 2] = np.inf, -np.nan, -np.nan, np.inf
    with np.errstate(all="ignore"):
        want = numpy_ops.int4_quantize(w, group)
    got = ops["int4_quantize"](w, group)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])  # NaN equals NaN here; -0 and 0 are told apart below
    finite = ~np.isnan(want[1])
    assert got[1][finite].tobytes() == want[1][finite].tobytes()
    np.testing.assert_array_equal(ops["int4_dequantize"](*want, group), numpy_ops.int4_dequantize(*want, group))


def test_int4_dequantizes_every_byte_and_every_scale(isa):
    ops = c_ops.load(isa)
    q = np.arange(256, dtype=np.uint8).reshape(16, 16)
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    for byte_row in (q[0], q[15]):
        qweight = np.ascontiguousarray(np.broadcast_to(byte_row, (65536, 16)))
        np.testing.assert_array_equal(
            ops["int4_dequantize"](qweight, halves, 32), numpy_ops.int4_dequantize(qweight, halves, 32)
        )
    ones = np.ones((16, 1), np.float16)
    np.testing.assert_array_equal(ops["int4_dequantize"](q, ones, 32), numpy_ops.int4_dequantize(q, ones, 32))


def test_int8_quantize_equals_the_specification(isa):
    ops, rng = c_ops.load(isa), np.random.default_rng(1)
    x = (rng.standard_normal((200, 96)) * 10.0 ** rng.integers(-40, 30, (200, 1))).astype(np.float32)
    x[0] = 0
    x[1, 5], x[2, 40], x[3, 70] = np.nan, np.inf, -np.inf
    x[4, :32] = np.arange(32) * np.float32(0.5)
    x[4, 31] = 127  # scale exactly 1: halves must go away from zero
    with np.errstate(all="ignore"):
        want = numpy_ops.int8_quantize(x)
    got = ops["int8_quantize"](x)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("n", (0, 1, 7, 8, 9, 100))
@pytest.mark.parametrize("dtype", (np.float16, np.float32, np.float64))
def test_masks(isa, n, dtype):
    ops, rng = c_ops.load(isa), np.random.default_rng(n)
    keep = rng.random(n) < 0.5
    bits = np.packbits(keep, bitorder="little")
    bits[-1:] |= np.uint8(0xFF << (n % 8) & 0xFF) if n % 8 else 0  # bits past the end must not count
    w = np.where(keep, rng.standard_normal(n), np.nan).astype(dtype)
    values = ops["sparse_pack"](w, bits)
    assert values.dtype == dtype and values.tobytes() == w[keep].tobytes()
    dense = ops["sparse_unpack"](values, bits, (n,))
    assert dense.tobytes() == np.where(keep, w, 0).astype(dtype).tobytes()
    if dtype == np.float32:
        assert ops["mask_apply"](w, bits).tobytes() == dense.tobytes()
        ops["mask_apply_"](w, bits)
        assert w.tobytes() == dense.tobytes()


@pytest.mark.parametrize(
    "shape", [(1, 40, 64), (1, 37, 128), (2, 45, 832), (5, 33, 64), (7, 800, 832), (100, 97, 1600)]
)
def test_products_with_packed_weights_are_those_with_the_dense_ones(isa, shape):
    """The weight is unpacked a few rows at a time on its way into the product: not one bit may differ."""
    rows, out, width = shape
    ops, rng = c_ops.load(isa), np.random.default_rng(rows)
    x, dout, w = (rng.standard_normal(s, dtype=np.float32) for s in ((rows, width), (rows, out), (out, width)))
    for kind, *sizes in (("nf4", 32), ("nf4", 64), ("int4", 32), ("int4", 64)):
        packed = (*ops[f"{kind}_quantize"](w, *sizes), *sizes)
        dense = ops[f"{kind}_dequantize"](*packed)
        y, cache = ops[f"{kind}_linear_forward"](x, *packed)
        assert y.tobytes() == ops["linear_forward"](x, dense)[0].tobytes(), kind
        want = ops["linear_backward"](dout, (x, dense), False)[0]
        assert ops[f"{kind}_linear_backward"](dout, cache).tobytes() == want.tobytes(), kind
    for half in (w.astype(np.float16), (w.view(np.uint32) >> 16).astype(np.uint16)):
        want = ops["linear_backward"](dout, (x, ops["half_widen"](half)), False)[0]
        assert ops["half_linear_backward"](dout, (half,)).tobytes() == want.tobytes()
