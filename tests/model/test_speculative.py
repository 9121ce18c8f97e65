"""Speculative decoding: the target's own greedy text or distribution whatever the draft is, in as many passes as
the formula says.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minedge import quant
from minedge.data.tokenizer import Tokenizer
from minedge.errors import UsageError
from minedge.model import speculative, transformer
from minedge.model.generate import Sampling, generate_ids, probabilities
from minedge.model.kvcache import KVCache
from minedge.model.speculative import DraftCounts, generate_ids_speculative
from tests.model import speculative_checks
from tests.model.speculative_checks import BACKENDS, PROMPT, own, random_model
from tests.model.test_generate import Letters

KINDS = {
    "dense": lambda m: m,
    "int4": quant.int4,
    "all int4": lambda m: quant.int4(m, embeddings=True),
    "int8": lambda m: quant.int8(m, embeddings=True),
    "nf4": lambda m: quant.nf4(m, 32, embeddings=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_text_is_the_targets_own_whatever_the_draft(backend, kind):
    target = KINDS[kind](random_model(backend, context_length=40))
    want = own(target)
    assert len(want) == 35
    drafts = {"itself": target, "stranger": random_model(backend, seed=1)}
    for n_draft in (1, 4, 100):
        for name, draft in drafts.items():
            counts = DraftCounts()
            assert list(generate_ids_speculative(target, draft, PROMPT, 100, n_draft, counts=counts)) == want, name
            # every pass gives one token of the target, and one more for each guess that was right
            assert counts.passes + counts.accepted == len(want)
            if name == "itself":
                assert counts.accepted_share == 1.0 and counts.passes == 1 + -(-(len(want) - 1) // (n_draft + 1))
    assert counts.accepted_share is not None and counts.accepted_share < 0.5


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_other_architectures(architecture):
    target = random_model(architecture=architecture)
    for draft in (target, random_model(seed=1, architecture=architecture), random_model(seed=2, n_layer=1)):
        assert list(generate_ids_speculative(target, draft, PROMPT, 100)) == own(target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token_and_many_give_the_same_bits(backend, kind):
    """In the C tier for every kind; in Numba where all products are those of int8 activations, integers inside. Float
    products of the other tiers are BLAS's, where only closeness holds.
    """
    model = KINDS[kind](random_model(backend))
    tokens = np.random.default_rng(0).integers(0, 37, (1, 64))

    def logits(steps):
        kv, out = KVCache(model.config, 1, 64), []
        for n in [10, *steps]:
            new = tokens[:, kv.length : kv.length + n]
            out.append(
                transformer.forward(
                    model.config, model.params, model.linears, new, model.ops, kv=kv, int8=True, keep_cache=False
                )[0][0]
            )
        return np.concatenate(out)

    one = logits([1] * 54)
    for steps in ([2] * 27, [5] * 10 + [4], [7] * 7 + [5], [54]):
        many = logits(steps)
        if backend.startswith("c") or (backend, kind) == ("numba", "all int4"):
            assert many.tobytes() == one.tobytes(), steps
        else:  # an activation on the edge between two int8 codes may go the other way
            np.testing.assert_allclose(many, one, atol=0.2 if "int" in kind else 1e-4)


def test_at_the_end_of_the_context():
    """All 64 positions are used, also where the draft's context ends earlier or the prompt does not fit into it."""
    target = random_model()
    want = own(target)
    for length in (4, 5, 6, 20, 64, 100):
        counts = DraftCounts()
        draft = target if length == 64 else random_model(context_length=length)  # the same weights, another context
        assert list(generate_ids_speculative(target, draft, PROMPT, 100, counts=counts)) == want
        assert counts.accepted == counts.proposed
        assert (counts.proposed == 0) == (length <= 5)
    for n in range(8):
        assert list(generate_ids_speculative(target, target, PROMPT, n)) == want[:n]
    assert list(generate_ids_speculative(target, target, [1] * 64, 5)) == []
    assert list(generate_ids_speculative(target, target, [1] * 63, 5)) == own(target, 0) + list(
        generate_ids(target, [1] * 63, 5, Sampling())
    )


def test_eos_inside_a_draft():
    speculative_checks.end_of_text_ends_it(speculative)


def test_counts_are_those_of_a_replay():
    speculative_checks.counts_are_those_of_a_replay(speculative)


