"""What the paper states about the estimate, on functions whose gradient is known: SPSA is exact on a quadratic.

`Function` stands in for a Model: the attributes that MeZO uses, with a loss that is a formula of the perturbed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import minedge.ops
from minedge.finetune import mezo
from minedge.finetune.mezo import MeZO
from minedge.model.both_sides import both_sides


class Function(SimpleNamespace):
    """params {"w": float64 vector}; loss_sums is `formula` of the w that the two sides of the noise show."""

    def __init__(self, w: np.ndarray, formula: Callable[[np.ndarray], float]):
        super().__init__(params={"w": w.astype(np.float64)}, formula=formula, linears={})
        self.trainable_names = frozenset({"w"})
        self.ops = minedge.ops.get("numpy")

    def require_trainable(self) -> None:
        pass

    def loss_sums(self, tokens, loss_mask, noise, int8):
        plus, minus = both_sides(self.params, noise, self.ops)
        return self.formula(plus["w"]), self.formula(minus["w"]), 1.0


def estimates(n_samples: int, steps: int, grad: np.ndarray) -> np.ndarray:
    """ghat of `steps` independent MeZO steps on grad . w, (steps, d), read off the change of the weights."""
    model = Function(np.zeros(grad.size), lambda w: float(grad @ w))
    opt = MeZO(lr=1.0, eps=1.0, seed=5, n_samples=n_samples)
    out = np.empty((steps, grad.size))
    for t in range(steps):
        before = model.params["w"].copy()
        opt.step(model, None)
        out[t] = before - model.params["w"]
    return out


GRAD = np.array([3.0, -1.0, 0.5, 0.0, 2.0, -2.0, 1.0, 0.25])


def test_spsa_first_moment_law():
    r"""E[g z] = grad. Var of component i is |grad|^2 + grad_i^2 for Gaussian z (E[(z.u)^2 z_i^2] = 1 + 2 u_i^2)."""
    steps = 2000
    mean = estimates(1, steps, GRAD).mean(axis=0)
    assert (np.abs(mean - GRAD) < 5 * np.sqrt((GRAD @ GRAD + GRAD**2) / steps)).all()


def test_spsa_first_moment_law_on_a_quadratic():
    """The cubic term is the first that SPSA does not cancel: on a quadratic g is exactly z . grad, whatever eps."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=(6, 6))
    w0 = rng.normal(size=6)
    model = Function(w0, lambda w: float(w @ a @ w) / 2)
    opt = MeZO(lr=0.0, eps=0.7, seed=3)
    for t in range(50):
        opt.step(model, None)
        z = minedge.ops.get("numpy").normal(3, t, 0, mezo.tensor_ids(frozenset({"w"}))["w"], 0, 6)
        slope = float(z.astype(np.float64) @ ((a + a.T) / 2 @ w0))
        assert abs(opt.log.projected_grads[t] - slope) <= 2.0**-23 * abs(slope) + 1e-12  # recorded as float32


def second_moment(d: int, n: int) -> tuple[float, float]:
    r"""Mean and variance of |ghat|^2 / |grad|^2 for n Gaussian draws in d dimensions.

    With s = sum of n squares (the draws along the gradient) and c = sum of d - 1 squares (across),
    |ghat|^2 / |grad|^2 = s (s + c) / n^2; s and c are independent chi-squares, E s^k = n (n+2) ... (n+2k-2).
    """

    def chi(f: int, k: int) -> float:
        return float(np.prod([f + 2.0 * i for i in range(k)]))

    mean = chi(n, 2) + chi(n, 1) * chi(d - 1, 1)
    square = chi(n, 4) + 2 * chi(n, 3) * chi(d - 1, 1) + chi(n, 2) * chi(d - 1, 2)
    assert mean == n * (d + n + 1)
    return mean / n**2, (square - mean**2) / n**4


@pytest.mark.parametrize(("n", "steps"), [(1, 4000), (4, 2000)])
def test_spsa_second_moment_law(n, steps):
    """E|ghat|^2 = (d + n + 1) / n |grad|^2 with Gaussian z; the spherical (d + n - 1) / n is outside the bound."""
    d = GRAD.size
    measured = (estimates(n, steps, GRAD) ** 2).sum(axis=1).mean() / (GRAD @ GRAD)
    expected, variance = second_moment(d, n)
    bound = 5 * np.sqrt(variance / steps)
    assert expected == (d + n + 1) / n
    assert abs(measured - expected) < bound
    assert abs((d + n - 1) / n - expected) > bound  # the test can tell the two laws apart
    assert abs(measured - (d + n - 1) / n) > 2 / n - bound


@pytest.mark.parametrize("mutant", ["one z for all samples", "half of eps", "not divided by n"])
def test_second_moment_law_catches_mutants(mutant, monkeypatch):
    original = mezo._update_

    class SameNoise(mezo.Noise):
        def __init__(self, seed, step, eps, names, sample):
            super().__init__(seed, step, eps, names, 0 if mutant == "one z for all samples" else sample)

    def update_(model, s, t, grads):
        factor = {"half of eps": 2.0, "not divided by n": float(len(grads))}.get(mutant, 1.0)
        if mutant == "one z for all samples":
            model = SimpleNamespace(**vars(model))
            perturb_ = model.ops.perturb_
            model.ops = SimpleNamespace(
                perturb_=lambda w, a, b, seed, step, sample, name: perturb_(w, a, b, seed, step, 0, name)
            )
        original(model, s, t, [g * factor for g in grads])

    monkeypatch.setattr(mezo, "Noise", SameNoise)
    monkeypatch.setattr(mezo, "_update_", update_)
    n, steps = 4, 300
    measured = (estimates(n, steps, GRAD) ** 2).sum(axis=1).mean() / (GRAD @ GRAD)
    expected, variance = second_moment(GRAD.size, n)
    assert abs(measured - expected) > 5 * np.sqrt(variance / steps)


def test_mezo_minimises_a_quadratic():
    target = np.array([1.0, -2.0, 0.5])
    model = Function(np.zeros(3), lambda w: float((w - target) @ (w - target)))
    opt = MeZO(lr=0.05, eps=1e-3, n_samples=4)
    first = opt.step(model, None)
    for _ in range(400):
        last = opt.step(model, None)
    assert first > 5
    assert last < 1e-4
