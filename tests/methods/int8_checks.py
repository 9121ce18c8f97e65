"""What GGML's Q8_0 and the kind's own equations state, as functions of the code under test; see checks.py."""

from __future__ import annotations

import numpy as np

from tests.methods.common import NUMPY

__all__ = ["int8_bytes_are_ggml_q8_0", "int8_kind_is_its_equations"]


def int8_bytes_are_ggml_q8_0(ops, blocks: int = 100_000) -> None:
    """Byte for byte what the gguf package makes, once scale and codes of each block of 32 stand next to each other."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rng = np.random.default_rng(12)
    weight = rng.normal(size=(blocks // 100, 3200)) * np.exp(rng.normal(0, 3, (blocks // 100, 1)))
    weight = weight.astype(np.float32)
    coarse = weight[: len(weight) // 2].view(np.uint32)  # half of them as bfloat16 has them
    coarse &= np.uint32(0xFFFF0000)
    weight[:7, :320] = np.round(weight[:7, :320])  # ties and zeros
    weight[5], weight[6, 32:64] = 0, 0.25
    halves = np.resize(np.float32([0.5, -0.5, 1.5, -2.5, 126.5]), 31)
    for row, near in enumerate((halves, np.nextafter(halves, np.float32(0)))):  # d = 1: x is what is rounded
        weight[8 + row, :32] = [127, *near]
    qweight, scales = ops.q8_quantize(weight)
    ours = np.concatenate([scales.reshape(-1, 1).view(np.uint8), qweight.reshape(-1, 32).view(np.uint8)], axis=1)
    theirs = quantize(weight, GGMLQuantizationType.Q8_0).reshape(-1, 34)
    np.testing.assert_array_equal(ours, theirs)


def int8_kind_is_its_equations(int8) -> None:
    """Shapes as declared, read back within half a step, and products by sums in float64: of one tile and of many."""
    rng = np.random.default_rng(3)
    for out, width, tile in [(5, 32, 1 << 20), (37, 96, 96 * 8), (9, 64, 1)]:
        int8.TILE, before = tile, int8.TILE
        kind = int8.Int8()
        weight = rng.normal(size=(out, width)).astype(np.float32)
        weight[:, ::7] = 0
        params = kind.pack("w", weight, NUMPY)
        shapes = kind.shapes("w", out, width)
        assert {k: (a.shape, str(a.dtype)) for k, a in params.items()} == shapes
        assert 8 * sum(a.nbytes for a in params.values()) == 8.5 * weight.size
        read = kind.dense(params, "w", NUMPY)
        np.testing.assert_array_equal(read[weight == 0], 0)
        largest = np.repeat(np.abs(weight.reshape(out, -1, 32)).max(-1), 32, axis=1)
        # half a step of largest / 127, and the scale's own rounding to float16, 2^-11 of what is read
        assert (np.abs(read - weight) <= largest * (0.5 / 127 + 2.0**-11 + 1e-6)).all()
        ids = np.array([[3, 0], [out - 1, 3]])
        np.testing.assert_array_equal(kind.rows(ids, params, "w", NUMPY), read[ids])
        x, dout = rng.normal(size=(2, 3, width)), rng.normal(size=(2, 3, out))
        y, cache = kind.forward(x, params, "w", NUMPY)
        np.testing.assert_allclose(y, np.einsum("bti,oi->bto", x, read), rtol=1e-9, atol=1e-9)
        dx, grads = kind.backward(dout, cache, params, "w", NUMPY, frozenset())
        np.testing.assert_allclose(dx, np.einsum("bto,oi->bti", dout, read), rtol=1e-9, atol=1e-9)
        assert grads == {}
        int8.TILE = before
