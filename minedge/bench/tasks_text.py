"""Decoding, prefill and the start of `generate`: int4 weights, every matrix.

A token of minedge is checked by the NumPy specification with int8 activations, teacher-forced: the specification runs
over the prompt and the tokens that came out, and each token's score there must be the best one but for rounding.
Rounding moves a score by thousandths of the scores' standard deviation (one activation in thousands lands on the other
side of a step of 1/127, and sums are ordered differently); the gap between the best two of V normal scores is about
1 / sqrt(2 ln V) of it, a fifth at V = 50,000. So a gap below `CLOSE` = 1/20 passes: nearer than that, two scores are
a tie that a key/value cache in float16 may decide either way, and a kernel that is wrong is off by whole deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minedge.bench.jobs import config_of
from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.weights import RANK, lora_target
from minedge.bench.worker import Clock, Subject
from minedge.config import Config

__all__ = [
    "ADAPTED", "CHECKED", "CLOSE", "PARTS", "SHORT", "adapted", "check", "decode", "gaps", "greedy", "imports",
    "prefill", "prompt_of", "reference", "start", "text_work",
]  # fmt: skip

CLOSE = 0.05
ADAPTED = f"LoRA r={RANK}"  # the label of decoding with an adapter on queries and values that is not merged
SHORT, CHECKED = 8, 4  # tokens of the short prompt; generated tokens that the specification checks


def imports(job: Mapping[str, Any]) -> None:
    """What loading and generating import."""
    import minedge.api
    import minedge.io.sources
    import minedge.model.generate  # noqa: F401
    from minedge.ops import get

    get(job["backend"])


def prompt_of(config: Config, length: int) -> list[int]:
    """The same random tokens for every competitor."""
    return np.random.default_rng(1).integers(0, config.vocab_size, length).tolist()


def text_work(config: Config, positions: int, context: int, int4: bool = True) -> dict[str, Any]:
    """Facts for the roofline: bytes read and multiply-adds of `positions` tokens in one pass that ends at `context`
    keys, with one row of scores at the end.
    """
    from minedge.model.shapes import head_name, linear_shapes

    shapes = linear_shapes(config)
    head, inner = shapes[head_name(config)], [s for name, s in shapes.items() if name not in _outer(config)]
    weights = sum(out * width for out, width in inner)
    scores = head[0] * head[1]
    seen = context - (positions - 1) / 2  # keys that the average position looks at
    attention = 2 * config.n_layer * seen * config.q_width * positions
    keys = 2 * 2 * config.n_layer * context * config.kv_width  # read once, two bytes a number
    return {
        "bytes": (weights + scores) * (4.5 / 8 if int4 else 4.0) + keys,
        "macs": weights * positions + scores + attention,
        "arithmetic": "int8" if int4 else "float",
    }


def _outer(config: Config) -> tuple[str, str]:
    return config.arch.embed, config.arch.head


def greedy(model: Any, prompt: list[int], n: int) -> Any:
    """An iterator over the likeliest next tokens."""
    from minedge.model.generate import Sampling, generate_ids

    return generate_ids(model, prompt, n, Sampling())


def adapted(model: Any, rank: int) -> Any:
    """The model with an adapter of some rank on queries and values, its B random, too, as after training."""
    import minedge

    model = minedge.lora.add(model, r=rank, lora_alpha=2 * rank, target=lora_target(model.config), seed=0)
    rng, params = np.random.default_rng(3), dict(model.params)
    for name in sorted(params):
        if ".lora_B" in name:
            params[name] = rng.normal(0, 0.02, params[name].shape).astype(np.float32)
    return model.with_params(params)


def _model(job: Mapping[str, Any], backend: str | None) -> Any:
    """The int4 model, with an adapter where the sizes say so."""
    import minedge

    model, rank = minedge.load(job["files"]["int4"], backend=backend), job["sizes"].get("rank", 0)
    return adapted(model, rank) if rank else model


class _Decode(Subject):
    def __init__(self, job: Mapping[str, Any]):
        self.model = _model(job, job["backend"])
        self.config = self.model.config
        context = job["sizes"]["context"]
        self.prompt = prompt_of(self.config, context)
        self.most = self.config.context_length - context
        work = text_work(self.config, 1, context + 16)
        held = self.model.nbytes()["total"] / 1e6
        self.settings = f"int4 group 32, every matrix; {self.model.ops.spec}; {held:.0f} MB of weights"
        self.facts = {"amount": 1.0, "unit": "tokens/s", **work}
        self.outputs = {"prompt": self.prompt, "ids": list(greedy(self.model, self.prompt, min(self.most, 16)))}

    def run(self, units: int, clock: Clock) -> None:
        while units > 0:
            n = min(units, self.most - 1)
            tokens = greedy(self.model, self.prompt, n + 1)
            next(tokens)  # reads the prompt
            with clock.running():
                for _ in range(n):
                    next(tokens)
            units -= n


def decode(job: Mapping[str, Any]) -> Subject:
    """One token at a time behind a prompt of sizes["context"] tokens."""
    return _Decode(job)


class _Prefill(Subject):
    def __init__(self, job: Mapping[str, Any]):
        import minedge

        self.model = minedge.load(job["files"]["int4"], backend=job["backend"])
        length = job["sizes"]["length"]
        self.prompt = prompt_of(self.model.config, length)
        self.settings = f"int4 group 32, every matrix; {self.model.ops.spec}"
        self.facts = {"amount": float(length), "unit": "tokens/s", **text_work(self.model.config, length, length)}
        short = self.prompt[:SHORT]
        ids = [next(greedy(self.model, short, 1)), next(greedy(self.model, self.prompt, 1))]
        self.outputs = {"prompt": short, "ids": ids[:1], "long": self.prompt, "long_ids": ids[1:]}

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                next(greedy(self.model, self.prompt, 1))


def prefill(job: Mapping[str, Any]) -> Subject:
    """A prompt of sizes["length"] tokens, to the first token of the answer."""
    return _Prefill(job)


class _Start(Subject):
    def __init__(self, job: Mapping[str, Any]):
        self.path, self.backend = job["files"]["int4"], job["backend"]
        self.prompt = prompt_of(config_of(job), SHORT)
        self.settings = f"folder with int4 weights, in the page cache; {self.backend or 'default backend'}"
        self.facts = {"amount": 1.0, "unit": "s", "seconds": True}
        self.outputs = {"prompt": self.prompt, "ids": [self._first()]}

    def _first(self) -> int:
        import minedge

        return next(greedy(minedge.load(self.path, backend=self.backend), self.prompt, 1))

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                self._first()


def start(job: Mapping[str, Any]) -> Subject:
    """Open the file, pack the weights, read a short prompt, give one token. Python's imports are not in it."""
    return _Start(job)


