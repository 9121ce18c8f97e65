r"""Batches of tokens for training and for measuring, as pure functions of (seed, step).

Legend: B batch, T tokens in a row. `loss_mask[:, t]` weighs predicting token t from the tokens before it; column 0 is
ignored.

Running text becomes one stream, a document after the other with the end-of-text token between, cut into rows. Examples
with a prompt stay one to a row, padded on the right. Every split offers `.pack(tokenizer, seq_len)`, which gives

    batch(step, batch_size, seed) -> tokens (B,T) int64, loss_mask (B,T) float32 | None      for training
    eval_batches(batch_size)      -> the same, in order, every scored token exactly once
    n_bytes, n_tokens                bits per byte = nats / ln 2 / n_bytes; nats per token = nats / n_tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from minedge.data.tokenizer import Tokenizer
from minedge.errors import UsageError

__all__ = ["Batch", "PackedData", "PackedRows", "PackedText", "Pairs", "Split", "Texts", "pack", "pad_rows", "shuffled"]

Batch = tuple[np.ndarray, "np.ndarray | None"]


class PackedData(Protocol):
    """What the training loop needs of data."""

    @property
    def n_bytes(self) -> int: ...

    @property
    def n_tokens(self) -> int: ...

    def batch(self, step: int, batch_size: int, seed: int) -> Batch: ...

    def eval_batches(self, batch_size: int) -> Iterator[Batch]: ...


class Split(Protocol):
    """Data of one part before it meets a tokenizer."""

    def __len__(self) -> int: ...

    def pack(self, tokenizer: Tokenizer, seq_len: int) -> PackedData: ...


def pack(split: Split, tokenizer: Tokenizer, seq_len: int) -> PackedData:
    """Turn a split into batches whose rows have at most `seq_len` tokens."""
    if seq_len < 2:
        raise UsageError(f"seq_len: expected at least 2 (one token to see, one to predict), got {seq_len}")
    return split.pack(tokenizer, seq_len)


def _hash(seed: int, *counters: int | np.ndarray) -> np.ndarray:
    """64-bit hash (splitmix64) of integers, the same on every machine and NumPy version."""
    x = np.atleast_1d(np.array(seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
    for counter in counters:
        x = x + np.asarray(counter).astype(np.uint64) * np.uint64(0xD1B54A32D192ED03) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..n-1 (n,) that depends only on the numbers given."""
    return np.argsort(_hash(seed, epoch, np.arange(n)), kind="stable")


