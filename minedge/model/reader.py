"""Something that reads tokens and remembers them: the engine where it can run the model, else the readable decoder.

    reader = open_reader(model, batch=2, max_length=50)
    logits = reader.step([[1, 2], [3]])        # each sequence's next tokens -> (2, V), scores of what follows

Both give the same bits on the C tier; generating text need not know which one it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minedge.model import transformer
from minedge.model.engine import Engine
from minedge.model.kvcache import KVCache, default_kv_dtype

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = ["Readable", "Reader", "open_reader"]

Array = NDArray[Any]


class Reader(Protocol):
    """lengths: tokens read so far, per sequence."""

    max_length: int

    @property
    def lengths(self) -> list[int]: ...

    def step(self, tokens: Sequence[Sequence[int]] | Array, last: int = 1) -> Array:
        """Read the next tokens of every sequence; logits (rows, V) of each one's `last` tokens."""

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget what a sequence holds from position `length` on."""


class Readable:
    """`transformer.py` with a cache a sequence: any model, any backend, one op at a time."""

    def __init__(self, model: Model, batch: int, max_length: int, kv_dtype: str = "float32"):
        self.model, self.max_length = model, max_length
        self.caches = [KVCache(model.config, 1, max_length, rounding=kv_dtype) for _ in range(batch)]

    @property
    def lengths(self) -> list[int]:
        return [kv.length for kv in self.caches]

    def step(self, tokens: Sequence[Sequence[int]] | Array, last: int = 1) -> Array:
        model, rows = self.model, []
        for ids, kv in zip(tokens, self.caches, strict=True):
            if not len(ids):
                continue
            new = np.asarray(ids, dtype=np.int64)[None]
            x, _ = transformer.forward_hidden(
                model.config, model.params, model.linears, new, model.ops, kv=kv, int8=True, keep_cache=False
            )
            if n := min(last, len(ids)):
                rows.append(x[0, -n:])
        x = np.ascontiguousarray(np.concatenate(rows)) if rows else np.empty((0, model.config.n_embd), np.float32)
        if not len(x):
            return np.empty((0, model.config.vocab_size), np.float32)
        return transformer.head_forward(model.config, model.params, model.linears, x, model.ops, int8=True)[0]

    def truncate(self, length: int, slot: int = 0) -> None:
        self.caches[slot].truncate(length)


def open_reader(model: Model, batch: int, max_length: int, kv_dtype: str | None = None) -> Reader:
    """An engine, or where it cannot run the model (`Engine.why_not`) its readable stand-in. kv_dtype None: see
    `default_kv_dtype`.
    """
    kv_dtype = default_kv_dtype(model.linears) if kv_dtype is None else kv_dtype
    if Engine.why_not(model):
        return Readable(model, batch, max_length, kv_dtype)
    return Engine(model, batch, max_length, kv_dtype)
