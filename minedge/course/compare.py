"""Is the answer what was expected, and if not, where does it differ first: in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["difference", "shapes"]


def difference(name: str, expected: Any, got: Any, tolerance: float) -> str:
    """ "" where `got` equals `expected` to tolerance * max|expected|, else one line that says how it differs.

    Integers, booleans and texts have to be equal, and a tolerance of 0 asks that of floats too. Lists and dicts are
    compared part by part.
    """
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            return f"{name}: expected {len(expected)} named values, got {_what(got)}"
        if set(expected) != set(got):
            odd = sorted(set(map(str, expected)) ^ set(map(str, got)))[0]
            return f"{name}: {'missing' if odd in expected else 'unexpected'} entry {odd!r}"
        lines = (difference(f"{name}[{key!r}]", value, got[key], tolerance) for key, value in expected.items())
        return next(filter(None, lines), "")
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)):
            return f"{name}: expected {len(expected)} values, got {_what(got)}"
        if len(expected) != len(got):
            return f"{name}: expected {len(expected)} values, got {len(got)}"
        pairs = enumerate(zip(expected, got, strict=True))
        return next(filter(None, (difference(f"{name}[{i}]", a, b, tolerance) for i, (a, b) in pairs)), "")
    if expected is None or isinstance(expected, (str, bool)):
        same = type(expected) is type(got) and expected == got
        return "" if same else f"{name}: expected {_shown(expected)}, got {_shown(got)}"
    return _numbers(name, np.asarray(expected), got, tolerance)


def _numbers(name: str, expected: np.ndarray, got: Any, tolerance: float) -> str:
    if isinstance(got, (list, tuple)) or not isinstance(got, (np.ndarray, int, float)):
        return f"{name}: expected {_what(expected)}, got {_what(got)}"
    answer = np.asarray(got)
    if answer.shape != expected.shape:
        return f"{name}: expected shape {expected.shape}, got {answer.shape}"
    floats = expected.dtype.kind == "f"
    if expected.ndim and floats != (answer.dtype.kind == "f"):
        return f"{name}: expected dtype {expected.dtype}, got {answer.dtype}"
    if not expected.size:
        return ""
    a, b = np.atleast_1d(expected.astype(np.float64)), np.atleast_1d(answer.astype(np.float64))
    with np.errstate(all="ignore"):
        gap = np.abs(a - b)
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0  # equal infinities have no difference that is a number
    gap = np.where(np.isnan(gap), np.inf, gap)
    finite = np.abs(a[np.isfinite(a)])
    allowed = tolerance * max(1e-3, float(finite.max(initial=0.0))) if floats else 0.0
    bad = gap > allowed
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape)) if expected.ndim else ()
    place = f"{name}[{', '.join(map(str, at))}]" if at else name
    told = f"{place}: expected {_number(expected[at])}, got {_number(answer[at])}"
    return told if bad.size == 1 else f"{told} ({int(bad.sum())} of {bad.size} differ)"


def shapes(case: Mapping[str, Any]) -> str:
    """The arguments in short: arrays by shape, small values as they are."""
    return ", ".join(f"{name} {_brief(value)}" for name, value in case.items())


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.shape)
    if isinstance(value, (list, tuple)) and any(isinstance(item, (np.ndarray, list, tuple, dict)) for item in value):
        return "[" + ", ".join(_brief(item) for item in value[:4]) + (", .." if len(value) > 4 else "") + "]"
    if isinstance(value, Mapping):
        if "architecture" in value:
            return str(value["architecture"])
        return f"of {len(value)} entries" if len(value) > 3 else "{" + ", ".join(map(str, value)) + "}"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.shape}" if value.ndim else "a number"
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, (str, bool, int, float, type(None))) else _what(value)


def _number(value: Any) -> str:
    return f"{float(value):.6g}" if np.asarray(value).dtype.kind == "f" else str(value)
