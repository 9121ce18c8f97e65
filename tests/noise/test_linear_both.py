"""The product of MeZO's two looks: bit for bit what perturbed copies give, wherever rows, depths and blocks are cut."""

from __future__ import annotations

import numpy as np
import pytest

from minedge.ops import c_ops
from tests.kernels.cases import ISAS

AT = (2**40 + 7, 3, 1, 12345)  # seed, step, sample, tensor


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def copies(ops, x, weight, scale):
    plus, minus = ops["perturb_both"](weight, scale, *AT)
    return np.stack([ops["linear_forward"](x[0], plus)[0], ops["linear_forward"](x[1], minus)[0]])


# 384 columns are multiplied at a time, 64 numbers made at a time, 16 rows of the weight packed at a time
@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 127, 383, 384, 385, 448, 449, 1000])
@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_products_with_perturbed_copies(isa, width):
    ops = c_ops.load(isa)
    for rows, out in ((1, 1), (1, 33), (2, 17), (3, 16), (7, 15), (97, 50), (5, 200)):
        x, weight = f(2, rows, width), f(out, width, seed=1)
        found = ops["linear_both"](x, weight, 1e-3, *AT)
        assert found.tobytes() == copies(ops, x, weight, 1e-3).tobytes(), (rows, out)


@pytest.mark.parametrize("isa", ISAS)
def test_leading_dimensions_and_nothing_at_all(isa):
    ops, weight = c_ops.load(isa), f(5, 70)
    x = f(2, 3, 4, 70)
    found = ops["linear_both"](x, weight, 0.1, *AT)
    assert found.shape == (2, 3, 4, 5)
    assert found.tobytes() == ops["linear_both"](x.reshape(2, 12, 70), weight, 0.1, *AT).tobytes()
    assert ops["linear_both"](f(2, 0, 70), weight, 0.1, *AT).shape == (2, 0, 5)
    assert not ops["linear_both"](f(2, 3, 0), f(5, 0), 0.1, *AT).any()


@pytest.mark.parametrize("isa", ISAS)
def test_infinities_and_nan_in_the_weight_reach_their_column_alone(isa):
    ops, weight = c_ops.load(isa), f(20, 70)
    weight[3, 5], weight[17, 69] = np.inf, np.nan
    found = ops["linear_both"](np.abs(f(2, 4, 70)) + 1, weight, 0.1, *AT)
    assert np.isposinf(found[..., 3]).all() and np.isnan(found[..., 17]).all()
    assert np.isfinite(np.delete(found, [3, 17], axis=-1)).all()
