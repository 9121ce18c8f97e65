"""That the numbers are normal and independent. Bounds: five standard errors or a stated inequality; seeds are fixed."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from minedge.ops.numpy_ops import noise
from minedge.ops.numpy_ops.noise import normal

N = 1_000_000


def all_uniforms(chunk: int = 1 << 16):
    for low in range(0, 1 << 23, chunk):
        yield noise.uniform(np.arange(low, low + chunk, dtype=np.uint32) << np.uint32(9))


def test_uniforms_are_the_cell_middles_exactly():
    u = np.concatenate(list(all_uniforms()))
    assert np.array_equal(u.astype(np.float64), (2 * np.arange(1 << 23) + 1) * 2.0**-24)


def test_inverse_normal_is_odd_rising_and_injective_over_every_input():
    z = np.concatenate([noise.inverse_normal(u) for u in all_uniforms()])
    assert np.array_equal(z, -z[::-1])
    assert (np.diff(z) > 0).all()
    square = z.astype(np.float64) ** 2
    assert abs(square.mean() - 1) < 3e-7
    assert abs((square**2).mean() / square.mean() ** 2 - 3) < 1e-5


def accuracy(k: np.ndarray) -> tuple[float, float]:
    """Largest absolute and relative error at u = (2k + 1) 2^-24, against Python's own float64 inverse."""
    inverse = NormalDist().inv_cdf
    exact = np.array([inverse((2 * int(i) + 1) * 2.0**-24) for i in k])
    z = noise.inverse_normal(noise.uniform(k.astype(np.uint32) << np.uint32(9)))
    return float(np.abs(z - exact).max()), float(np.abs(z / exact - 1).max())


def test_inverse_normal_error_bound():
    ends = np.arange(20_000)
    middle = np.arange((1 << 22) - 20_000, 1 << 22)
    absolute, relative = accuracy(np.concatenate([ends, middle, np.arange(0, 1 << 22, 37)]))
    assert absolute <= 1.63e-6
    assert relative <= 8.3e-7


@pytest.mark.slow
def test_inverse_normal_error_bound_over_every_input():
    absolute, relative = accuracy(np.arange(1 << 22))  # the other half is its mirror image, bit for bit
    assert absolute <= 1.63e-6
    assert relative <= 8.3e-7


def test_moments_are_those_of_the_normal_law():
    z = normal(2023, 11, 0, 77, 0, N).astype(np.float64)
    # Var of the k-th moment's mean is (E z^2k - (E z^k)^2) / N: 1, 2, 15, 96.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 5 * math.sqrt(variance / N), power


def test_kolmogorov_smirnov_distance_is_within_the_dkw_bound():
    """Dvoretzky-Kiefer-Wolfowitz: P(sup |F_n - F| > d) <= 2 exp(-2 n d^2); d is set so that this is 1e-9."""
    n = 200_000
    z = np.sort(normal(5, 1, 2, 3, 7, n).astype(np.float64))
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z.tolist()])
    distance = max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max())
    assert distance < math.sqrt(math.log(2e9) / (2 * n))


def streams() -> dict[str, np.ndarray]:
    """One stream and its nearest neighbours in every word of key and counter, and in position."""
    base = {"seed": 9, "step": 4, "sample": 0, "tensor": 1000}
    n = 200_000
    out = {"itself": normal(**base, start=0, count=n)}
    for name in base:
        for change in (1, 2, 256, 1 << 31):
            out[f"{name} + {change}"] = normal(**{**base, name: base[name] + change}, start=0, count=n)
    out["seed + 2^32"] = normal(**{**base, "seed": 9 + (1 << 32)}, start=0, count=n)
    out["step and sample exchanged"] = normal(9, 0, 4, 1000, 0, n)
    for lag in (1, 2, 3, 4, 8):
        out[f"lag {lag}"] = normal(**base, start=lag, count=n)
    return {name: z.astype(np.float64) for name, z in out.items()}


def test_no_correlation_across_seeds_steps_samples_tensors_and_lags():
    all_streams = streams()
    z = all_streams.pop("itself")
    for name, other in all_streams.items():
        # The mean of n products of independent normals has standard error 1/sqrt(n); of (z^2 - 1)s, 2/sqrt(n).
        assert abs((z * other).mean()) < 5 / math.sqrt(z.size), name
        assert abs(((z**2 - 1) * (other**2 - 1)).mean()) < 10 / math.sqrt(z.size), name


def test_correlation_test_sees_a_shared_stream():
    """The mutant of the test above: a generator that ignores one argument gives correlation 1."""
    z = normal(9, 4, 0, 1000, 0, 10_000).astype(np.float64)
    assert abs((z * z).mean()) > 5 / math.sqrt(z.size)
