"""The properties of several adapters on one base, as functions of the module under test; see checks.py."""

from __future__ import annotations

import numpy as np

from tests.methods.common import model

__all__ = ["stacking_is_exact"]

Q = "model.layers.0.self_attn.q_proj"


def stacking_is_exact(lora) -> None:
    """The stacked change is sum of w s B A: to float64's rounding."""
    rng = np.random.default_rng(0)
    m = model(n_layer=1)
    settings = {"a": (2, 4.0, 0.7), "b": (3, 6.0, -0.3), "c": (4, 1.0, 2.0)}
    for name, (r, alpha, _) in settings.items():
        m = lora.add(m, r=r, lora_alpha=alpha, target="q_proj", adapter=name)
    params = {n: rng.normal(size=a.shape) if ".lora_" in n else a for n, a in m.params.items()}
    m = m.with_params(params)
    expected = np.zeros((64, 64))
    for name, (r, alpha, weight) in settings.items():
        A, B = params[f"{Q}.lora_A.{name}.weight"], params[f"{Q}.lora_B.{name}.weight"]
        expected += weight * alpha / r * B @ A
    one = lora.stack(m, {name: weight for name, (_, _, weight) in settings.items()})
    kind = one.linears[Q]
    assert (kind.r, kind.adapter, kind.base) == (9, "stacked", model(n_layer=1).linears[Q])
    A, B = (one.params[n] for n in kind.names(Q))
    error = np.abs(kind.scaling * B @ A - expected).max() / np.abs(expected).max()
    assert error < 1e-14, error
