"""Planted bugs in the plan, the engine, sessions and the rounding of caches: the properties of tests/engine catch them.

None of them makes C read or write where it must not: that would end this process, and is what tests/kernels is about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from planting import mutated_module

from minedge.model import engine, generate, plan, session
from minedge.model.generate import Sampling, generate_ids
from minedge.ops.numpy_ops import attention_decode
from minedge.ops.numpy_ops.attention_decode import kv_round
from tests.engine.models import make, readable

TOKENS = np.random.default_rng(0).integers(0, 37, (2, 20))
BOTH = {"plan": plan, "engine": engine, "session": session, "generate": generate, "attention_decode": attention_decode}


def engine_is_the_readable_decoder(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whichever of plan and engine `module` is a copy of."""
    cls = engine.Engine
    if hasattr(module, "Engine"):
        cls = module.Engine
    else:
        monkeypatch.setattr(engine, "compile_plan", module.compile_plan)
    for architecture, kind in (
        ("qwen3", "lora on int4"),
        ("gpt2", "dense"),
        ("qwen2", "int8"),
        ("llama", "two loras on int4"),
    ):
        model = make(architecture, kind)
        reader = cls(model, 2, 20, "float16", chunk=7 if kind == "dense" else 30)
        got = np.concatenate(
            [reader.step(TOKENS[:, :9]).reshape(2, 1, -1), reader.step(TOKENS[:, 9:], last=2).reshape(2, 2, -1)], 1
        )
        want = readable(model, TOKENS, [9], "float16")[:, [8, 18, 19]]
        assert got.tobytes() == np.ascontiguousarray(want).tobytes(), (architecture, kind)


def session_reads_only_what_is_new(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    kept = module.Session(model)
    for text, read in (([1, 2, 3, 4], 4), ([1, 2, 3, 4], 1), ([1, 2, 9, 4], 2), ([1, 2, 9, 4, 5], 1)):
        assert kept.read(text).tobytes() == module.Session(model).read(text).tobytes()
        assert kept.reads[-1] == read


def prompts_are_independent(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, s = make(), [[1, 2, 3], [4], [5] * 30], Sampling(1.0)
    alone = [list(generate_ids(model, prompt, 12, s)) for prompt in prompts]
    assert module.generate_many(model, prompts, 12, s) == alone
    ending = replace(model, config=replace(model.config, eos_token_id=alone[0][3]))
    assert module.generate_many(ending, prompts, 12, s) == [list(generate_ids(ending, p, 12, s)) for p in prompts]


def cache_rounds_as_specified(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification against the sentence that describes it: nearest multiples of d, ties away from zero."""
    x = np.random.default_rng(1).normal(0, 2, (50, 8)).astype(np.float32)
    x[0] = np.float32([127, 0.5, 1.5, -2.5, 3.5, -0.5, 0, 4.5])
    got = module.kv_round(x, "int8")
    d = np.abs(x).max(-1, keepdims=True) / 127
    assert (np.abs(got - x) <= d * 0.500001).all()
    assert got[0].tolist() == [127, 1, 2, -3, 4, -1, 0, 5]
    assert (module.kv_round(x, "float16") == x.astype(np.float16)).all()
    assert kv_round(np.zeros((1, 4), np.float32), "int8").tolist() == [[0, 0, 0, 0]]


class Bug(NamedTuple):
    name: str
    module: str
    old: str
    new: str
    check: Any


ENGINE, SESSION, MANY, ROUND = (
    engine_is_the_readable_decoder, session_reads_only_what_is_new, prompts_are_independent, cache_rounds_as_specified,
)  # fmt: skip
BUGS = [
    Bug("codes outlive what they were made of", "plan", "        self.rounded.discard(out)\n", "", ENGINE),
    Bug("keys are not turned", "plan", 'self.add("rotary", "k", ("k",)', 'self.add("rotary", "y", ("k",)', ENGINE),
    Bug("the residual is lost", "plan", '("z", "x"), n=C', '("z", "z"), n=C', ENGINE),
    Bug("an adapter is not scaled", "plan", "value=float(kind.scaling)", "value=1.0", ENGINE),
    Bug("switched-off adapters add", "plan", "if not kind.active:", "if kind.active:", ENGINE),
    Bug("q, k and v are the same columns", "plan", "                start += width\n", "", ENGINE),
    Bug("no bias", "plan", "if has_bias(self.config, name):", "if not name:", ENGINE),
    Bug("one norm for q and k", "plan", "config.layer_name(i, a.k_norm)", "config.layer_name(i, a.q_norm)", ENGINE),
    Bug(
        "the first adapter only",
        "plan",
        "        for add in self.later:\n",
        "        for add in self.later[:1]:\n",
        ENGINE,
    ),
    Bug(
        "logits of the wrong rows",
        "engine",
        "range(first + wanted - start, first + stop - start)",
        "range(wanted - start, stop - start)",
        ENGINE,
    ),
    Bug(
        "a sequence starts over",
        "engine",
        "self.lengths[slot] += stop - start",
        "self.lengths[slot] = stop - start",
        ENGINE,
    ),
    Bug("all sequences in one slot", "engine", "self.lengths[slot], slot)\n", "self.lengths[slot], 0)\n", ENGINE),
    Bug("the last token is not read again", "session", "len(text) - last)", "len(text))", SESSION),
    Bug("what differs is kept", "session", "        self.reader.truncate(keep)\n", "", SESSION),
    Bug(
        "a common beginning is one token short", "session", "return int(np.argmax", "return -1 + int(np.argmax", SESSION
    ),
    Bug(
        "prompts draw from one generator",
        "generate",
        "for _ in prompts]\n    made",
        "for _ in prompts[:1]] * len(prompts)\n    made",
        MANY,
    ),
    Bug(
        "the end of a text is part of it",
        "generate",
        "                continue\n            made[i]",
        "                pass\n            made[i]",
        MANY,
    ),
    Bug("one token too many", "generate", "and len(made[i]) < rooms[i]", "and len(made[i]) <= rooms[i]", MANY),
    Bug(
        "halves to even",
        "attention_decode",
        "np.trunc(scaled + np.copysign(np.float32(0.5), scaled))",
        "np.rint(scaled)",
        ROUND,
    ),
    Bug("a scale of 1/128", "attention_decode", "np.float32(levels)).astype", "np.float32(levels + 1)).astype", ROUND),
    Bug("one scale for all vectors", "attention_decode", "max(axis=-1, keepdims=True)", "max(keepdims=True)", ROUND),
]


@pytest.mark.parametrize("check", [ENGINE, SESSION, MANY, ROUND])
def test_the_real_ones_pass(check, monkeypatch):
    for module in {bug.module for bug in BUGS if bug.check is check}:
        check(BOTH[module], monkeypatch)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_caught(bug, monkeypatch):
    module = mutated_module(BOTH[bug.module].__name__, bug.old, bug.new)
    with pytest.raises(Exception):  # noqa: B017  (an assertion, or what the broken code runs into)
        bug.check(module, monkeypatch)