def test_lengths_and_settings():
    speculative_checks.text_is_the_targets_own(speculative)


def test_tokens_per_pass_are_the_papers(monkeypatch):
    """Guesses right with probability a, independently: (1 - a^(g+1)) / (1 - a) tokens a pass (arXiv:2211.17192, Eq. 1),
    within four standard errors of the mean. In each pass of g guesses there are 1 to g + 1 tokens.
    """
    target = random_model(n_layer=1, context_length=2000)
    text, rng = own(target, 1995), np.random.default_rng(0)
    for a, g in [(0.5, 3), (0.8, 4), (0.9, 2)]:

        def propose(guesser, seen, n, s, eos, rng_of_the_text, a=a):
            at = len(seen) - len(PROMPT)
            guesses = [t if rng.random() < a else (t + 1) % 37 for t in text[at : at + n]]
            return guesses, [np.eye(37)[t] for t in guesses]

        monkeypatch.setattr(speculative, "_propose", propose)
        counts = DraftCounts()
        assert list(generate_ids_speculative(target, target, PROMPT, 1995, g, counts=counts)) == text
        mean = (1 - a ** (g + 1)) / (1 - a)
        passes = counts.passes - 1  # the first one reads the prompt
        spread = np.sqrt(sum((2 * k - 1) * a ** (k - 1) for k in range(1, g + 2)) - mean**2)  # E[n^2] - E[n]^2
        assert abs((len(text) - 1) / passes - mean) < 4 * spread / np.sqrt(passes) + g / passes


def test_draws_have_the_targets_distribution():
    speculative_checks.choice_has_the_targets_distribution(speculative)


def test_texts_have_the_targets_distribution():
    """All texts of two tokens of a vocabulary of five, counted, against their probability under the target alone."""
    sizes = dict(vocab_size=5, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, n_inner=32, context_length=8)
    target, draft = (random_model(seed=seed, **sizes) for seed in (0, 1))
    s, n = Sampling(1.3, top_k=4), 3000
    want = np.zeros((5, 5))
    first = probabilities(target.logits(np.array([[1]]))[0, -1], np.array([1]), s)
    for a in range(5):
        want[a] = first[a] * probabilities(target.logits(np.array([[1, a]]))[0, -1], np.array([1, a]), s)
    got, counts = np.zeros((5, 5)), DraftCounts()
    for seed in range(n):
        made = generate_ids_speculative(target, draft, [1], 3, 2, replace(s, seed=seed), counts)
        got[next(made), next(made)] += 1  # the second token is the first that was guessed
    # five standard errors of a binomial share, and one count for the rarest
    assert (np.abs(got / n - want) < 5 * np.sqrt(want * (1 - want) / n) + 1 / n).all()
    assert counts.proposed == n and 0 < counts.accepted < n


def test_text_stops_and_penalty():
    target = replace(random_model(), tokenizer=Letters())
    draft = random_model(seed=1)
    for settings in ({}, {"stop": "e"}, {"repetition_penalty": 1.5}, {"max_tokens": 7}, {"n_draft": 9}):
        plain = {k: v for k, v in settings.items() if k != "n_draft"}
        for guesser in (draft, target):
            assert target.generate("abc", draft_model=guesser, **settings) == target.generate("abc", **plain)
    pieces = target.generate("abc", draft_model=draft, stream=True)
    assert "".join(pieces) == target.generate("abc")


def test_what_is_refused():
    """At the call, not at the first token."""
    target = random_model()
    for n_draft in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match="n_draft: expected a number of tokens >= 1"):
            generate_ids_speculative(target, target, PROMPT, 5, n_draft)
    with pytest.raises(UsageError, match="max_tokens"):
        generate_ids_speculative(target, target, PROMPT, -1)
    with pytest.raises(UsageError, match="vocabulary of 37 tokens, it has 38"):
        generate_ids_speculative(target, random_model(vocab_size=38), PROMPT, 5)
    words = [Tokenizer.train_bpe([text * 20], 280) for text in ("some words here, some there", "other text entirely")]
    ours, theirs = (replace(random_model(vocab_size=280), tokenizer=tokenizer) for tokenizer in words)
    with pytest.raises(UsageError, match=r"token '.*' has id .* there and .* here"):
        ours.generate("a", draft_model=theirs)
    assert ours.generate("a", draft_model=ours) == ours.generate("a")
