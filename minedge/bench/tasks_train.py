"""Training steps: forward, backward, clipping by the global norm, AdamW; of all weights, or of an adapter.

minedge runs the step that `minedge.train` runs, on batches that are made before. The check: the loss of the first
step, and of the second, which is the loss after one update and so depends on every gradient. Adam's first step is the
learning rate times the gradient's sign, so a gradient that is rounding noise may move its weight either way: that
moves the second loss in its fifth digit, and `RTOL` allows for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from minedge.bench.jobs import config_of
from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.weights import RANK, lora_target
from minedge.bench.worker import Clock, Subject
from minedge.config import Config

__all__ = [
    "ADAPTER", "FULL", "PARTS", "RTOL", "batches_of", "full", "imports", "lora", "pass_macs", "reference",
]  # fmt: skip

RTOL = 2e-4
FULL = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "adam_eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
ADAPTER = {**FULL, "weight_decay": 0.0}
N_BATCHES = 4


def imports(job: Mapping[str, Any]) -> None:
    """What a training step imports."""
    import minedge.api
    import minedge.finetune.lora
    import minedge.finetune.methods
    import minedge.finetune.mezo
    import minedge.io.sources  # noqa: F401
    from minedge.ops import get

    get(job["backend"])


def batches_of(config: Config, batch_size: int, seq_len: int) -> list[Any]:
    """Random rows of seq_len + 1 tokens: seq_len are predicted."""
    rng = np.random.default_rng(2)
    return [rng.integers(0, config.vocab_size, (batch_size, seq_len + 1)) for _ in range(N_BATCHES)]


def pass_macs(config: Config, batch_size: int, seq_len: int) -> float:
    """Multiply-adds of one forward pass with all scores."""
    from minedge.bench.tasks_text import text_work
    from minedge.model.shapes import head_name, linear_shapes

    out, width = linear_shapes(config)[head_name(config)]
    one_row = text_work(config, seq_len, seq_len)["macs"] + (seq_len - 1.0) * out * width
    return float(batch_size * one_row)


class _Step(Subject):
    """`passes`: how many forward passes' multiply-adds a step is worth."""

    def __init__(self, job: Mapping[str, Any], model: Any, settings: Mapping[str, Any], passes: float, what: str):
        from minedge.finetune.heap import keep_freed_memory
        from minedge.finetune.methods import make_method
        from minedge.finetune.train_config import TrainConfig

        batch, length = job["sizes"]["batch_size"], job["sizes"]["seq_len"]
        self.batches, self.steps = batches_of(model.config, batch, length), 0
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(keep_freed_memory())  # as minedge.train has it around its loop
        self.method = make_method(
            model.trainable(), TrainConfig(method="full", schedule="constant", iters=10**6, **settings)
        )
        self.settings = f"{what}; {batch} x {length}; {model.ops.spec}"
        macs = passes * pass_macs(model.config, batch, length)
        self.facts = {"amount": float(batch * length), "unit": "tokens/s", "macs": macs, "arithmetic": "float"}
        self.outputs = {"losses": [self.step() for _ in range(job["sizes"].get("losses", 2))]}

    def step(self) -> float:
        self.steps += 1
        batch = self.batches[(self.steps - 1) % N_BATCHES]
        return self.method.step(self.steps - 1, [(batch, None)])[0]

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self.step()


def full(job: Mapping[str, Any]) -> Subject:
    """All weights; the backward pass costs two forward passes."""
    import minedge

    return _Step(job, minedge.load(job["files"]["dense"], backend=job["backend"]), FULL, 3, "all weights, float32")


def lora(job: Mapping[str, Any]) -> Subject:
    """An adapter; the base's weights need no gradients, so the backward pass costs about one forward pass."""
    import minedge

    model = minedge.load(job["files"]["dense"], backend=job["backend"])
    model = minedge.lora.load_adapter(model, job["files"]["lora"])
    names = frozenset(name for name in model.params if ".lora_" in name)
    target = ", ".join(lora_target(config_of(job)))
    what = f"adapter of rank {RANK} on {target}, float32"
    return _Step(job, model.with_params(model.params, trainable_names=names), ADAPTER, 2, what)


def reference(job: Mapping[str, Any]) -> Subject:
    """The same two losses from the NumPy specification."""
    found = (lora if "lora" in job["files"] else full)({**job, "backend": "numpy"})
    subject = Subject()
    subject.outputs = found.outputs
    return subject


def _check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    mine, theirs = np.array(outputs["losses"]), np.array(other["losses"])
    worst = float(np.abs(mine / theirs - 1).max())
    against = "the NumPy specification" if who == "minedge" else "minedge"
    return bool(worst <= RTOL), f"losses before and after an update within {worst:.1e} of those of {against}"


_OURS, _TORCH = "minedge.bench.tasks_train", "minedge.bench.peers_torch"
PARTS = {
    "train": Part(
        "train",
        "a step of all weights: forward, backward, clipping, AdamW; rows x tokens as the settings say",
        (
            Entry("minedge", f"{_OURS}:full", ("dense",)),
            Entry("torch", f"{_TORCH}:train", ("dense",)),
        ),
        _check,
        f"{_OURS}:reference",
        needs="full",
    ),
    "lora": Part(
        "lora",
        f"a step of an adapter of rank {RANK} on queries and values over frozen float32 weights",
        (
            Entry("minedge", f"{_OURS}:lora", ("dense", "lora")),
            Entry("peft", "minedge.bench.peers_peft:lora", ("dense", "lora")),
        ),
        _check,
        f"{_OURS}:reference",
        needs="lora",
    ),
}
