r"""AdamW over a model, gradients clipped by their global norm, and gradient accumulation that is exact.

    opt = AdamW(model, weight_decay=0.1, clip=1.0)          # model from `model.trainable()`
    loss, grads = accumulate(model, [(tokens, loss_mask), ...])
    norm = opt.step(grads, lr=3e-4)                          # changes model's arrays in place

One step t = 1, 2, ... on every trainable array w with gradient g (Loshchilov & Hutter, arXiv:1711.05101, Alg. 2):

    norm = sqrt(sum over all arrays of g^2);   g <- g * min(1, clip / norm)                 arXiv:1211.5063, Alg. 1
    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    w <- w - lr * decay * w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Decay is for matrices (ndim >= 2): pulling a norm's weight or a bias towards zero only changes the scale of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.errors import DivergedError, UsageError

__all__ = ["AdamW", "accumulate", "constrain_"]

Array = NDArray[Any]
Batch = tuple[Array, "Array | None"]


class AdamW:
    """The optimizer's state: two moments for every trainable number, and how many steps were made."""

    def __init__(
        self,
        model: Any,
        beta1: float = 0.9,
        beta2: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ):
        model.require_trainable()
        for name in sorted(model.trainable_names):
            if model.params[name].dtype not in (np.float32, np.float64):
                raise UsageError(
                    f"model: expected float32 trainable arrays, got {model.params[name].dtype} ({name}); "
                    "model.with_params takes {name: array.astype('float32')}"
                )
        self.model = model
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.weight_decay, self.clip = weight_decay, clip
        self.steps = 0
        self.m = {name: np.zeros_like(model.params[name]) for name in sorted(model.trainable_names)}
        self.v = {name: np.zeros_like(model.params[name]) for name in sorted(model.trainable_names)}

    def step(self, grads: Mapping[str, Array], lr: float) -> float:
        """Change the model's trainable arrays in place; return the norm of the gradient before clipping.

        Raises `DivergedError`, with nothing changed, where a gradient is not finite.
        """
        ops, params = self.model.ops, self.model.params
        squares = {name: ops.sum_squares(grads[name]) for name in grads}  # each one added up in float64
        norm = math.sqrt(math.fsum(squares.values())) if all(map(math.isfinite, squares.values())) else math.inf
        if not math.isfinite(norm):
            # `grads` is in the order of the backward pass: the first one found is nearest to where things went wrong.
            bad = next(name for name in grads if not math.isfinite(squares[name]))
            raise DivergedError(f"the gradient of {bad} is not finite")
        scale = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        self.steps += 1
        for name in self.m:
            w, g = params[name], grads[name]
            decay = self.weight_decay if w.ndim >= 2 else 0.0
            ops.adamw_(
                w,
                g,
                self.m[name],
                self.v[name],
                lr,
                self.beta1,
                self.beta2,
                self.eps,
                decay,
                self.steps,
                grad_scale=scale,
            )
        constrain_(self.model)
        return norm

    def state_dict(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Everything to go on from, bit for bit: (arrays by name, numbers for JSON). The arrays are the live ones."""
        arrays = {f"m.{name}": a for name, a in self.m.items()} | {f"v.{name}": a for name, a in self.v.items()}
        return arrays, {"steps": self.steps}

    def load_state_dict(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; `UsageError` where it belongs to other arrays."""
        for moments, prefix in ((self.m, "m."), (self.v, "v.")):
            for name, own in moments.items():
                saved = arrays.get(prefix + name)
                if saved is None or saved.shape != own.shape or saved.dtype != own.dtype:
                    got = "nothing" if saved is None else f"{saved.dtype} {saved.shape}"
                    raise UsageError(f"optimizer state: expected {own.dtype} {own.shape} for {prefix}{name}, got {got}")
                moments[name] = saved
        self.steps = int(numbers["steps"])


def accumulate(model: Any, batches: Sequence[Batch], checkpoint: bool = False) -> tuple[float, dict[str, Array]]:
    """Loss and gradients of the one large batch that the micro-batches would make together.

    Averaging the means of micro-batches would weigh a token in a short one more than a token in a long one. Here each
    one is divided by the same number, the sum of all masks, so they simply add up (exact up to the order of additions).
    """
    if len(batches) == 1:
        return model.loss_and_grads(*batches[0], checkpoint=checkpoint)
    normalizer = math.fsum(_weight(tokens, mask) for tokens, mask in batches)
    losses: list[float] = []
    total: dict[str, Array] = {}
    for tokens, mask in batches:
        if not _weight(tokens, mask):
            continue  # nothing to predict in this one
        loss, grads = model.loss_and_grads(tokens, mask, normalizer=normalizer, checkpoint=checkpoint)
        losses.append(loss)
        if not total:
            total = grads
        else:
            for name, grad in grads.items():
                total[name] += grad
        del grads
    if not losses:
        raise UsageError("loss_mask: expected at least one token to predict in the batch, got none; check the data")
    return math.fsum(losses), total


def _weight(tokens: Array, mask: Array | None) -> float:
    """Sum of the mask where it counts: column 0 has nothing before it to be predicted from."""
    if mask is None:
        return float(tokens.shape[0] * (tokens.shape[1] - 1))
    return float(np.asarray(mask)[:, 1:].sum(dtype=np.float64))


def constrain_(model: Any) -> None:
    """Let linear kinds put their trained arrays back on their constraint (pruned weights stay zero), in place."""
    # A parameter's name begins with its module's name: "a.b.weight" may belong to "a" or "a.b".
    words = (name.split(".") for name in model.trainable_names)
    heads = {".".join(parts[:k]) for parts in words for k in range(1, len(parts))}
    for module in sorted(heads & set(model.linears)):
        model.linears[module].constrain_(model.params, module, model.ops)