def gaps(logits: Any, ids: list[int]) -> list[float]:
    """How far below the best score each token's lies, in standard deviations of that row's scores. logits (n, V)."""
    rows = np.asarray(logits, np.float64)
    chosen = rows[np.arange(len(ids)), ids]
    return ((rows.max(-1) - chosen) / rows.std(-1)).tolist()


def reference(job: Mapping[str, Any]) -> Subject:
    """The specification's scores of the first tokens that came out; of a long prompt, the readable transformer's."""
    given, subject = job["given"], Subject()
    n = min(CHECKED, len(given["ids"]))
    model = _model(job, "numpy")
    before = given["prompt"]
    found = {"gaps": gaps(_scores(model, before + given["ids"][: n - 1], n), given["ids"][:n])}
    if "long" in given:
        found["long_gaps"] = gaps(_scores(model.with_backend(None), given["long"], 1), given["long_ids"])
    subject.outputs = found
    return subject


def _scores(model: Any, tokens: list[int], n: int) -> Any:
    """Logits of the last n positions, (n, V), by the transformer with int8 activations."""
    from minedge.model import transformer

    m, ids = model, np.array([tokens], np.int64)
    x, _ = transformer.forward_hidden(m.config, m.params, m.linears, ids, m.ops, int8=True, keep_cache=False)
    last = np.ascontiguousarray(x[0, -n:])
    return transformer.head_forward(m.config, m.params, m.linears, last, m.ops, int8=True)[0]


def check(who: str, outputs: Outputs, other: Outputs) -> tuple[bool, str]:
    """Of minedge, the reference's gaps; of a peer, its gaps of minedge's tokens."""
    if who != "minedge":  # other: minedge's outputs, which the peer scored
        near, n = sum(gap < CLOSE for gap in outputs["gaps"]), len(outputs["gaps"])
        text = f"{near} of minedge's {n} greedy tokens best or tied, largest gap {max(outputs['gaps']):.3f} sd"
        return near >= 0.75 * n, text  # a peer may round its activations otherwise: agreement is reported, not promised
    said, right = [], True
    for key, by, tokens in (
        ("gaps", "the NumPy specification", "tokens"),
        ("long_gaps", "the readable transformer", "tokens after the long prompt"),
    ):
        if key in other:
            worst = max(other[key])
            right = right and worst < CLOSE
            said.append(f"{len(other[key])} {tokens} by {by}: largest gap {worst:.4f} sd")
    return right, "; ".join(said)


_OURS, _LLAMA, _TORCH = "minedge.bench.tasks_text", "minedge.bench.peers_llama", "minedge.bench.peers_torch"
_REFERENCE = f"{_OURS}:reference"
PARTS = {
    "decode": Part(
        "decode",
        f"one token after another, batch 1, greedy, behind a prompt of {SHORT} tokens; the prompt is not in the time",
        (
            Entry("minedge", f"{_OURS}:decode", ("int4",)),
            Entry("minedge", f"{_OURS}:decode", ("int4",), ADAPTED, {"rank": RANK}, alone=True),
            Entry("llama.cpp", f"{_LLAMA}:decode", ("q4_0",), "Q4_0"),
            Entry("torch", f"{_TORCH}:decode", ("flat",), "generate"),
        ),
        check,
        _REFERENCE,
        {"context": SHORT},
        scores=True,
    ),
    "prefill": Part(
        "prefill",
        "a prompt of 512 tokens (less where the model's context is shorter), to the first token of the answer",
        (
            Entry("minedge", f"{_OURS}:prefill", ("int4",)),
            Entry("llama.cpp", f"{_LLAMA}:prefill", ("q4_0",), "Q4_0"),
            Entry("llama.cpp", f"{_LLAMA}:prefill", ("f16",), "F16"),
            Entry("torch", f"{_TORCH}:prefill", ("flat",)),
        ),
        check,
        _REFERENCE,
        {"length": 512},
        scores=True,
    ),
    "start": Part(
        "start",
        f"from the weights' file to the first token behind a prompt of {SHORT}; Python's imports are not in the time",
        (
            Entry("minedge", f"{_OURS}:start", ("int4",)),
            Entry("llama.cpp", f"{_LLAMA}:start", ("q4_0",), "Q4_0"),
        ),
        check,
        _REFERENCE,
        scores=True,
    ),
}
