"""The properties of DoRA's paper (arXiv:2402.09353) as functions of the module under test; see checks.py."""

from __future__ import annotations

import numpy as np

from minedge.gradcheck import check_backward
from tests.methods.common import NUMPY, model, random_base, tokens

__all__ = ["dora_backward_inverts_forward", "dora_is_its_equation", "dora_starts_as_the_base", "random_dora"]


def random_dora(kind, out: int, width: int, rng: np.random.Generator, dtype=np.float64) -> dict:
    """Parameters of a DoRA kind, adapters of its base included; every number matters."""
    core = kind
    while core.is_adapter:
        core = core.base
    params = random_base(core, out, width, rng, dtype=dtype)
    for name, (shape, _) in kind.shapes("w", out, width).items():
        if name not in params:
            params[name] = rng.normal(size=shape).astype(dtype)
    return params


def dora_is_its_equation(dora, base) -> None:
    """out = x (m V / |V|)^T, V = W + s B A, row by row in float64; rsLoRA's scaling is alpha / sqrt(r)."""
    rng = np.random.default_rng(0)
    for r, alpha, rslora in [(1, 1.0, False), (3, 12.0, False), (4, 2.0, True)]:
        kind = dora.DoRA(base, r=r, lora_alpha=alpha, use_rslora=rslora)
        params = random_dora(kind, 5, 32, rng)
        A, B, m = (params[name] for name in kind.names("w"))
        W, s = np.asarray(base.dense(params, "w", NUMPY), np.float64), alpha / (np.sqrt(r) if rslora else r)
        expected = np.empty((5, 32))
        for o in range(5):
            V = W[o] + s * sum(B[o, i] * A[i] for i in range(r))
            expected[o] = m[o] * V / np.sqrt(sum(v * v for v in V))
        x = rng.normal(size=(2, 3, 32))
        out, _ = kind.forward(x, params, "w", NUMPY)
        np.testing.assert_allclose(out, np.einsum("bti,oi->bto", x, expected), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(kind.dense(params, "w", NUMPY), expected, rtol=1e-6, atol=1e-6)
        lengths = np.linalg.norm(kind.dense(params, "w", NUMPY), axis=1)
        np.testing.assert_allclose(lengths, np.abs(m), rtol=1e-6)


def dora_backward_inverts_forward(dora, base) -> None:
    """Every gradient by differences in float64, |V| held at its value: Eq. 11 takes it as a constant."""
    rng = np.random.default_rng(1)
    params = random_dora(dora.DoRA(base, r=3, lora_alpha=7.0), 32, 32, rng)
    length = dora.DoRA(base, r=3, lora_alpha=7.0).lengths(params, "w", NUMPY)

    class HeldLengths(dora.DoRA):
        def lengths(self, params, name, ops):
            return length

    kind = HeldLengths(base, r=3, lora_alpha=7.0)
    frozen = {"w.qweight", "w.scales", "w.mask", "w.absmax", "w.nested_absmax", "w.nested_offset"}
    names = sorted(params.keys() - frozen)
    assert set(kind.names("w")) <= set(names)
    wanted = frozenset(names)

    def forward(x, *arrays):
        seen = {**params, **dict(zip(names, arrays, strict=True))}
        out, cache = kind.forward(x, seen, "w", NUMPY)
        return out, (cache, seen)

    def backward(dout, cache):
        dx, grads = kind.backward(dout, cache[0], cache[1], "w", NUMPY, wanted)
        assert set(grads) == wanted
        return (dx, *(grads[n] for n in names))

    check_backward(forward, backward, [rng.normal(size=(2, 3, 32)), *(params[n] for n in names)]).raise_if_wrong()


def dora_starts_as_the_base(dora) -> None:
    """B = 0 and m = |W|: every row is scaled by exactly 1, so the product is the base's bit for bit."""
    m = model()
    name = "model.layers.0.self_attn.q_proj"
    kind = dora.DoRA(m.linears[name], r=4)
    params = {**m.params, **kind.start(m.params, name, (64, 64), 3, NUMPY)}
    magnitude = params[f"{name}.lora_magnitude_vector.default.weight"]
    np.testing.assert_allclose(magnitude, np.linalg.norm(m.params[f"{name}.weight"], axis=1), rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(2, 12, 64)).astype(np.float32)
    assert tokens().shape == x.shape[:2]
    assert (
        kind.forward(x, params, name, NUMPY)[0].tobytes()
        == m.linears[name].forward(x, params, name, NUMPY)[0].tobytes()
    )
