r"""Speculative decoding: a small draft model guesses the next tokens, the target checks all of them in one forward pass
(Leviathan et al., arXiv:2211.17192, Alg. 1; Chen et al., arXiv:2302.01318). The text is as if the target were alone.

    repeat   the draft proposes d_1 .. d_g, one token at a time, d_i drawn from its distribution q_i
             one forward of the target over the last token and d_1 .. d_g gives its distributions p_1 .. p_(g+1)
             d_i is kept with probability min(1, p_i(d_i) / q_i(d_i)); in place of the first that is not, a token is
             drawn from max(0, p_i - q_i), normalised; after g that were kept, one from p_(g+1)
             both caches forget what was not kept

If a guess is right with probability a, independently, a pass of the target gives on average (their Eq. 1)

    (1 - a^(g+1)) / (1 - a)      tokens, between 1 (nothing right) and g + 1 (all right).

Reading a few rows of activations costs little more than one where fetching or unpacking weights takes the time: on one
core of the C tier five rows took 1.6 times one for float32 matrices, 1.1 times for Int8, but 4 times for Int4, whose
product is bound by computing, so an Int4 target gains little. The draft has to be much faster than the target, and
write like it: a smaller model of the same family, or the same model in fewer bits.

Above temperature 0 the tokens have the target's distribution exactly, whatever q is (the paper's App. A.1), though a
seed gives another text than without a draft. At temperature 0 all distributions are certain, so a guess is kept if it
is the target's own choice, and the text is the target's greedy one. What "identical" rests on: a token's logits must
be the same bits whether it is read alone or among others. Attention over a filled cache gives each query what it
would get alone (ops.cached_attention), so this hangs on the products with weights. In the C tier it holds for every
kind, and in the Numba tier for models whose matrices are all Int4, embedding and head included. In the NumPy tier, and
for float products of the Numba tier, BLAS may add up one row in another order than the same row among many, so a
near-tie (two logits apart by rounding only) could go the other way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import integer
from minedge.errors import UsageError
from minedge.model.generate import Sampling, draw, probabilities
from minedge.model.reader import Reader, open_reader

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = ["DraftCounts", "check_draft", "generate_ids_speculative"]

Array = NDArray[Any]


@dataclass
class DraftCounts:
    """What came of a draft model's guesses; filled in while text is generated."""

    passes: int = 0  # forward passes of the target
    proposed: int = 0
    accepted: int = 0

    @property
    def accepted_share(self) -> float | None:
        """accepted / proposed, None where nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else None


def check_draft(model: Model, draft: Model, n_draft: int) -> None:
    """Raise `UsageError` unless `draft` can propose tokens to `model`."""
    integer("n_draft", n_draft, 1, "a number of tokens >= 1")
    own, other = (m.config.vocab_size for m in (model, draft))
    if own != other:
        raise UsageError(f"draft_model: expected the model's vocabulary of {own} tokens, it has {other}")
    ours, theirs = _vocabulary(model.tokenizer), _vocabulary(draft.tokenizer)
    if ours is not None and theirs is not None and ours != theirs:
        odd = min(text for text in ours.keys() | theirs.keys() if ours.get(text) != theirs.get(text))
        raise UsageError(
            f"draft_model: expected the model's vocabulary, but token {odd!r} has id {theirs.get(odd)} there and "
            f"{ours.get(odd)} here; take a draft of the same family"
        )


def _vocabulary(tokenizer: Any) -> dict[str, int] | None:
    """Token text -> id, None where the tokenizer does not tell."""
    backend: Any = getattr(tokenizer, "backend", None)
    return backend.get_vocab(with_added_tokens=True) if hasattr(backend, "get_vocab") else None


def generate_ids_speculative(
    model: Model,
    draft: Model,
    prompt_ids: list[int],
    max_tokens: int,
    n_draft: int = 4,
    s: Sampling | None = None,
    counts: DraftCounts | None = None,
) -> Iterator[int]:
    """Token ids that continue `prompt_ids`, as `generate_ids` gives them: until EOS (not yielded), `max_tokens`, or the
    context is full. Takes fewer passes of `model` the more often `draft` guesses right.

    n_draft  tokens that the draft proposes before each pass
    s        how target and draft draw; temperature 0, the default, gives the target's greedy text
    counts   is added to as tokens come

    A draft with a shorter context stops proposing where it is full. Raises `UsageError`, here and not at the first
    token, for a draft with another vocabulary, or a number out of range.
    """
    check_draft(model, draft, n_draft)
    if max_tokens < 0:
        raise UsageError(f"max_tokens: expected a number >= 0, got {max_tokens}")
    model.check_tokens(np.array([prompt_ids], dtype=np.int64))
    return _generate(model, draft, list(prompt_ids), max_tokens, n_draft, s or Sampling(), counts or DraftCounts())


def _generate(
    model: Model, draft: Model, seen: list[int], max_tokens: int, n_draft: int, s: Sampling, counts: DraftCounts
) -> Iterator[int]:
    left = min(max_tokens, model.config.context_length - len(seen))
    if left <= 0:
        return
    reader = open_reader(model, 1, len(seen) + left)
    guesser = open_reader(draft, 1, min(len(seen) + left, draft.config.context_length))
    eos, rng = model.config.eos_ids, np.random.default_rng(s.seed)
    while left > 0:
        # A pass gives up to one token more than was proposed; the last proposal is not read by the draft itself. The
        # prompt is read alone, as without a draft: read together with guesses it could round otherwise.
        room = max(-1, guesser.max_length - len(seen))  # -1: the draft's context does not hold what there is
        n = min(n_draft, left - 1, room + 1) if reader.lengths[0] else 0
        guesses, q = _propose(guesser, seen, n, s, eos, rng)
        logits = _read(reader, [*seen, *guesses], len(guesses) + 1)
        counts.passes += 1
        counts.proposed += len(guesses)
        for i, row in enumerate(logits):
            p = probabilities(row, np.array(seen), s)
            token = _choose(p, q[i], guesses[i], rng) if i < len(guesses) else draw(p, rng)
            right = i < len(guesses) and token == guesses[i]
            counts.accepted += right
            if token in eos:
                return
            yield token
            seen.append(token)
            left -= 1
            if not right:
                break
        # The last token is read with the next guesses; what follows it in the caches are guesses that were wrong.
        reader.truncate(len(seen) - 1)
        guesser.truncate(len(seen) - 1)


def _propose(
    guesser: Reader, seen: list[int], n: int, s: Sampling, eos: tuple[int, ...], rng: np.random.Generator
) -> tuple[list[int], list[Array]]:
    """Up to `n` tokens that the draft would say next, none after an end of text; and what each was drawn from."""
    guesses: list[int] = []
    drawn_from: list[Array] = []
    while len(guesses) < n and not (guesses and guesses[-1] in eos):
        text = [*seen, *guesses]
        drawn_from.append(probabilities(_read(guesser, text, 1)[0], np.array(text), s))
        guesses.append(draw(drawn_from[-1], rng))
    return guesses, drawn_from


def _choose(p: Array, q: Array, guess: int, rng: np.random.Generator) -> int:
    """A token with distribution p, if `guess` was drawn from q: the guess as often as can be."""
    if rng.random() * q[guess] < p[guess]:
        return guess
    rest = np.maximum(p - q, 0.0)
    return draw(rest if rest.any() else p, rng)  # all zero only where p and q differ by rounding


def _read(reader: Reader, text: list[int], n: int) -> Array:
    """Read what is new in `text`; logits (n, V) of its last n positions."""
    return reader.step([text[reader.lengths[0] :]], n)
