r"""Is a hand-written backward the derivative of its forward? One call answers.

For `out, cache = forward(*args)` and `grads = backward(dout, cache)`, draw a random `dout` and, for one argument x, a
random direction v. Both sides of

    sum(dout * J v)  =  sum(dx * v)     J the Jacobian of forward with respect to x, dx = J^T dout what backward returns

are numbers. The left one is the slope at t = 0 of t -> sum(dout * forward(x + t v)), measured by central differences;
the right one uses backward. A random direction touches every element at once, so an error of 1% in one term shows
every time, at the price of a few forward passes instead of one per element.

Central differences D(h) = (f(h) - f(-h)) / 2h have an error in h^2, h^4, ...; halving h and combining, (4 D(h/2) -
D(h)) / 3 and so on (Richardson 1911, Ridders 1982), removes one power after the other. In float64 agreement to 1e-9
or better is usual, so the tolerance of 1e-6 leaves no room for a wrong term. float32 is refused: its rounding alone
is 1e-4 here.

This file needs NumPy only and can be copied next to an assignment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GradcheckReport", "check_backward"]

LEVELS = 5  # step sizes eps, eps/2, eps/4, ..


@dataclass(frozen=True)
class GradcheckReport:
    """Outcome of `check_backward`; true where all is well.

    `errors` holds the largest relative error per argument name, `problems` what else was wrong, in words.
    """

    errors: dict[str, float]
    tolerance: float
    problems: tuple[str, ...] = field(default=())

    @property
    def max_error(self) -> float:
        return max(self.errors.values(), default=0.0)

    @property
    def ok(self) -> bool:
        return not self.problems and all(error <= self.tolerance for error in self.errors.values())  # NaN is not <=

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [
            f"{name}: relative error {error:.2e}, "
            + ("fine" if error <= self.tolerance else f"WRONG (tolerance {self.tolerance:g})")
            for name, error in self.errors.items()
        ]
        return "\n".join([*lines, *self.problems])

    def raise_if_wrong(self) -> None:
        """Raise AssertionError with the report as its message unless every gradient is right."""
        if not self.ok:
            raise AssertionError(str(self))


def check_backward(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[..., Any],
    args: Sequence[Any],
    *,
    wrt: Sequence[int | str] | None = None,
    rng: np.random.Generator | None = None,
    n_directions: int = 3,
    eps: float = 1e-2,
    tolerance: float = 1e-6,
) -> GradcheckReport:
    """Compare `backward` with differences of `forward` along random directions, each argument by itself.

    forward(*args) -> (out, cache), out an array or a number; backward(dout, cache) -> one gradient, or a tuple with one
    per entry of `wrt`, in that order. `wrt` names arguments by position or by name; by default all float arrays among
    `args`. They must be float64. eps is the largest step, relative to the argument's root mean square. Arguments
    changed in place, gradients of a wrong shape and a wrong number of gradients are reported as problems.

    The relative error is |measured - claimed| / max(|measured|, |claimed|, norm(gradient)): the norm is what the
    product with a random direction typically amounts to, and keeps an accidental zero from looking like an error. Where
    a gradient is so small that the differences' own rounding exceeds tolerance * gradient (a softmax over one key has
    none at all), that rounding sets the scale.

    >>> square = lambda x: (x * x, x)
    >>> bool(check_backward(square, lambda dout, x: 2 * x * dout, [np.arange(3.0)]))
    True
    >>> wrong = check_backward(square, lambda dout, x: x * dout, [np.arange(3.0)])  # the 2 is missing
    >>> wrong.ok, wrong.errors["x"] > 0.1
    (False, True)
    """
    rng = np.random.default_rng(0) if rng is None else rng
    args = list(args)
    names = _names(forward, args)
    picked = _positions(wrt, names, args)
    before = [np.copy(a) if isinstance(a, np.ndarray) else a for a in args]
    problems: list[str] = []
    errors = {names[i]: 0.0 for i in picked}
    for _ in range(n_directions):
        out, cache = forward(*args)
        dout = _random_like(out, rng)
        grads = backward(dout, cache)
        grads = list(grads) if isinstance(grads, tuple | list) else [grads]
        if len(grads) != len(picked):
            wanted = ", ".join(names[i] for i in picked)
            problem = f"backward returned {len(grads)} gradients, expected one each for {wanted}"
            return GradcheckReport({}, tolerance, (problem,))
        for i, grad in zip(picked, grads, strict=True):
            if np.shape(grad) != args[i].shape:
                problems.append(f"{names[i]}: gradient has shape {np.shape(grad)}, the argument {args[i].shape}")
                errors[names[i]] = np.inf
                continue
            direction = rng.standard_normal(args[i].shape)
            step = eps * (float(np.sqrt(np.mean(args[i] ** 2))) if args[i].size else 1.0) or eps

            def value(t: float, i: int = i, direction: NDArray[Any] = direction, dout: Any = dout) -> float:
                moved = args[i] + t * direction
                return float(np.sum(dout * forward(*args[:i], moved, *args[i + 1 :])[0]))

            measured, claimed = _slope(value, step), float(np.sum(grad * direction))
            rounding = 4 * 2.0**-52 * float(np.sum(np.abs(dout * out))) * 2 ** (LEVELS - 1) / step  # of the measurement
            size = max(abs(measured), abs(claimed), float(np.linalg.norm(grad)), rounding / tolerance)
            error = abs(measured - claimed) / size if size else 0.0
            errors[names[i]] = max(errors[names[i]], error) if error == error else np.nan
    for name, old, new in zip(names, before, args, strict=True):
        if isinstance(old, np.ndarray) and not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            problems.append(f"{name}: changed in place; forward and backward must leave their arguments alone")
    return GradcheckReport(errors, tolerance, tuple(dict.fromkeys(problems)))


def _slope(value: Callable[[float], float], step: float) -> float:
    """Derivative at 0: Richardson's table over halved steps, of which the entry nearest its neighbours is taken."""
    best, smallest = np.nan, np.inf
    previous: list[float] = []
    for level in range(LEVELS):
        h = step / 2**level
        row = [(value(h) - value(-h)) / (2 * h)]
        for k in range(level):  # removes the error's h^2, then h^4, ..
            row.append(row[k] + (row[k] - previous[k]) / (4.0 ** (k + 1) - 1))
            change = max(abs(row[k + 1] - row[k]), abs(row[k + 1] - previous[k]))
            if change < smallest:
                best, smallest = row[k + 1], change
        previous = row
    return best


def _random_like(out: Any, rng: np.random.Generator) -> Any:
    return rng.standard_normal(out.shape) if isinstance(out, np.ndarray) and out.ndim else float(rng.standard_normal())


def _names(forward: Callable[..., Any], args: list[Any]) -> list[str]:
    try:
        names = list(inspect.signature(forward).parameters)[: len(args)]
    except (TypeError, ValueError):
        names = []
    return names if len(names) == len(args) else [f"argument {i}" for i in range(len(args))]


def _positions(wrt: Sequence[int | str] | None, names: list[str], args: list[Any]) -> list[int]:
    if wrt is None:
        picked = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    else:
        for entry in wrt:
            if isinstance(entry, str) and entry not in names:
                raise ValueError(f"wrt: expected names among {', '.join(names)}, got {entry!r}")
        picked = [names.index(entry) if isinstance(entry, str) else entry for entry in wrt]
    for i in picked:
        if getattr(args[i], "dtype", None) != np.float64:
            got = getattr(args[i], "dtype", type(args[i]).__name__)
            raise TypeError(f"{names[i]}: expected a float64 array (float32 is too coarse for differences), got {got}")
    return picked
