"""NF4 here and in bitsandbytes, on a CPU: the same bytes, the same scales, the same weights when read back.

Runs where torch and bitsandbytes are installed: python -m pytest -m oracle tests/oracle/test_bitsandbytes.py
Last figures (bitsandbytes 0.50.2, torch 2.13.0): 39.5 million weights, 0 codes and 0 scales differ. Of 272,000 scales
in 8 bits 0 codes differ where both take the same mean off. The mean itself is summed in float32 there and in float64
here and may end a few units in the last place away: that moved 1 code of 72,000 to its neighbour.
"""

from __future__ import annotations

import numpy as np
import pytest

from minedge.ops import get
from minedge.ops.numpy_ops.nf4 import CODEBOOK, DYNAMIC
from tests.methods.common import BACKENDS

pytestmark = pytest.mark.oracle
UNIT = 2.0**-24


@pytest.fixture(scope="module")
def functional():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return pytest.importorskip("bitsandbytes.functional")


def weights(seed):
    """Rows of many sizes, and blocks of zeros, of one value, of denormals."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(257, 2048)) * np.exp(rng.normal(0, 2, (257, 1)))
    weight[3, :64], weight[4, 64:320], weight[5, :256] = 0, 0.25, 1e-40
    weight[6] = np.round(weight[6] * 4)  # ties, and bfloat16's coarse grid
    weight = weight.astype(np.float32)
    weight[7:40].view(np.uint32)[...] &= np.uint32(0xFFFF0000)
    return weight


def test_tables(functional):
    np.testing.assert_array_equal(CODEBOOK, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(DYNAMIC, functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [32, 64, 128, 256, 2048])
def test_codes_and_scales_are_equal(functional, backend, block):
    import torch

    ops = get(backend)
    for seed in range(3):
        weight = weights(seed)
        theirs, state = functional.quantize_4bit(torch.tensor(weight), blocksize=block, quant_type="nf4")
        qweight, absmax = ops.nf4_quantize(weight, block)
        np.testing.assert_array_equal(qweight, theirs.numpy().reshape(qweight.shape))
        np.testing.assert_array_equal(absmax, state.absmax.numpy().reshape(absmax.shape))
        read = functional.dequantize_4bit(theirs, state).numpy()
        np.testing.assert_array_equal(ops.nf4_dequantize(qweight, absmax, block), read)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_double_quantization(functional, block):
    import torch

    ops = get("numpy")
    for seed in range(5):
        weight = weights(seed)
        _, absmax = ops.nf4_quantize(weight, block)
        codes, nested, offset = ops.absmax_quantize(absmax)
        theirs, state = functional.quantize_4bit(
            torch.tensor(weight), blocksize=block, quant_type="nf4", compress_statistics=True
        )
        apart = np.abs(codes.ravel().astype(int) - state.absmax.numpy())
        assert apart.max() <= 1 and apart.mean() < 1e-3
        # sums of n float32, whatever their order, each within (n - 1) u of their magnitudes; in practice a few u
        np.testing.assert_allclose(offset, state.offset.numpy(), rtol=16 * UNIT)
        np.testing.assert_allclose(nested, state.state2.absmax.numpy(), rtol=0, atol=32 * UNIT * float(absmax.max()))
        read = functional.dequantize_4bit(theirs, state).numpy()
        own = ops.nf4_dequantize(
            *ops.nf4_quantize(weight, block)[:1], ops.absmax_dequantize(codes, nested, offset), block
        )
        same = (apart == 0).reshape(absmax.shape).repeat(block, axis=1)
        np.testing.assert_allclose(own[same], read[same], rtol=0, atol=64 * UNIT * float(absmax.max()))


def test_scales_alone(functional):
    """Many absmax at once: the 8-bit codes of those that bitsandbytes itself centred."""
    import torch

    rng = np.random.default_rng(0)
    absmax = np.abs(rng.normal(size=(1000, 272))).astype(np.float32) + 1
    codes, _, offset = get("numpy").absmax_quantize(absmax)
    theirs, _ = functional.quantize_blockwise(torch.tensor((absmax - offset).ravel()), blocksize=256)
    np.testing.assert_array_equal(codes.ravel(), theirs.numpy())
