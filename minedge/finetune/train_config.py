"""Settings of a training run: every knob of `minedge.train`, checked before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

from minedge.config import did_you_mean, integer
from minedge.errors import UsageError
from minedge.finetune.schedule import SCHEDULES

__all__ = ["METHODS", "TrainConfig"]

METHODS = ("full", "lora", "mezo")
_LEARNING_RATE = {"full": 3e-4, "lora": 1e-3}
# MeZO on all weights, and on an adapter: the largest of the paper's grids that serve OPT and RoBERTa-large
# (arXiv:2305.17333, App. E). Its models have 355 million weights and more; smaller ones learn slowly at these rates
# and bear ten times as much (the bundled model on its task, 400 steps of 8 x 64: validation loss 7.95 -> 7.06 and 4.02
# at 1e-6 and 1e-5, on an adapter 6.21 and 4.53 at 1e-4 and 1e-3).
_MEZO_RATE, _MEZO_ADAPTER_RATE = 1e-6, 1e-4
_MEZO_SMALL, _MEZO_SMALL_FACTOR = 100_000_000, 10
_LORA_KEYS = ("r", "lora_alpha", "target", "use_rslora", "use_dora")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. None means: the method's usual value, filled in on construction (MeZO's learning rate, which
    depends on what is trained, by `for_model`).

    method         "full" (AdamW on the model's trainable arrays), "lora" (AdamW on an adapter), "mezo" (forward only)
    iters          optimizer steps
    batch_size     rows in a micro-batch; grad_accum micro-batches make one step
    seq_len        tokens a row; seq_len - 1 of them are predicted
    grad_checkpoint  make a layer's activations a second time in backward instead of keeping them: the same result in
                   less memory, a third slower
    learning_rate  the highest; schedule "cosine", "linear" or "constant", after `warmup` steps, to `final_ratio` of it
    weight_decay, beta1, beta2, adam_eps, clip      AdamW; clip is the largest global norm of a gradient, 0 for none
    lora           {"r", "lora_alpha", "target", "use_rslora", "use_dora"} of the adapter to add where there is none
    eps, n_samples MeZO: size of the perturbation, draws a step
    int8           MeZO: products over int8 activations where the weights are int4 or int8; take eps = 1e-2 then
    seed           of batches, adapter and perturbations
    eval_every     steps between evaluations on validation data, 0 for never; eval_batches of them, 0 for all
    save_every     steps between checkpoints, 0 for only those of a better validation loss and the last
    patience       stop after so many evaluations without a better one, 0 for never
    keep           checkpoints kept beside the best one

    Raises `UsageError` naming the setting.
    """

    method: str = "full"
    iters: int = 1000
    batch_size: int = 16
    seq_len: int = 128
    learning_rate: float | None = None
    schedule: str | None = None
    warmup: int = 0
    final_ratio: float = 0.1
    weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.99
    adam_eps: float = 1e-8
    clip: float = 1.0
    grad_accum: int = 1
    grad_checkpoint: bool = False
    lora: Mapping[str, Any] | None = None
    eps: float = 1e-3
    n_samples: int = 1
    int8: bool = False
    seed: int = 0
    eval_every: int = 100
    eval_batches: int = 0
    save_every: int = 500
    patience: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        mezo, set_ = self.method == "mezo", object.__setattr__
        if self.learning_rate is None and not mezo:
            set_(self, "learning_rate", _LEARNING_RATE[self.method])
        if self.schedule is None:
            set_(self, "schedule", "constant" if mezo else "cosine")
        if self.weight_decay is None:
            set_(self, "weight_decay", 0.1 if self.method == "full" else 0.0)
        _one_of("schedule", self.schedule, ("constant", "linear") if mezo else SCHEDULES)
        for name, low in (
            ("iters", 1),
            ("batch_size", 1),
            ("seq_len", 2),
            ("grad_accum", 1),
            ("n_samples", 1),
            ("keep", 1),
        ):
            set_(self, name, integer(name, getattr(self, name), low))
        for name in ("grad_checkpoint", "int8"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.int8 and not mezo:
            raise UsageError("int8: rounded activations have no gradient; it belongs to method mezo")
        for name in ("warmup", "seed", "eval_every", "eval_batches", "save_every", "patience"):
            set_(self, name, integer(name, getattr(self, name), 0))
        for name in ("learning_rate", "weight_decay", "clip", "eps", "adam_eps", "final_ratio", "beta1", "beta2"):
            value = getattr(self, name)
            if name == "learning_rate" and value is None:
                continue
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
            if not 0 <= number < math.inf:
                raise UsageError(f"{name}: expected a finite number >= 0, got {value!r}")
            set_(self, name, number)
        for name in ("eps", "adam_eps"):
            if getattr(self, name) == 0:
                raise UsageError(f"{name}: expected a number > 0, got 0")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise UsageError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.final_ratio > 1:
            raise UsageError(f"final_ratio: expected a number in [0, 1], got {self.final_ratio}")
        if self.warmup > self.iters:
            raise UsageError(f"warmup: expected at most iters = {self.iters} steps, got {self.warmup}")
        if mezo and self.warmup:
            raise UsageError(f"warmup: MeZO's log has no warm-up, expected 0, got {self.warmup}")
        if self.lora is not None:
            if not isinstance(self.lora, Mapping):
                raise UsageError(f"lora: expected settings such as {{'r': 8}}, got {self.lora!r}")
            for key in self.lora:
                if key not in _LORA_KEYS:
                    raise UsageError(
                        f"lora: unknown setting {key!r}{did_you_mean(str(key), list(_LORA_KEYS))}; "
                        f"known: {', '.join(_LORA_KEYS)}"
                    )
            plain = {k: list(v) if isinstance(v, (tuple, set, frozenset)) else v for k, v in self.lora.items()}
            set_(self, "lora", plain)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TrainConfig:
        """Make one from named options; an unknown name is a `UsageError` with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                raise UsageError(
                    f"unknown training option {key!r}{did_you_mean(str(key), known)}; known: {', '.join(known)}"
                )
        return cls(**options)

    def for_model(self, model: Any) -> TrainConfig:
        """With MeZO's learning rate filled in: 1e-6 on all weights, 1e-4 on an adapter, ten times that on models of
        less than 100 million weights.
        """
        if self.learning_rate is not None:
            return self
        adapter = self.lora is not None or any(kind.is_adapter for kind in model.linears.values())
        rate = _MEZO_ADAPTER_RATE if adapter else _MEZO_RATE
        return replace(self, learning_rate=rate * (_MEZO_SMALL_FACTOR if model.n_params() < _MEZO_SMALL else 1))

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `TrainConfig.of` reads it back."""
        return asdict(self)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(
            f"{name}: expected one of {', '.join(allowed)}, got {value!r}{did_you_mean(str(value), list(allowed))}"
        )
