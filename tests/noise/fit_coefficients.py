"""How the coefficients of minedge/ops/numpy_ops/noise.py were found; run this file to print them.

Both polynomials minimise their largest weighted error over Chebyshev points by Lawson's iteration: a least-squares fit
is repeated and the weight of each point multiplied by its error, until all error peaks are equally high. The inverse
normal distribution function that is fitted comes from `statistics.NormalDist` (Python's own, good to about 1e-16),
never from the code under test. The stored numbers are the specification; another LAPACK may print other last digits,
which changes nothing in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

__all__ = ["factor", "fit", "log2_over_t", "main"]

LOG_DEGREE, NORMAL_DEGREE = 5, 13


def fit(function: Callable, low: float, high: float, degree: int, weight: Callable) -> tuple[float, np.ndarray]:
    """Smallest max |weight * (polynomial - function)| on [low, high]: that error, and the coefficients from x^0 up."""
    t = -np.cos(np.pi * (np.arange(1200) + 0.5) / 1200)
    v = (low + high) / 2 + (high - low) / 2 * t
    scale = weight(v)
    basis, goal = np.polynomial.chebyshev.chebvander(t, degree) * scale[:, None], function(v) * scale
    importance = np.full(t.size, 1 / t.size)
    best_error, best = np.inf, None
    for _ in range(600):
        root = np.sqrt(importance)
        c = np.linalg.lstsq(basis * root[:, None], goal * root, rcond=None)[0]
        error = np.abs(basis @ c - goal)
        if error.max() < best_error:
            best_error, best = error.max(), c
        importance *= error + 1e-3 * error.max()
        importance /= importance.sum()
    powers = np.polynomial.Chebyshev(best, domain=[low, high]).convert(
        kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]
    )
    return float(best_error), powers.coef


def log2_over_t(t: np.ndarray) -> np.ndarray:
    """log2(1 + t) / t, by its series near 0."""
    safe = np.where(np.abs(t) < 1e-4, 1.0, t)
    return np.where(np.abs(t) < 1e-4, (1 - t / 2 + t * t / 3) / np.log(2), np.log2(1 + safe) / safe)


def factor(y: np.ndarray) -> np.ndarray:
    """z / (2u - 1) as a function of y = 13 + log2(u (1 - u)), by its series near u = 1/2 (y = 11)."""
    product = 2.0 ** (np.minimum(y, 11.0) - 11)  # 4 u (1 - u)
    x = np.sqrt(1 - product)  # |2u - 1|
    tail = product / (2 * (1 + x))  # min(u, 1 - u) without cancellation
    z = np.array([-NormalDist().inv_cdf(p) for p in tail])
    near = np.sqrt(np.pi / 2) * (1 + np.pi / 12 * x**2 + 7 * np.pi**2 / 480 * x**4)
    return np.where(x < 3e-3, near, z / np.maximum(x, 1e-9))


def main() -> None:
    for name, (error, c) in {
        "LOG2": fit(log2_over_t, np.sqrt(0.5) - 1, np.sqrt(2) - 1, LOG_DEGREE, np.abs),
        "NORMAL": fit(factor, -11, 11, NORMAL_DEGREE, lambda y: 1 / factor(y)),
    }.items():
        print(f"{name}: largest error {error:.3g}")
        for number in c.astype(np.float32):
            print(f'    "{float(number).hex()}",  # {number:.9g}')


if __name__ == "__main__":
    main()
