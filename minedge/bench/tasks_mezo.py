"""MeZO steps: over all weights, and over an adapter on int4 weights; with what they are made of, measured beside them.

The check is the specification's own way: z from the NumPy generator, w + eps z and w - eps z as whole copies of the
weights, a plain loss on each. A loss of float32 arithmetic differs between tiers by a few u = 2^-24 of itself, here at
most `LOSS` of it, and the projected gradient is a difference of two over 2 eps, so it may differ by LOSS * loss / eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.tasks_train import batches_of, imports, pass_macs
from minedge.bench.weights import RANK, lora_target
from minedge.bench.worker import Clock, Subject

__all__ = ["EPS", "LOSS", "LR", "PARTS", "forward", "imports", "mezo", "numbers", "reference"]

LR, EPS = 1e-6, 1e-3
LOSS = 2e-6


def _model(job: Mapping[str, Any], backend: str | None) -> Any:
    import minedge

    if "int4" not in job["files"]:
        return minedge.load(job["files"]["dense"], backend=backend)
    model = minedge.load(job["files"]["int4"], backend=backend)
    return minedge.lora.add(model, r=RANK, lora_alpha=2 * RANK, target=lora_target(model.config), seed=0)


def _batch(job: Mapping[str, Any], model: Any) -> Any:
    return batches_of(model.config, job["sizes"]["batch_size"], job["sizes"]["seq_len"])[0]


def _facts(job: Mapping[str, Any], model: Any, passes: float) -> dict[str, Any]:
    batch, length = job["sizes"]["batch_size"], job["sizes"]["seq_len"]
    macs = passes * pass_macs(model.config, batch, length)
    return {"amount": float(batch * length), "unit": "tokens/s", "macs": macs, "arithmetic": "float"}


class _MeZO(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import minedge

        base = _model(job, job["backend"])
        self.tokens, self.model = _batch(job, base), base.trainable()
        over = "an adapter on int4 weights" if "int4" in job["files"] else "all weights, float32"
        self.settings = f"{over}; {base.ops.spec}"
        self.facts = _facts(job, base, 2)
        del base
        self.optimizer = minedge.mezo.MeZO(lr=LR, eps=EPS, seed=0)
        loss = self.model.loss(self.tokens)
        mean = self.optimizer.step(self.model, self.tokens)
        self.outputs = {"loss": loss, "mean": mean, "projected_grad": self.optimizer.log.projected_grads[0]}

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self.optimizer.step(self.model, self.tokens)


def mezo(job: Mapping[str, Any]) -> Subject:
    """One draw a step: two losses and the update."""
    return _MeZO(job)


class _Forward(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import minedge

        kind = "int4" if "int4" in job["files"] else "dense"
        self.model = minedge.load(job["files"][kind], backend=job["backend"])
        self.tokens = _batch(job, self.model)
        self.settings = f"the loss alone, {kind}; {self.model.ops.spec}"
        self.facts = _facts(job, self.model, 1)
        self.outputs = {"loss": self.model.loss(self.tokens)}

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self.model.loss(self.tokens)


def forward(job: Mapping[str, Any]) -> Subject:
    """What a step has two of."""
    return _Forward(job)


class _Numbers(Subject):
    def __init__(self, job: Mapping[str, Any]):
        model = _model(job, job["backend"])
        self.sizes = [(model.params[name].size, i) for i, name in enumerate(sorted(model.trainable_names))]
        self.ops = model.ops
        total = sum(size for size, _ in self.sizes)
        self.settings = f"{total:,} normal numbers, made and dropped; {self.ops.spec}"
        self.facts = {"amount": _facts(job, model, 0)["amount"], "unit": "tokens/s"}
        self.outputs = {"numbers": self.ops.normal(0, 0, 0, 7, 0, 4096).tolist()}

    def run(self, units: int, clock: Clock) -> None:
        for _ in range(units):
            for size, i in self.sizes:
                for start in range(0, size, 1 << 20):  # in pieces that fit the caches: what is timed is the generator
                    with clock.running():
                        self.ops.normal(0, 0, 0, i, start, min(1 << 20, size - start))


def numbers(job: Mapping[str, Any]) -> Subject:
    """The generator's own time for one z."""
    return _Numbers(job)


def reference(job: Mapping[str, Any]) -> Subject:
    """Loss, mean of the two losses and projected gradient, with whole perturbed copies."""
    from minedge.model.noise import tensor_ids
    from minedge.ops import get

    model, spec = _model(job, None), get("numpy")
    tokens, ids = _batch(job, model), tensor_ids(model.trainable_names)
    losses = []
    for eps in (EPS, -EPS):
        moved = {name: spec.perturb(model.params[name], eps, 0, 0, 0, ids[name]) for name in ids}
        losses.append(model.with_params({**model.params, **moved}).loss(tokens))
        del moved
    subject = Subject()
    subject.outputs = {
        "loss": model.loss(tokens), "mean": sum(losses) / 2, "projected_grad": (losses[0] - losses[1]) / (2 * EPS),
        "numbers": spec.normal(0, 0, 0, 7, 0, 4096).tolist(),
    }  # fmt: skip
    return subject


def _check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    if "numbers" in outputs:
        same = "numbers" not in other or outputs["numbers"] == other["numbers"]
        return same, "4,096 numbers bit-equal to the NumPy specification's"
    off = abs(outputs["loss"] / other["loss"] - 1)
    if "mean" not in outputs or who != "minedge":  # the forward alone; a peer draws other numbers
        return off < 1e-5, f"loss within {off:.1e} of {'the reference' if who == 'minedge' else 'minedge'}"
    off = max(off, abs(outputs["mean"] / other["mean"] - 1))
    allowed = LOSS * other["loss"] / EPS
    apart = abs(outputs["projected_grad"] - other["projected_grad"])
    right = off < 1e-5 and apart <= allowed
    return right, (
        f"losses within {off:.1e}, projected gradient {outputs['projected_grad']:.4f} within {apart:.1e} of that of "
        "whole perturbed copies from the NumPy generator"
    )


_OURS, _PEERS = "minedge.bench.tasks_mezo", "minedge.bench.peers_torch"


def _entries(kind: str, peer: Entry) -> tuple[Entry, ...]:
    return (
        Entry("minedge", f"{_OURS}:mezo", (kind,)),
        Entry("minedge", f"{_OURS}:forward", (kind,), "forward alone", alone=True),
        Entry("minedge", f"{_OURS}:numbers", (kind,), "generator alone", alone=True),
        peer,
    )


PARTS = {
    "mezo": Part(
        "mezo",
        "a MeZO step of all weights, one draw; beside it one forward pass, and the generator's time for one z",
        _entries("dense", Entry("torch", f"{_PEERS}:mezo", ("dense",))),
        _check,
        f"{_OURS}:reference",
        needs="mezo",
    ),
    "mezo-lora": Part(
        "mezo-lora",
        f"a MeZO step of an adapter of rank {RANK} on queries and values over int4 weights (peft: over float32)",
        _entries("int4", Entry("peft", "minedge.bench.peers_peft:mezo", ("flat",))),
        _check,
        f"{_OURS}:reference",
    ),
}
