"""How far a float32 result may lie from a float64 one, and the assertion that holds it to that.

u = 2^-24 is float32's rounding unit: every operation returns the exact result times (1 + d), |d| <= u. A sum of n
products in any order, fused or not, errs by at most n u / (1 - n u) times the sum of the products' magnitudes
(Higham, Accuracy and Stability, ch. 3). The checks count the operations of a formula to first order in u; SLACK pays
for the second order. Library functions are taken as good to EXP u relative, which NumPy (2.5 ulp), Numba's tier (1
ulp) and libm (1 ulp) keep.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["EXP", "RATIOS", "TINY", "U", "exact", "gamma", "within"]

U = 2.0**-24
EXP = 6.0  # exp, tanh, log: relative error in units of u
TINY = 2.0**-120  # results near float32's smallest numbers may lose bits or become 0
SLACK = 1.05
RATIOS: dict[str, float] = {}  # largest error met, as a share of its bound; printed at the end of a run


def gamma(n: float) -> float:
    """Bound on the relative error that n roundings pile up."""
    return n * U / (1 - n * U)


def within(name: str, got: Any, want: Any, bound: Any) -> None:
    """Assert |got - want| <= bound everywhere, shapes and float32 included; remember the largest share of the bound
    that was used.
    """
    if isinstance(got, np.ndarray):
        assert got.dtype == np.float32, f"{name}: expected float32, got {got.dtype}"
        assert got.shape == np.shape(want), f"{name}: expected shape {np.shape(want)}, got {got.shape}"
        assert got.flags.c_contiguous, f"{name}: not C-contiguous"
    error = np.abs(np.asarray(got, np.float64) - want)
    bound = SLACK * np.asarray(bound, np.float64) + TINY
    share = float(np.max(error / bound, initial=0.0))
    RATIOS[name] = max(RATIOS.get(name, 0.0), share) if share == share else np.inf
    assert share <= 1, f"{name}: error {np.max(error):.3g} is {share:.3g} times the derived bound"


def exact(name: str, got: Any, want: Any) -> None:
    """Assert equality of dtype, shape and every bit (so -0.0 is not 0.0 and NaN equals NaN of the same bits)."""
    assert got.dtype == want.dtype, f"{name}: expected {want.dtype}, got {got.dtype}"
    assert got.shape == want.shape, f"{name}: expected shape {want.shape}, got {got.shape}"
    assert got.flags.c_contiguous, f"{name}: not C-contiguous"
    if np.ascontiguousarray(got).tobytes() != np.ascontiguousarray(want).tobytes():
        n = int(np.sum(got != want))
        raise AssertionError(f"{name}: {n} of {got.size} elements differ from the exact result")
