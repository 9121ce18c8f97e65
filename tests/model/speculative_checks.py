"""What speculative decoding promises, as functions of the module under test, so that planted bugs can be tried."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import minedge
from minedge.model.generate import Sampling, generate_ids
from minedge.ops import available

__all__ = [
    "BACKENDS",
    "PROMPT",
    "choice_has_the_targets_distribution",
    "counts_are_those_of_a_replay",
    "end_of_text_ends_it",
    "own",
    "random_model",
    "text_is_the_targets_own",
]

BACKENDS = [name for name, reason in available().items() if not reason]
SIZES = dict(vocab_size=37, n_layer=2, n_embd=64, n_head=4, n_inner=96, context_length=64)
PROMPT = [3, 1, 4, 1, 5]


def random_model(backend: str = BACKENDS[-1], seed: int = 0, architecture: str = "llama", **changes) -> minedge.Model:
    kv = {} if architecture == "gpt2" else {"n_kv_head": 2}
    config = minedge.Config(**{**SIZES, **kv, "architecture": architecture, **changes})
    model, rng = minedge.init(config, backend=backend), np.random.default_rng(seed)
    return model.with_params({k: (v + rng.normal(0, 0.1, v.shape)).astype(np.float32) for k, v in model.params.items()})


def near(model: minedge.Model, scale: float = 0.03) -> minedge.Model:
    """A draft that is right about half the time: the model with noise on its weights."""
    rng = np.random.default_rng(8)
    return model.with_params({k: v + rng.normal(0, scale, v.shape).astype(v.dtype) for k, v in model.params.items()})


def own(model: minedge.Model, n: int = 100) -> list[int]:
    return list(generate_ids(model, PROMPT, n, Sampling()))


def text_is_the_targets_own(speculative: Any) -> None:
    target = random_model()
    want = own(target)
    for draft in (near(target), random_model(seed=1), target):
        for n, n_draft in [(100, 4), (20, 3), (4, 4), (3, 2), (1, 4), (0, 4)]:
            got = list(speculative.generate_ids_speculative(target, draft, PROMPT, n, n_draft))
            assert got == want[:n], (n, n_draft)


def counts_are_those_of_a_replay(speculative: Any) -> None:
    """Passes, proposals and accepted ones as from texts of the draft that start anew for every pass."""
    target = random_model()
    draft, want = near(target), own(target)
    for g in (1, 3, 5):
        at, passes, proposed, accepted = 1, 1, 0, 0  # the first pass reads the prompt and gives one token
        while at < len(want):
            n = min(g, len(want) - at - 1)
            guesses = list(generate_ids(draft, [*PROMPT, *want[:at]], n, Sampling()))
            right = next((i for i, token in enumerate(guesses) if token != want[at + i]), n)
            at, passes, proposed, accepted = at + right + 1, passes + 1, proposed + n, accepted + right
        assert 0.2 < accepted / proposed < 0.9
        counts = speculative.DraftCounts()
        assert list(speculative.generate_ids_speculative(target, draft, PROMPT, 100, g, counts=counts)) == want
        assert (counts.passes, counts.proposed, counts.accepted) == (passes, proposed, accepted)
        assert counts.accepted_share == accepted / proposed


def choice_has_the_targets_distribution(speculative: Any) -> None:
    """A guess from q, then `_choose`: shares as p says, within five standard errors; the guess stays as often as any
    rule can keep it, sum min(p, q).
    """
    rng, n = np.random.default_rng(0), 20_000
    pairs = [(rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))) for _ in range(3)]
    pairs += [(np.eye(6)[2], np.eye(6)[3]), (np.eye(6)[2], pairs[0][0]), (pairs[0][0], np.eye(6)[2])]
    pairs.append((np.array([0.5, 0.5, 0, 0, 0, 0]), np.array([0, 0, 0.25, 0.25, 0.5, 0])))
    for p, q in [*pairs, (pairs[0][0], pairs[0][0])]:
        guesses = rng.choice(6, n, p=q)
        tokens = np.array([speculative._choose(p, q, int(guess), rng) for guess in guesses])
        share = np.bincount(tokens, minlength=6) / n
        assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
        most = np.minimum(p, q).sum()
        assert abs((tokens == guesses).mean() - most) <= 5 * np.sqrt(most * abs(1 - most) / n) + 1e-9


def end_of_text_ends_it(speculative: Any) -> None:
    """At any place of a draft: guessed and meant, guessed and not meant, meant and not guessed."""
    plain = random_model()
    made = own(plain)
    for place in range(1, 8):
        eos = made[place]
        target = replace(plain, config=replace(plain.config, eos_token_id=eos))
        want = made[: made.index(eos)]
        for draft in (target, plain, near(target), random_model(seed=1, eos_token_id=made[0])):
            for n_draft in (1, 2, 3, 5):
                got = list(speculative.generate_ids_speculative(target, draft, PROMPT, 100, n_draft))
                assert got == want
