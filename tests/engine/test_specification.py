"""The engine against the NumPy specification, teacher-forced: logits as near as rounding explains, and the same next
token wherever the two best are further apart than twice that.

Rounding to int8 codes jumps, so a bound by worst cases, step after step, says nothing after a layer (it reaches 10^6 on
these models). What rounding does to a model is measured instead: the specification runs `RUNS` times with every op's
result moved at random by `NOISE` roundings of float32, and the bound is `SLACK` times the largest change of any logit.
Each step by itself is held to a derived bound by tests/ops and, bit for bit to its op, by test_plan.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minedge.model import transformer
from minedge.model.engine import Engine
from minedge.model.kvcache import KVCache
from tests.engine.models import ARCHITECTURES, KINDS, make

U, NOISE, RUNS, SLACK = 2.0**-24, 4.0, 24, 4.0  # a code near the middle of two flips in a few runs of 24
T = 24


class Noisy:
    """NumPy's ops, whose float32 results are off by a few roundings."""

    def __init__(self, ops: Any, seed: int):
        self._ops, self._rng = ops, np.random.default_rng(seed)

    def _moved(self, a: np.ndarray) -> np.ndarray:
        return (a * (1 + NOISE * U * self._rng.normal(size=a.shape))).astype(np.float32)

    def __getattr__(self, op: str) -> Any:
        function = getattr(self._ops, op)

        def moved(*args: Any, **options: Any) -> Any:
            found = function(*args, **options)
            if isinstance(found, tuple):
                return (self._moved(found[0]), *found[1:]) if found[0].dtype == np.float32 else found
            return self._moved(found)

        return moved


def specified(model: Any, tokens: np.ndarray, ops: Any, kv_dtype: str) -> np.ndarray:
    kv = KVCache(model.config, 1, T, rounding=kv_dtype)
    run = transformer.forward
    return run(model.config, model.params, model.linears, tokens[None], ops, kv=kv, int8=True, keep_cache=False)[0][0]


def gaps(engine: Any, architecture: str, kind: str, kv_dtype: str) -> tuple[float, int, int]:
    """(largest error as a share of the bound, tokens that the bound decides, all tokens); the deciding ones agree."""
    worst, decided, total = 0.0, 0, 0
    for seed in range(3):
        model = make(architecture, kind, seed, n_layer=1 + seed % 2)
        tokens, ops = np.random.default_rng(seed).integers(0, 37, T), model.with_backend("numpy").ops
        want = specified(model, tokens, ops, kv_dtype)
        runs = [specified(model, tokens, Noisy(ops, i), kv_dtype) for i in range(RUNS)]
        bound = SLACK * max(float(np.abs(run - want).max()) for run in runs)
        got = engine(model, 1, T, kv_dtype).step(tokens[None], last=T)
        worst = max(worst, float(np.abs(got - want).max()) / bound)
        best = np.sort(want, axis=-1)
        sure = best[:, -1] - best[:, -2] > 2 * bound
        assert (got.argmax(-1) == want.argmax(-1))[sure].all()
        decided, total = decided + int(sure.sum()), total + T
    return worst, decided, total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_specification(architecture, kind):
    for kv_dtype in ("float32", "int8"):
        worst, decided, total = gaps(Engine, architecture, kind, kv_dtype)
        assert worst <= 1, f"the error is {worst:.3g} times what rounding explains"
        assert decided >= total / 3, f"the bound decides only {decided} of {total} tokens"
