"""What QLoRA's paper (arXiv:2305.14314) states of NF4, as functions of the code under test; see checks.py."""

from __future__ import annotations

import numpy as np

from tests.methods.common import NUMPY

__all__ = ["GOLDEN_CODES", "golden_weight", "nf4_golden_vectors", "nf4_kind_is_the_paper"]


def golden_weight() -> np.ndarray:
    """Two rows of two blocks, exact in float32 on any machine: odd multiples of 1/64, and a block of zeros."""
    i = np.arange(256).reshape(2, 128)
    weight = ((i * 37) % 127 - 63) / 64.0
    weight[1, 64:] = 0
    return weight.astype(np.float32)


# Made once, by the nearest of the sixteen values in exact fractions (no code of the package): block 0, weights 0 .. 15.
GOLDEN_CODES = [0, 3, 9, 14, 1, 6, 13, 0, 4, 10, 14, 2, 7, 13, 1, 4]


def nf4_golden_vectors(ops) -> None:
    """Codes by exact fractions, and the bytes that they make."""
    from fractions import Fraction

    weight = golden_weight()
    levels = [Fraction(float(np.float32(v))) for v in (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    )]  # fmt: skip
    codes = np.zeros(weight.shape, np.uint8)
    for (o, i), w in np.ndenumerate(weight):
        top = max(abs(Fraction(float(v))) for v in weight[o, i // 64 * 64 : i // 64 * 64 + 64])
        x = Fraction(float(w)) / top if top else Fraction(0)
        codes[o, i] = min(range(16), key=lambda k: (abs(x - levels[k]), k))
    assert codes[0, :16].tolist() == GOLDEN_CODES
    qweight, absmax = ops.nf4_quantize(weight, 64)
    np.testing.assert_array_equal(qweight, codes[:, ::2] * 16 + codes[:, 1::2])
    np.testing.assert_array_equal(absmax, np.abs(weight.reshape(2, 2, 64)).max(-1))
    read = ops.nf4_dequantize(qweight, absmax, 64)
    values = np.array([float(level) for level in levels], np.float32)[codes]
    np.testing.assert_array_equal(read, values * np.repeat(absmax, 64, axis=1))
    np.testing.assert_array_equal(read[weight == 0], 0)


def nf4_kind_is_the_paper(nf4) -> None:
    """Shapes and dtypes as declared, 0.127 bits of constants, and read back through both quantizations."""
    rng = np.random.default_rng(2)
    weight = (rng.normal(size=(96, 1024)) * np.exp(rng.normal(0, 0.5, (96, 1)))).astype(np.float32)
    weight[:, ::7] = 0
    for block, double in [(64, True), (64, False), (32, True), (1024, True)]:
        kind = nf4.NF4(block, double)
        params = kind.pack("w", weight, NUMPY)
        shapes = kind.shapes("w", *weight.shape)
        assert {k: (a.shape, str(a.dtype)) for k, a in params.items()} == shapes
        stored = sum(a.nbytes for k, a in params.items() if k != "w.qweight")
        bits = 8 * stored / weight.size
        blocks = weight.size // block
        assert bits == (8 * blocks + 32 * -(-blocks // 256) + 32) / weight.size if double else 32 / block
        if (block, double) == (64, True):
            assert 0.1269 < bits < 0.1275
        read = kind.dense(params, "w", NUMPY)
        np.testing.assert_array_equal(read[weight == 0], 0)
        exact = np.abs(weight.reshape(96, -1, block)).max(-1)
        # an absmax is wrong by half a gap of the 8-bit map at most (0.45 / 64 of the largest), a weight by half of
        # 0.304 of its absmax beside that
        slack = 0.0071 * np.abs(exact - exact.mean()).max() if double else 0
        bound = np.repeat(0.15191 * exact + slack, block, axis=1) * (1 + 1e-5)
        assert (np.abs(read - weight) <= bound).all()
        ids = np.array([[5, 0], [95, 5]])
        np.testing.assert_array_equal(kind.rows(ids, params, "w", NUMPY), read[ids])
        x, dout = rng.normal(size=(2, 3, 1024)), rng.normal(size=(2, 3, 96))
        out, cache = kind.forward(x, params, "w", NUMPY)
        np.testing.assert_allclose(out, np.einsum("bti,oi->bto", x, read), rtol=1e-9, atol=1e-9)
        dx, grads = kind.backward(dout, cache, params, "w", NUMPY, frozenset())
        np.testing.assert_allclose(dx, np.einsum("bto,oi->bti", dout, read), rtol=1e-9, atol=1e-9)
        assert grads == {}
