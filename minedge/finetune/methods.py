"""How a batch becomes a step: AdamW on gradients, or MeZO on losses. The trainer drives both in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minedge.errors import DivergedError
from minedge.finetune.optim import AdamW, Batch, accumulate
from minedge.finetune.schedule import learning_rate
from minedge.finetune.train_config import TrainConfig
from minedge.model import transformer

__all__ = ["Gradients", "Method", "Perturbations", "make_method", "where_not_finite"]

Array = NDArray[Any]


class Method(Protocol):
    """One way to change a model's trainable arrays in place."""

    def rate(self, step: int) -> float: ...

    def step(self, step: int, batches: Sequence[Batch]) -> tuple[float, float | None]: ...

    def state_dict(self) -> tuple[dict[str, Array], dict[str, Any]]: ...

    def load_state_dict(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None: ...


def make_method(model: Any, config: TrainConfig) -> Method:
    """The method that `config` names, over a model from `trainable()`."""
    return Perturbations(model, config) if config.method == "mezo" else Gradients(model, config)


class Gradients:
    """Backward pass, then AdamW."""

    def __init__(self, model: Any, config: TrainConfig) -> None:
        c = config
        self.model, self.config = model, config
        self.optimizer = AdamW(model, c.beta1, c.beta2, c.adam_eps, float(c.weight_decay or 0.0), c.clip or None)

    def rate(self, step: int) -> float:
        c = self.config
        return learning_rate(step, c.iters, float(c.learning_rate or 0.0), c.warmup, str(c.schedule), c.final_ratio)

    def step(self, step: int, batches: Sequence[Batch]) -> tuple[float, float | None]:
        """-> loss, norm of the gradient. `DivergedError`, with nothing changed, where either is not finite."""
        loss, grads = accumulate(self.model, batches, self.config.grad_checkpoint)
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss}; not finite first: {where_not_finite(self.model, batches)}")
        return loss, self.optimizer.step(grads, self.rate(step))

    def state_dict(self) -> tuple[dict[str, Array], dict[str, Any]]:
        return self.optimizer.state_dict()

    def load_state_dict(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(arrays, numbers)


class Perturbations:
    """MeZO: two forward passes a sample."""

    def __init__(self, model: Any, config: TrainConfig) -> None:
        from minedge.finetune.mezo import MeZO

        c = config
        self.model = model
        self.optimizer = MeZO(
            lr=float(c.learning_rate or 0.0), eps=c.eps, seed=c.seed, weight_decay=float(c.weight_decay or 0.0),
            n_samples=c.n_samples, schedule=str(c.schedule), total_steps=c.iters if c.schedule == "linear" else None,
            int8=c.int8,
        )  # fmt: skip

    def rate(self, step: int) -> float:
        return self.optimizer.settings.learning_rate(step)

    def step(self, step: int, batches: Sequence[Batch]) -> tuple[float, float | None]:
        """-> loss, None: the norm of the gradient is not known."""
        try:
            return self.optimizer.step(self.model, list(batches)), None
        except DivergedError as error:
            raise DivergedError(f"{error}; not finite first: {where_not_finite(self.model, batches)}") from None

    def state_dict(self) -> tuple[dict[str, Array], dict[str, Any]]:
        state = self.optimizer.state_dict()
        return {"projected_grads": state["projected_grads"]}, {"log": state["log"]}

    def load_state_dict(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict({"log": numbers["log"], "projected_grads": arrays["projected_grads"]})


def where_not_finite(model: Any, batches: Iterable[Batch]) -> str:
    """The first array, or else the first layer in the forward pass's order, that is not finite on these batches."""
    for name, array in model.params.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"the weights {name}"
    for tokens, _ in batches:
        with np.errstate(all="ignore"):
            found = _first_layer(model, np.ascontiguousarray(tokens[:, :-1]))
        if found is not None:
            return found
    return "the logits or the loss (all weights and layers are finite)"


def _first_layer(model: Any, tokens: Array) -> str | None:
    """Run the model cut off after 0, 1, 2, ... layers: a shorter model is the same arrays under another config."""
    for count in range(model.config.n_layer + 1):
        cut = replace(model.config, n_layer=count) if count else None
        if cut is None:
            embed = model.config.arch.embed
            x = model.linears[embed].rows(tokens, model.params, embed, model.ops)
        else:
            x, _ = transformer.forward_hidden(cut, model.params, model.linears, tokens, model.ops, keep_cache=False)
        if not np.isfinite(x).all():
            return (
                f"the output of {model.config.arch.layer.format(i=count - 1)}"
                if count
                else "the embedding of the tokens"
            )
    return None
