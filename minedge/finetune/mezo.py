r"""MeZO: fine-tuning with forward passes only.

Malladi et al., Fine-Tuning Language Models with Just Forward Passes, arXiv:2305.17333, Algorithm 1, on the gradient
estimate SPSA of Spall (1992). Draw z ~ N(0, 1) for each trainable number, look at the loss on both sides, step along z:

    projected_grad g = (L(w + eps z) - L(w - eps z)) / (2 eps)        about z . grad L, the slope along z
    w <- decay * w - (lr / n) * sum_j g_j z_j                          n_samples = n independent draws

Why it works: E[z z^T] = I, so E[g z] = grad L for small eps. What it costs: the estimate is noisy. With n draws of
Gaussian z in d dimensions E|1/n sum_j g_j z_j|^2 = (d + n + 1) / n * |grad L|^2. The paper's Lemma 2 has d + n - 1
there, because its z lies on the sphere of radius sqrt(d); code that draws Gaussian numbers, theirs and this, has + 1.

Where this differs from the authors' code:
- Weights are never written to perturb them. The forward passes take a `Noise` and see w + eps z; nothing has to be
  restored and nothing drifts (there, +eps, -2 eps, +eps leaves 45% of the float32 weights changed).
- z comes from a counter-based generator specified to the bit (minedge/ops/numpy_ops/noise.py). So seed and one float32
  per draw are the whole run: `save_log`, `load_log` and `replay` give bit-identical weights on any tier and any CPU.
- Both looks go through the model side by side, so each z is made twice a step, for the looks and for the update.
- Losses of micro-batches combine as sum / sum of mask, so accumulation gives the loss of the whole batch.
- Weight decay touches matrices only (ndim >= 2): no bias and no norm weight, whatever its name.

The update in float32, stated because `replay` depends on it. At step t = 0, 1, ... with lr_t in float64, for every
trainable tensor and j = 0 .. n-1 in turn:
    w = fl32(fl32(decay * w) + fl32(scale * z_j))      scale = fl32(-lr_t * g_j / n)
    decay = fl32(1 - lr_t * weight_decay) for j = 0 on matrices, else 1
Then every linear kind puts its arrays back on its constraint (the masks of pruning).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from minedge.errors import DivergedError, UsageError
from minedge.finetune.mezo_log import Log, Settings, header_of, load_log, log_from, save_log
from minedge.model.hashes import weights_hash
from minedge.model.model import Model
from minedge.model.noise import Noise, tensor_ids

__all__ = ["Log", "MeZO", "Settings", "load_log", "replay", "save_log"]

AnyModel = TypeVar("AnyModel", bound=Model)
Batches = Sequence[tuple[Any, Any]]  # [(tokens (B, T), loss_mask (B, T) or None), ...]


class MeZO:
    """Zeroth-order optimizer: two forward passes per draw, no gradients, no state beside `log`.

    lr, weight_decay >= 0; eps > 0, the distance of the two looks; n_samples, draws per step; schedule "constant", or
    "linear" from lr at step 0 to zero at total_steps. UsageError on other values.

    int8 takes products with int4 and int8 matrices over activations rounded to int8, as decoding does. The losses of
    both looks then err, and their difference by much more than it does otherwise: on the bundled model in int4 under an
    adapter the projected gradient's error is 0.41 of its own standard deviation at eps = 1e-3 and 0.045 at 1e-2
    (24 draws, c tier). So it is off unless asked for, and is asked for with a larger eps. Replay needs no forward pass
    and does not care.

    >>> MeZO(lr=1e-6, eps=1e-3, seed=0).log.steps
    0
    """

    def __init__(
        self,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        n_samples: int = 1,
        schedule: str = "constant",
        total_steps: int | None = None,
        int8: bool = False,
    ):
        self.int8 = int8
        self.settings = Settings(lr, eps, seed, weight_decay, n_samples, schedule, total_steps)
        self.log = Log(self.settings)

    def step(self, model: Model, tokens: Any, loss_mask: Any = None) -> float:
        """Change the trainable weights of `model` in place; return the loss, the mean over all forward passes.

        model: from `model.trainable()`. tokens (B, T) and loss_mask (B, T) as in `model.loss`, or a list of
        micro-batches [(tokens, loss_mask), ...]. DivergedError on a loss that is not finite, UsageError on a model
        without writable trainable weights or another one than before; either way no weight has been touched.
        """
        batches = _micro_batches(tokens, loss_mask)
        self._begin(model)
        s, t = self.settings, self.log.steps
        losses: list[float] = []
        projected_grads: list[float] = []
        looks = _Looks(model, self.int8)
        for sample in range(s.n_samples):
            # BEGIN SOLUTION a4.3
            plus = _loss(looks, batches, Noise(s.seed, t, s.eps, model.trainable_names, sample))
            minus = _loss(looks, batches, Noise(s.seed, t, -s.eps, model.trainable_names, sample))
            with np.errstate(over="ignore", invalid="ignore"):  # reported below, as an error
                projected_grad = float(np.float32((plus - minus) / (2 * s.eps)))
                scale = np.float32(s.learning_rate(t) * projected_grad)
            # END SOLUTION
            if not np.isfinite([plus, minus, projected_grad, scale]).all():
                raise DivergedError(
                    f"MeZO step {t}: loss {plus:.6g} at w + eps*z and {minus:.6g} at w - eps*z, projected gradient "
                    f"{projected_grad:.6g}; the weights are those before this step; try a smaller lr"
                )
            losses += [plus, minus]
            projected_grads.append(projected_grad)
        _update_(model, s, t, projected_grads)
        self.log.projected_grads += projected_grads
        return math.fsum(losses) / len(losses)

    def _begin(self, model: Model) -> None:
        """Check that `model` can be stepped, and at the first step record the weights that the run starts from."""
        model.require_trainable()
        for name in model.trainable_names:
            if model.params[name].dtype not in (np.float32, np.float64):
                dtype = model.params[name].dtype
                raise UsageError(
                    f"model: expected float32 trainable weights, got {dtype} ({name}); convert them with "
                    "array.astype('float32') in model.with_params, or train other ones"
                )
        signature = _signature(model)
        if not self.log.base_sha256:
            self.log.base_sha256, self.log.trainable_sha256 = weights_hash(model.params), signature
        elif signature != self.log.trainable_sha256:
            raise UsageError("model: its trainable names or shapes are not those of the first step; make a new MeZO")

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on bit for bit: {"log": JSON-able header, "projected_grads": float32 array}."""
        return {"log": header_of(self.log), "projected_grads": np.array(self.log.projected_grads, np.float32)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; UsageError if it was made with other hyperparameters, since a log holds one set only."""
        log = log_from(state["log"], np.asarray(state["projected_grads"], np.float32), "MeZO state")
        for name in (item.name for item in fields(Settings)):
            old, new = getattr(log.settings, name), getattr(self.settings, name)
            if old != new:
                raise UsageError(f"{name}: the run to resume has {old!r}, got {new!r}; take the same or start anew")
        self.log = log


def _micro_batches(tokens: Any, loss_mask: Any) -> Batches:
    if not (isinstance(tokens, list) and tokens and all(isinstance(item, tuple) for item in tokens)):
        return [(tokens, loss_mask)]
    if loss_mask is not None or any(len(item) != 2 for item in tokens):
        raise UsageError("tokens: expected micro-batches [(tokens, loss_mask), ...] and no other loss_mask")
    counted = [(t, mask) for t, mask in tokens if mask is None or np.asarray(mask)[..., 1:].any()]
    return counted or tokens  # one that predicts nothing adds nothing; if none does, the model says so


class _Looks:
    """`model.loss_sum`, where a look at w + eps z takes the one at w - eps z with it and remembers it until it is asked
    for: side by side the two passes make each z once (minedge/model/both_sides.py).
    """

    def __init__(self, model: Model, int8: bool):
        self.model, self.int8 = model, int8
        self.seen: dict[Any, tuple[float, float]] = {}

    def loss_sum(self, tokens: Any, loss_mask: Any, noise: Noise) -> tuple[float, float]:
        found = self.seen.pop((id(tokens), id(loss_mask), noise), None)
        if found is None:
            plus, minus, weight = self.model.loss_sums(tokens, loss_mask, noise, self.int8)
            self.seen[id(tokens), id(loss_mask), replace(noise, eps=-noise.eps)] = minus, weight
            found = plus, weight
        return found


def _loss(model: Model | _Looks, batches: Batches, noise: Noise) -> float:
    """Sum of weighted losses / sum of weights over all micro-batches: the loss of the batch they were cut from."""
    pairs = [model.loss_sum(tokens, loss_mask, noise=noise) for tokens, loss_mask in batches]
    # BEGIN SOLUTION a4.4
    if not all(math.isfinite(total) for total, _ in pairs):
        return math.nan
    return math.fsum(total for total, _ in pairs) / math.fsum(weight for _, weight in pairs)
    # END SOLUTION


def _update_(model: Model, s: Settings, t: int, projected_grads: Sequence[float]) -> None:
    """Update t of the weights, in place; its float32 operations are stated at the head of this file."""
    ops, lr, ids = model.ops, s.learning_rate(t), tensor_ids(frozenset(model.trainable_names))
    for name in sorted(ids):
        weight = model.params[name]
        # BEGIN SOLUTION a4.5
        decay = 1 - lr * s.weight_decay if weight.ndim >= 2 else 1.0
        for sample, projected_grad in enumerate(projected_grads):
            scale = -lr * projected_grad / s.n_samples
            ops.perturb_(weight, decay if sample == 0 else 1.0, scale, s.seed, t, sample, ids[name])
        # END SOLUTION
    for module, kind in model.linears.items():
        kind.constrain_(model.params, module, ops)


def replay(model: AnyModel, log: Log) -> AnyModel:
    """Make a fine-tuned model again from its base `model` and the log: no data, no forward pass. Returns a new Model.

    Its weights are bit-identical to those of the run. UsageError if `model` is not what the run started from.
    """
    if log.base_sha256 and weights_hash(model.params) != log.base_sha256:
        raise UsageError("model: its weights are not those that the log starts from (their SHA-256 differs)")
    if log.trainable_sha256 and _signature(model) != log.trainable_sha256:
        raise UsageError("model: its trainable names or shapes are not those of the log; choose the same ones first")
    # BEGIN SOLUTION a4.6
    new, n = model.trainable(), log.settings.n_samples
    for t in range(log.steps):
        _update_(new, log.settings, t, log.projected_grads[t * n : (t + 1) * n])
    return new.freeze()
    # END SOLUTION


def _signature(model: Model) -> str:
    """SHA-256 over the sorted trainable names with their shapes."""
    lines = [f"{name} {model.params[name].shape}\n" for name in sorted(model.trainable_names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
