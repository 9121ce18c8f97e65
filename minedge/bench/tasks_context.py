"""Decoding behind a long past, and behind none: what attention takes of a step.

The past is not read, it is made: random keys and values fill the cache, the same for a competitor and its check, so
that 4,096 tokens need no minutes of reading before a turn. Time does not depend on their numbers. Keys are long
(`SPREAD`), which makes attention choose a few of the 4,096 places: over even weights the values would average out, and
a wrong kernel with them.

The check: the NumPy specification (transformer.py, one op at a time, keys and values rounded to float16 as the cache
keeps them) reads the same tokens behind the same past; every layer and every token of the past is in its scores. A
peer, which has to read a real prompt, is checked by minedge's tokens behind the short one, as in decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from minedge.bench.parts import Entry, Part
from minedge.bench.tasks_text import CHECKED, SHORT, check, gaps, greedy, imports, prompt_of, text_work
from minedge.bench.worker import Clock, Subject

__all__ = ["EMPTY", "PARTS", "imports", "make", "reference"]

SPREAD = 3.0  # standard deviation of the past's keys: scores with queries of about 1 are then 3 wide
MOST = 64  # tokens in a row before the past is put back to its length
EMPTY = "short past"  # the label of decoding behind `SHORT` tokens


def _model(job: Mapping[str, Any], backend: str | None) -> Any:
    """The int4 model, made to hold the past where its positions are turned angles, which have no end."""
    import minedge

    model, past = minedge.load(job["files"]["int4"], backend=backend), job["sizes"]["context"]
    room = max(model.config.context_length, past + MOST)
    return replace(model, config=replace(model.config, context_length=room)) if model.config.uses_rotary else model


def _with_past(model: Any, past: int, readable: bool = False) -> Any:
    """A reader whose only sequence holds `past` random tokens, float16."""
    from minedge.model.engine import Engine
    from minedge.model.reader import Readable, open_reader

    length = min(past + MOST, model.config.context_length)
    reader: Any = Readable(model, 1, length, "float16") if readable else open_reader(model, 1, length, "float16")
    shape, rng = (past, model.config.n_kv_head, model.config.head_dim), np.random.default_rng(2)
    for i in range(model.config.n_layer):
        keys = (rng.standard_normal(shape, np.float32) * np.float32(SPREAD)).astype(np.float16)
        values = rng.standard_normal(shape, np.float32).astype(np.float16)
        if isinstance(reader, Engine):
            reader.caches[i].fill(0, {"k": keys, "v": values})
        else:
            reader.caches[0].k[i][0, :past], reader.caches[0].v[i][0, :past] = keys, values
    if isinstance(reader, Engine):
        reader.lengths[0] = past
    else:
        reader.caches[0].length = past
    return reader


class _Context(Subject):
    def __init__(self, job: Mapping[str, Any]):
        model, self.past = _model(job, job["backend"]), job["sizes"]["context"]
        self.reader, self.vocab = _with_past(model, self.past), model.config.vocab_size
        (self.first,) = prompt_of(model.config, 1)
        self.settings = f"int4 group 32, float16 past of {self.past:,} random tokens; {model.ops.spec}"
        self.facts = {"amount": 1.0, "unit": "tokens/s", "past": self.past, **text_work(model.config, 1, self.past)}
        ids = [self.first]
        for _ in range(CHECKED):
            ids.append(self._next(ids[-1]))
        prompt = prompt_of(model.config, SHORT)
        self.outputs = {"past_ids": ids, "prompt": prompt, "ids": list(greedy(model, prompt, 16))}
        self.most = self.reader.max_length - self.past

    def _next(self, token: int) -> int:
        return int(self.reader.step([[token]])[0].argmax())

    def run(self, units: int, clock: Clock) -> None:
        while units > 0:
            self.reader.truncate(self.past)
            n, token = min(units, self.most), self.first
            with clock.running():
                for _ in range(n):
                    token = self._next(token)
            units -= n


def make(job: Mapping[str, Any]) -> Subject:
    """Decoding behind sizes["context"] tokens."""
    return _Context(job)


def reference(job: Mapping[str, Any]) -> Subject:
    """The specification's scores of the tokens that came out behind the same past."""
    model, subject, ids = _model(job, "numpy"), Subject(), job["given"]["past_ids"]
    scores = _with_past(model, job["sizes"]["context"], readable=True).step([ids[:-1]], len(ids) - 1)
    subject.outputs = {"gaps": gaps(scores, ids[1:])}
    return subject


_OURS = "minedge.bench.tasks_context"
PARTS = {
    "context": Part(
        "context",
        f"one token after another behind 4096 tokens, and beside it behind {SHORT}: what attention adds",
        (
            Entry("minedge", f"{_OURS}:make", ("int4",)),
            Entry("minedge", f"{_OURS}:make", ("int4",), EMPTY, {"context": SHORT}, alone=True),
            Entry("llama.cpp", "minedge.bench.peers_llama:decode", ("q4_0",), "Q4_0"),
        ),
        check,
        f"{_OURS}:reference",
        {"context": 4096},
        scores=True,
    ),
}
