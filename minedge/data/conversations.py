r"""Conversations as training data: the loss is on what the assistant says, and on the token that ends its turn.

The text of a row is what the model's chat template makes of the messages. For a model without one it is plain lines,
"User: ...\nAssistant: ...", as `minedge chat` writes them, with the end-of-text token after the last. Which characters
the assistant wrote is found in one of three ways: by the template's {% generation %} blocks; else by rendering the
conversation up to an answer (which gives its start) and with it (its end); else, where a template renders earlier turns
in another way than the last one, by looking for the answer after its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minedge.data.chat_template import ChatTemplate, Message
from minedge.data.packing import PackedRows
from minedge.data.tokenizer import Tokenizer
from minedge.errors import UsageError

__all__ = ["PLAIN_ROLES", "Conversations", "answer_spans", "plain_text", "turn_end"]

PLAIN_ROLES = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
Span = tuple[int, int]


@dataclass(frozen=True)
class Conversations:
    """Lists of messages ({"role", "content"})."""

    conversations: tuple[Sequence[Message], ...]
    chat_template: bool = True

    def __len__(self) -> int:
        return len(self.conversations)

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[str, str]]) -> Conversations:
        """A question and its answer each."""
        roles = ("user", "assistant")
        return cls(tuple([{"role": r, "content": c} for r, c in zip(roles, pair, strict=True)] for pair in pairs))

    def pack(self, tokenizer: Tokenizer, seq_len: int) -> PackedRows:
        """One conversation to a row. One that is too long keeps its end: the last answer and what fits before it."""
        template = tokenizer.chat if self.chat_template else None
        special = tokenizer.special_tokens if template else frozenset()
        rows, weights, n_bytes = [], [], 0
        for number, messages in enumerate(self.conversations, 1):
            try:
                text, spans = answer_spans(template, messages, special) if template else plain_text(messages)
            except UsageError as error:
                raise UsageError(f"conversation {number}: {error}") from None
            ids, weight = _scored(tokenizer, text, spans)
            if template is None:
                ids, weight = _with_ends(tokenizer, ids, weight)
            row, weight, cut = _fitted(ids, weight, seq_len)
            rows.append(row)
            weights.append(weight)
            said = _without("".join(text[a:b] for a, b in spans), special)
            n_bytes += round(len(said.encode()) * cut)
        pad = tokenizer.eos_id if tokenizer.eos_id is not None else 0
        return PackedRows(rows, weights, pad, n_bytes)


def plain_text(messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The text of a conversation for a model without a template, and where its answers lie."""
    text, spans = "", []
    for message in messages:
        role = PLAIN_ROLES.get(message["role"], f"{message['role'].capitalize()}: ")
        text += "\n" if text else ""
        # The space before an answer belongs to it: a prompt ends with "Assistant:".
        start = len(text) + len(role.rstrip())
        text += role + message["content"].strip()
        if message["role"] == "assistant" and message["content"].strip():
            spans.append((start, len(text)))
    return text, spans


def answer_spans(
    template: ChatTemplate, messages: Sequence[Message], special: frozenset[str] = frozenset()
) -> tuple[str, list[Span]]:
    """The rendered conversation, and (start, end) of what the assistant says in it, each with what ends its turn.

    White space after a special token that ends a turn belongs to the template, not to the answer. UsageError where an
    answer cannot be found.
    """
    if template.marks_answers:
        text, spans = template.render_marked(messages)
        if spans:
            return text, spans
    text = template.render(messages)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        before = template.render(messages[:i], add_generation_prompt=True) if i else ""
        after = template.render(messages[: i + 1])
        start = len(before)
        if not text.startswith(before) or not after.startswith(before):  # the prompt opens more than the answer keeps
            start = _common(before, after, text)
        end = len(after) if text.startswith(after) else _end_in(text, after, message["content"].strip(), start)
        if end <= start:
            raise UsageError("chat template: it does not show where the assistant's answers are; add {% generation %}")
        bare = len(text[:end].rstrip())
        ends = any(text[start:bare].endswith(token) for token in special)
        spans.append((start, bare if ends else end))
    return text, spans


def _common(*texts: str) -> int:
    """Length of the beginning that all texts share."""
    return next(
        (i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), min(map(len, texts))
    )


def _end_in(text: str, after: str, content: str, start: int) -> int:
    """End of an answer in `text`, where `after`, the conversation up to it, reads otherwise; 0 if it is not found."""
    found, last = text.find(content, start), after.rfind(content)
    if found < 0 or last < 0:
        return 0
    tail, end = after[last + len(content) :], found + len(content)
    return end + _common(tail, text[end:])


def turn_end(tokenizer: Tokenizer) -> tuple[int | None, str]:
    """How an answer ends in this tokenizer's template: the special token's id, or None; and the text of the end."""
    template = tokenizer.chat
    if template is None:
        return None, ""
    answer = "0123456789"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    end = template.render(messages).rpartition(answer)[2].strip()
    token = max((t for t in tokenizer.special_tokens if end.startswith(t)), key=len, default=None)
    return (None if token is None else tokenizer.token_id(token)), end


def _scored(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> tuple[list[int], list[float]]:
    """Ids of a text, and weight 1 for every token that reaches into a span."""
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    weights = [
        float(any(first < end and max(last, first + 1) > start for start, end in spans))
        for first, last in encoded.offsets
    ]
    return encoded.ids, weights


def _without(text: str, special: frozenset[str]) -> str:
    """Text less its special tokens: bits per byte are of what a reader sees."""
    for token in special:
        text = text.replace(token, "")
    return text


def _with_ends(tokenizer: Tokenizer, ids: list[int], weights: list[float]) -> tuple[list[int], list[float]]:
    """Start and end of a text, as other rows have them; the end is predicted if an answer is before it."""
    end = tokenizer.eos_id
    if end is None:
        raise UsageError(
            "tokenizer: expected one with an end-of-text token, got one without; name it in tokenizer_config.json"
        )
    start = tokenizer.start_id
    first = end if start is None else start
    return [first, *ids, end], [0.0, *weights, weights[-1]]


def _fitted(ids: list[int], weights: list[float], seq_len: int) -> tuple[list[int], list[float], float]:
    """At most `seq_len` tokens: the first one, and a window that ends with the last answer; an answer longer than the
    window loses its end. Also the share of the scored tokens that is left.
    """
    total, weights = sum(weights), [0.0, *weights[1:]]
    if len(ids) > seq_len:
        stop = max(i for i, weight in enumerate(weights) if weight) + 1
        start = next((i for i in range(stop - 1, 0, -1) if not weights[i]), 0) + 1
        first = max(1, min(start, stop - (seq_len - 1)))
        kept = slice(first, first + seq_len - 1)
        ids, weights = [ids[0], *ids[kept]], [0.0, *weights[kept]]
    return ids, weights, sum(weights) / total if total else 0.0