def _picks(n: int, step: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, index) of the rows of a batch: the epochs' permutations one after the other, cut into batches."""
    if step < 0 or batch_size < 1:
        raise UsageError(f"expected step >= 0 and batch_size >= 1, got step={step}, batch_size={batch_size}")
    first = step * batch_size
    orders = {e: shuffled(n, seed, e) for e in range(first // n, (first + batch_size - 1) // n + 1)}
    return [(j // n, int(orders[j // n][j % n])) for j in range(first, first + batch_size)]


def pad_rows(
    rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad rows of ids and their weights to the longest: (B,T) int64, (B,T) float32."""
    width = max(len(row) for row in rows)
    tokens = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.float32)
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = weight
    return tokens, mask


def _separator(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise UsageError(
            "tokenizer: expected one with an end-of-text token, got one without; name it in tokenizer_config.json"
        )
    return tokenizer.eos_id


@dataclass(frozen=True)
class Texts:
    """Documents for language modelling: every token is predicted."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def pack(self, tokenizer: Tokenizer, seq_len: int) -> PackedText:
        """One stream: every document followed by the end-of-text token."""
        end = _separator(tokenizer)
        stream = [i for ids in tokenizer.encode_batch(self.texts) for i in (*ids, end)]
        if len(stream) < 2:
            raise UsageError("data: expected text, got none; check the file")
        n_bytes = sum(len(t.encode()) for t in self.texts)
        return PackedText(np.array(stream, np.int64), end, seq_len, n_bytes, tokenizer.start_id)


@dataclass(frozen=True)
class PackedText:
    """A stream of tokens that batches are cut from."""

    stream: np.ndarray  # (n,) int64
    eos_id: int
    seq_len: int
    n_bytes: int
    start_id: int | None = None  # the token before a text; None: the end-of-text token
    _full: np.ndarray = field(init=False, repr=False)  # the stream with that token before it

    def __post_init__(self) -> None:
        object.__setattr__(self, "_full", np.concatenate([[self._start], self.stream]))

    @property
    def _start(self) -> int:
        return self.eos_id if self.start_id is None else self.start_id

    @property
    def n_tokens(self) -> int:
        """Tokens predicted by one pass of `eval_batches`: all, end-of-text tokens included."""
        return len(self.stream)

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """(B,T) rows for training step `step`; the mask is None, every token of a row but its first is predicted.

        Rows of an epoch lie side by side. Each epoch starts cutting at another offset, so that no token is always the
        one with the shortest context.
        """
        T = min(self.seq_len, len(self._full))
        stride = T - 1  # neighbours share a token: the last one predicted is the next row's first
        n = max(1, (len(self._full) - 1 - (stride - 1)) // stride)  # rows that fit at every offset
        slack = len(self._full) - (n * stride + 1) + 1  # offsets that leave room for n rows
        rows = []
        for epoch, i in _picks(n, step, batch_size, seed):
            start = int(_hash(seed, epoch, 0xFFFFFFFF)[0] % np.uint64(slack)) + i * stride
            rows.append(self._full[start : start + T])
        return np.stack(rows), None

    def eval_batches(self, batch_size: int, overlap: int = 0) -> Iterator[Batch]:
        """Rows in order that score every token of the stream exactly once.

        A row starts with the token before a text, then come `overlap` tokens already scored, seen only as context, then
        new ones. `overlap` of half a row costs twice the time and gives every token at least that much context.
        """
        room = self.seq_len - 1
        if not 0 <= overlap < room:
            raise UsageError(f"overlap: expected 0 to {room - 1} for rows of {self.seq_len} tokens, got {overlap}")
        rows, weights = [], []
        done = 0
        while done < len(self.stream):
            start = max(0, done - overlap)
            stop = min(len(self.stream), start + room)
            rows.append([self._start, *self.stream[start:stop].tolist()])
            weights.append([0.0] * (1 + done - start) + [1.0] * (stop - done))
            done = stop
            if len(rows) == batch_size or done == len(self.stream):
                yield pad_rows(rows, weights, self.eos_id)
                rows, weights = [], []


@dataclass(frozen=True)
class Pairs:
    """(prompt, completion) examples: only the completion and the end-of-text token after it are predicted."""

    pairs: tuple[tuple[str, str], ...]
    chat_template: bool = True  # through the tokenizer's template, as a question and its answer, where it has one

    def __len__(self) -> int:
        return len(self.pairs)

    def pack(self, tokenizer: Tokenizer, seq_len: int) -> PackedRows:
        """One example to a row; a prompt that does not fit loses its beginning, a completion its end."""
        if self.chat_template and getattr(tokenizer, "chat_template", None):
            from minedge.data.conversations import Conversations  # which needs this file

            return Conversations.of_pairs(self.pairs).pack(tokenizer, seq_len)
        end = _separator(tokenizer)
        first = end if tokenizer.start_id is None else tokenizer.start_id
        prompts = tokenizer.encode_batch([prompt for prompt, _ in self.pairs])
        completions = tokenizer.encode_continuation([completion for _, completion in self.pairs])
        rows, weights = [], []
        for prompt, completion, (_, text) in zip(prompts, completions, self.pairs, strict=True):
            if not prompt:
                completion = tokenizer.encode(text)
            answer = [*completion, end][: seq_len - 1]
            room = seq_len - 1 - len(answer)
            row = [first, *prompt[max(0, len(prompt) - room) :], *answer]
            rows.append(row)
            weights.append([0.0] * (len(row) - len(answer)) + [1.0] * len(answer))
        return PackedRows(rows, weights, end, sum(len(completion.encode()) for _, completion in self.pairs))


@dataclass(frozen=True)
class PackedRows:
    """Rows with their own weights, padded batch by batch to the longest row in it."""

    rows: Sequence[Sequence[int]]
    weights: Sequence[Sequence[float]]
    pad_id: int
    n_bytes: int  # of the text that is scored

    def __post_init__(self) -> None:
        if not self.rows:
            raise UsageError("data: expected examples, got none; check the file")

    @property
    def n_tokens(self) -> int:
        """Tokens with a weight."""
        return sum(sum(1 for w in weight if w) for weight in self.weights)

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """(B,T) tokens and mask for training step `step`."""
        picked = [i for _, i in _picks(len(self.rows), step, batch_size, seed)]
        return self._padded(picked)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in order."""
        for start in range(0, len(self.rows), batch_size):
            yield self._padded(range(start, min(start + batch_size, len(self.rows))))

    def _padded(self, picked: Sequence[int]) -> Batch:
        return pad_rows([self.rows[i] for i in picked], [self.weights[i] for i in picked], self.pad_id)
