r"""DoRA: train a weight's direction by a low-rank change and its rows' lengths by themselves (Liu et al., Weight-
Decomposed Low-Rank Adaptation, arXiv:2402.09353).

    V = W + scaling * B A          out = x (m * V / |V|)^T          m = lora_magnitude_vector (out,)          (Eq. 5)

|V| is the length of each row of V (a column in the paper, which writes weights (in, out)). At first B = 0 and m = |W|,
so the model is the base. In the gradient |V| counts as a constant (sec. 4.3, Eq. 11): the direction learns as LoRA
does, each row scaled by m / |V|, and no gradient flows through the lengths. PEFT does the same.

With g = m / |V|, one number a row, `out = g * (x W^T + scaling * x A^T B^T)`: the base's own product, whatever it is
stored as. Only the lengths need V itself, so each pass makes W dense for a moment; for text generation merge the
adapter. Among several adapters a DoRA adapter counts, like any other, with its change of the weight below all of them,
m * V / |V| - W.

Deviation: a row of V that is all zero has no direction; it gets g = 1, where the paper divides by zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.finetune.lora import LoRA
from minedge.model.linears import Params, Shapes, core, register
from minedge.ops import Ops

__all__ = ["DoRA"]

Array = NDArray[Any]


@register("dora")
@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA's parameters and `name.lora_magnitude_vector.<adapter>.weight` (out,)."""

    def names(self, name: str) -> tuple[str, ...]:
        return (*super().names(name), f"{name}.lora_magnitude_vector.{self.adapter}.weight")

    def shapes(self, name: str, out_features: int, in_features: int) -> Shapes:
        a_name, b_name, m_name = self.names(name)
        own: Shapes = {
            a_name: ((self.r, in_features), "float32"),
            b_name: ((out_features, self.r), "float32"),
            m_name: ((out_features,), "float32"),
        }
        return {**self.base.shapes(name, out_features, in_features), **own}

    def start(self, params: Params, name: str, shape: tuple[int, int], seed: int, ops: Ops) -> dict[str, Array]:
        """A random, B zero, m the lengths of the weight's rows."""
        m_name = self.names(name)[2]
        own = LoRA(r=self.r, adapter=self.adapter).start(params, name, shape, seed, ops)
        return {**own, m_name: self.lengths({**params, **own}, name, ops).astype(np.float32)}

    def forward(self, x: Array, params: Params, name: str, ops: Ops, int8: bool = False) -> tuple[Array, tuple]:
        out, base_cache = self.base.forward(x, params, name, ops, int8)
        if not self.active:
            return out, (base_cache,)
        a_name, b_name, m_name = self.names(name)
        plain, core_cache = out, None
        if self.base.is_adapter:  # `out` holds other adapters' changes, which m is not about
            plain, core_cache = core(self.base).forward(x, params, name, ops, int8)
        h, a_cache = ops.linear_forward(x, params[a_name])  # (..., r)
        total, b_cache = ops.linear_forward(h * self.scaling, params[b_name])  # (..., out)
        total += plain  # x V^T
        length = self.lengths(params, name, ops)  # (out,)
        g = _divided(params[m_name], length, 1)
        out = out - plain + g * total if self.base.is_adapter else g * total
        return out, (base_cache, core_cache, a_cache, b_cache, total, length, g)

    def backward(
        self, dout: Array, cache: tuple, params: Params, name: str, ops: Ops, wanted: frozenset[str]
    ) -> tuple[Array, dict[str, Array]]:
        if not self.active:
            return self.base.backward(dout, cache[0], params, name, ops, wanted)
        base_cache, core_cache, a_cache, b_cache, total, length, g = cache
        a_name, b_name, m_name = self.names(name)
        dtotal = dout * g  # inverts g * total, g a constant but for m
        if self.base.is_adapter:  # inverts out - plain, plain a part of total too
            dx, grads = self.base.backward(dout, base_cache, params, name, ops, wanted)
            dx_core, core_grads = core(self.base).backward(dtotal - dout, core_cache, params, name, ops, wanted)
            dx += dx_core
            grads.update({key: grads[key] + grad if key in grads else grad for key, grad in core_grads.items()})
        else:
            dx, grads = self.base.backward(dtotal, base_cache, params, name, ops, wanted)
        dh, db = ops.linear_backward(dtotal, b_cache, need_dweight=b_name in wanted)  # inverts h * scaling -> total
        dx_a, da = ops.linear_backward(dh * self.scaling, a_cache, need_dweight=a_name in wanted)  # inverts x -> h
        dx += dx_a
        dm = None
        if m_name in wanted:
            dg = np.einsum("no,no->o", dout.reshape(-1, len(g)), total.reshape(-1, len(g)))  # (out,)
            dm = _divided(dg, length, 0)  # inverts m -> g
        grads.update({key: grad for key, grad in ((a_name, da), (b_name, db), (m_name, dm)) if grad is not None})
        return dx, grads

    def direction(self, params: Params, name: str, ops: Ops) -> tuple[Array, Array]:
        """W, the weight below all adapters, and V = W + scaling * B @ A; both (out, in)."""
        weight = core(self.base).dense(params, name, ops)
        a_name, b_name, _ = self.names(name)
        v = (self.scaling * params[b_name]) @ params[a_name]
        v += weight
        return weight, v

    def lengths(self, params: Params, name: str, ops: Ops) -> Array:
        """|V|, (out,)."""
        v = self.direction(params, name, ops)[1]
        return np.sqrt(np.einsum("oi,oi->o", v, v))

    def change(self, params: Params, name: str, ops: Ops) -> Array:
        """m * V / |V| - W, (out, in)."""
        weight, v = self.direction(params, name, ops)
        g = _divided(params[self.names(name)[2]], self.lengths(params, name, ops), 1)
        v *= g[:, None]
        v -= weight
        return v


def _divided(a: Array, b: Array, otherwise: float) -> Array:
    """a / b, and `otherwise` where b is 0."""
    return np.divide(a, b, out=np.full_like(a, otherwise), where=b != 0)
