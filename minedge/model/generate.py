r"""Sampling text: the chain from logits to a token, and the loop with a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minedge.errors import UsageError
from minedge.model.reader import open_reader

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = ["Sampling", "draw", "generate_ids", "generate_text", "next_token", "probabilities"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises `UsageError` for values outside their ranges."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"temperature: expected a number >= 0, got {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k: expected an integer >= 1, got {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p: expected a number in (0, 1], got {self.top_p!r}")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise UsageError(f"min_p: expected a number in [0, 1), got {self.min_p!r}")
        if not self.repetition_penalty > 0:
            raise UsageError(f"repetition_penalty: expected a number > 0, got {self.repetition_penalty!r}")


def probabilities(logits: Array, seen: Array, s: Sampling) -> Array:
    r"""The distribution that sampling draws from, float64 (V,).

    Repetition penalty (arXiv:1909.05858) divides positive and multiplies negative logits of tokens already seen; then
    softmax(logits / temperature); then top-k keeps the k likeliest, top-p (arXiv:1904.09751) the fewest whose mass
    reaches p, min-p (arXiv:2407.01082) those with at least min_p times the top probability. Each cut renormalises;
    the likeliest token always stays.
    """
    x = logits.astype(np.float64)
    if s.repetition_penalty != 1.0 and len(seen):
        ids = np.unique(seen)
        x[ids] = np.where(x[ids] > 0, x[ids] / s.repetition_penalty, x[ids] * s.repetition_penalty)
    if s.temperature == 0:
        p = np.zeros_like(x)
        p[x.argmax()] = 1.0
        return p
    p = np.exp((x - x.max()) / s.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if s.top_k is not None:
        p[order[s.top_k :]] = 0.0
        p /= p.sum()
    if s.top_p is not None:
        before = np.cumsum(p[order]) - p[order]  # mass of the likelier tokens
        p[order[before >= s.top_p]] = 0.0
        p /= p.sum()
    if s.min_p is not None:
        p[p < s.min_p * p.max()] = 0.0
        p /= p.sum()
    return p


def next_token(logits: Array, seen: Array, s: Sampling, rng: np.random.Generator) -> int:
    """One token id. Temperature 0 draws no random number."""
    p = probabilities(logits, seen, s)
    return int(p.argmax()) if s.temperature == 0 else draw(p, rng)


def draw(p: Array, rng: np.random.Generator) -> int:
    """An index with probability p / sum(p), by one uniform number."""
    cumulative = np.cumsum(p)
    return int(min(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"), len(p) - 1))


def generate_ids(
    model: Model, prompt: list[int], max_tokens: int, s: Sampling, kv_dtype: str = "float32"
) -> Iterator[int]:
    """Token ids that continue `prompt`, until EOS (not yielded), `max_tokens`, or the context is full."""
    if max_tokens < 0:
        raise UsageError(f"max_tokens: expected a number >= 0, got {max_tokens}")
    tokens = model.check_tokens(np.array([prompt], dtype=np.int64))
    room = min(max_tokens, model.config.context_length - tokens.shape[1])
    if room <= 0:
        return
    reader = open_reader(model, 1, tokens.shape[1] + room, kv_dtype)
    rng = np.random.default_rng(s.seed)
    eos = model.config.eos_ids
    seen, new = list(prompt), list(prompt)
    for _ in range(room):
        token = next_token(reader.step([new])[0], np.array(seen), s, rng)
        if token in eos:
            return
        yield token
        seen.append(token)
        new = [token]


def generate_text(
    model: Model,
    prompt: str,
    max_tokens: int,
    s: Sampling,
    stop: str | list[str] | None = None,
    continue_ids: Callable[[list[int]], Iterator[int]] | None = None,
) -> Iterator[str]:
    """Pieces of text as they become certain: whole characters, and nothing that may turn out to begin a stop string.

    continue_ids  prompt ids -> the ids that follow, another way to them than `generate_ids`
    """
    if model.tokenizer is None:
        raise UsageError("model: it has no tokenizer; use generate_ids with token ids")
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    if any(not text for text in stops):
        raise UsageError("stop: expected non-empty strings")
    ids = model.tokenizer.encode(prompt)
    if not ids:
        start = model.config.bos_token_id if model.config.bos_token_id is not None else model.config.eos_ids[:1]
        ids = [start] if isinstance(start, int) else list(start)
    if not ids:
        raise UsageError("prompt: it is empty and the model names no token to start from")
    if len(ids) > model.config.context_length:
        raise UsageError(
            f"prompt: {len(ids)} tokens, the model's context holds {model.config.context_length}; shorten the prompt"
        )
    tokens = generate_ids(model, ids, max_tokens, s) if continue_ids is None else continue_ids(ids)
    return _stream(model, tokens, stops)


def _stream(model: Model, tokens: Iterator[int], stops: list[str]) -> Iterator[str]:
    new: list[int] = []
    sent = 0
    text = ""
    for token in tokens:
        new.append(token)
        # Decoding all new ids each time keeps joins right; a cut multi-byte character shows as U+FFFD at the end and
        # waits.
        text = model.tokenizer.decode(new)
        cut = min((at for at in (text.find(x) for x in stops) if at >= 0), default=-1)
        if cut >= 0:
            if cut > sent:
                yield text[sent:cut]
            return
        safe = len(text.rstrip("\ufffd"))
        safe -= max((_overlap(text[:safe], x) for x in stops), default=0)
        if safe > sent:
            yield text[sent:safe]
            sent = safe
    if len(text) > sent:
        yield text[sent:]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
