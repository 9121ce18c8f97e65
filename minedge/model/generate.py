r"""Sampling text: the chain from logits to a token, and the loop with a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minedge.errors import UsageError
from minedge.model.pieces import Pieces
from minedge.model.reader import open_reader
from minedge.model.session import Session

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = [
    "SIDE_BY_SIDE",
    "Sampling",
    "check_prompt",
    "draw",
    "generate_ids",
    "generate_many",
    "generate_text",
    "generate_texts",
    "next_token",
    "probabilities",
    "prompt_ids",
]

Array = NDArray[Any]

SIDE_BY_SIDE = 8  # prompts read together: a cache each, and more of them gain little


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
    if s.temperature == 0 and s.repetition_penalty == 1.0:
        return int(logits.argmax())  # what follows comes to the same, slower
    p = probabilities(logits, seen, s)
    return int(p.argmax()) if s.temperature == 0 else draw(p, rng)


def draw(p: Array, rng: np.random.Generator) -> int:
    """An index with probability p / sum(p), by one uniform number."""
    cumulative = np.cumsum(p)
    return int(min(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"), len(p) - 1))


def generate_ids(
    model: Model,
    prompt: list[int],
    max_tokens: int,
    s: Sampling,
    kv_dtype: str | None = None,
    session: Session | None = None,
) -> Iterator[int]:
    """Token ids that continue `prompt`, until EOS (not yielded), `max_tokens`, or the context is full.

    kv_dtype  what the cache keeps keys and values in (`default_kv_dtype`)
    session   what was read before and need not be read again; it keeps what is read now
    """
    room = _room(model, prompt, max_tokens, session)
    if room <= 0:
        return
    session = session or Session(model, len(prompt) + room, kv_dtype)
    rng = np.random.default_rng(s.seed)
    logits, seen = session.read(prompt), np.empty(len(prompt) + room, np.int64)
    seen[: len(prompt)] = prompt
    eos = frozenset(model.config.eos_ids)
    for n in range(len(prompt), len(seen)):
        token = next_token(logits[0], seen[:n], s, rng)
        if token in eos:
            return
        yield token
        seen[n] = token
        if n + 1 < len(seen):
            logits = session.read_on([token])


def _room(model: Model, prompt: list[int], max_tokens: int, session: Session | None = None) -> int:
    """How many tokens may follow the prompt, which is checked."""
    if max_tokens < 0:
        raise UsageError(f"max_tokens: expected a number >= 0, got {max_tokens}")
    model.check_tokens(np.array([prompt], dtype=np.int64))
    if session is not None and session.model.params is not model.params:
        raise UsageError("session: expected one of this model, it was opened for another")
    most = model.config.context_length if session is None else session.reader.max_length
    if len(prompt) > most:
        raise UsageError(f"session: it holds {most} tokens, the prompt has {len(prompt)}")
    return min(max_tokens, most - len(prompt))


def generate_many(
    model: Model,
    prompts: list[list[int]],
    max_tokens: int,
    s: Sampling,
    kv_dtype: str | None = None,
    more: Callable[[int, int], bool] | None = None,
    ended: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """What `generate_ids` gives for each prompt, read side by side: one pass over the weights serves all of them.

    Every prompt draws with its own generator, seeded alike, so its text is the one it would get alone.
    more(i, token) is told each token; False ends prompt i. ended(i) is told once prompt i takes no more.
    """
    rooms = [_room(model, prompt, max_tokens) for prompt in prompts]
    longest = max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))
    reader = open_reader(model, len(prompts), longest, kv_dtype)
    rngs = [np.random.default_rng(s.seed) for _ in prompts]
    made: list[list[int]] = [[] for _ in prompts]
    new: list[list[int]] = [list(p) if room > 0 else [] for p, room in zip(prompts, rooms, strict=True)]
    _tell(ended, [i for i, ids in enumerate(new) if not ids])
    while any(new):
        going = [i for i, ids in enumerate(new) if ids]
        rows = iter(reader.step(new))
        for i, ids in enumerate(new):
            if not ids:
                continue
            seen = [*prompts[i], *made[i]] if s.repetition_penalty != 1.0 else []
            token = next_token(next(rows), np.array(seen, np.int64), s, rngs[i])
            new[i] = []
            if token in model.config.eos_ids:
                continue
            made[i].append(token)
            if (more is None or more(i, token)) and len(made[i]) < rooms[i]:
                new[i] = [token]
        _tell(ended, [i for i in going if not new[i]])
    return made


def _tell(ended: Callable[[int], None] | None, which: list[int]) -> None:
    if ended is not None:
        for i in which:
            ended(i)


def generate_text(
    model: Model,
    prompt: str,
    max_tokens: int,
    s: Sampling,
    stop: str | list[str] | None = None,
    continue_ids: Callable[[list[int]], Iterator[int]] | None = None,
    kv_dtype: str | None = None,
    session: Session | None = None,
) -> Iterator[str]:
    """Pieces of text as they become certain: whole characters, and nothing that may turn out to begin a stop string.

    continue_ids  prompt ids -> the ids that follow, another way to them than `generate_ids`
    kv_dtype, session  see `generate_ids`
    """
    stops = stop_texts(stop)
    ids = prompt_ids(model, prompt)
    tokens = generate_ids(model, ids, max_tokens, s, kv_dtype, session) if continue_ids is None else continue_ids(ids)
    return _stream(model, ids, tokens, stops)


def generate_texts(
    model: Model, prompts: list[str], max_tokens: int, s: Sampling, stop: str | list[str] | None = None,
    kv_dtype: str | None = None, done: Callable[[int, str, dict[str, Any]], None] | None = None,
) -> list[str]:  # fmt: skip
    """The continuation of each prompt, `SIDE_BY_SIDE` of them at a time; each is the text it would get alone.

    done(i, text, counts) is told each text as soon as it is finished, with prompt_tokens, generated_tokens and why it
    ended: "length", "context" or "stop"
    """
    stops, out = stop_texts(stop), [""] * len(prompts)
    ids = [_numbered(model, prompt, i + 1, len(prompts)) for i, prompt in enumerate(prompts)]
    for start in range(0, len(ids), SIDE_BY_SIDE):
        part = ids[start : start + SIDE_BY_SIDE]
        texts = [Pieces(model.tokenizer, stops, prompt) for prompt in part]

        def more(i: int, token: int, texts: list[Pieces] = texts, start: int = start) -> bool:
            goes_on = texts[i].add(token)
            out[start + i] += "".join(texts[i].sure())
            return goes_on

        def ended(i: int, texts: list[Pieces] = texts, start: int = start) -> None:
            out[start + i] += "".join(texts[i].rest())
            if done is not None:
                done(start + i, out[start + i], _counted(model, texts[i], ids[start + i], max_tokens))

        generate_many(model, part, max_tokens, s, kv_dtype, more, ended)
    return out


def _numbered(model: Model, prompt: str, number: int, of: int) -> list[int]:
    """`prompt_ids`, whose errors say which of several prompts it is."""
    try:
        return prompt_ids(model, prompt)
    except UsageError as error:
        if of == 1 or not str(error).startswith("prompt:"):
            raise
        raise UsageError(f"prompt {number} of {of}{str(error).removeprefix('prompt')}") from None


def _counted(model: Model, text: Pieces, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    n, ended = text.count, "stop"
    if not text.ended and n == max_tokens:
        ended = "length"
    elif not text.ended and len(prompt) + n >= model.config.context_length:
        ended = "context"
    return {"prompt_tokens": len(prompt), "generated_tokens": n, "ended": ended}


def check_prompt(prompt: object) -> None:
    """Raise `UsageError` unless it is a text or a list of texts."""
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, (list, tuple)):
        raise UsageError(f"prompt: expected a text or a list of texts, got {_shown(prompt)}")
    for one in prompt:
        if not isinstance(one, str):
            raise UsageError(f"prompt: expected texts in the list, got {_shown(one)}; token ids go to generate_ids")


def _shown(value: object) -> str:
    """A value and its type, short enough for a message."""
    text = repr(value)
    return f"{text if len(text) < 40 else text[:37] + '...'} ({type(value).__name__})"


def stop_texts(stop: str | list[str] | None) -> list[str]:
    """`stop` as a list; raises `UsageError` for an empty text."""
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    if any(not text for text in stops):
        raise UsageError("stop: expected non-empty strings")
    return stops


def prompt_ids(model: Model, prompt: str) -> list[int]:
    """The prompt's tokens, after the one a text starts with where the tokenizer asks for it or the prompt is empty."""
    if model.tokenizer is None:
        raise UsageError("model: it has no tokenizer; use generate_ids with token ids")
    ids = getattr(model.tokenizer, "encode_prompt", model.tokenizer.encode)(prompt)
    if not ids:
        start = model.config.bos_token_id if model.config.bos_token_id is not None else model.config.eos_ids[:1]
        ids = [start] if isinstance(start, int) else list(start)
    if not ids:
        raise UsageError("prompt: it is empty and the model names no token to start from")
    if len(ids) > model.config.context_length:
        raise UsageError(
            f"prompt: {len(ids)} tokens, the model's context holds {model.config.context_length}; shorten the prompt"
        )
    return ids


def _stream(model: Model, prompt: list[int], tokens: Iterator[int], stops: list[str]) -> Iterator[str]:
    text = Pieces(model.tokenizer, stops, prompt)
    for token in tokens:
        more = text.add(token)
        yield from text.sure()
        if not more:
            return
    yield from text.rest()
