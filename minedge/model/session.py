"""A session: one sequence that a model has read, kept so that reading a text again costs only what is new in it.

    session = Session(model)
    logits = session.read([1, 2, 3])           # (1, V): what follows
    logits = session.read([1, 2, 3, 4])        # reads the 4 alone
    logits = session.read([1, 2, 9])           # forgets 3 and 4, reads the 9

A chat keeps one over its turns; `minedge generate --prompt-cache` keeps one in a file (minedge/io/prompt_cache.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minedge.model.reader import Reader, open_reader

if TYPE_CHECKING:
    from minedge.model.model import Model

__all__ = ["Session"]

Array = NDArray[Any]


class Session:
    """A reader of one sequence of up to `max_length` tokens (the context by default), and the ids it holds.

    reads: how many tokens each call of `read` really read.
    """

    def __init__(self, model: Model, max_length: int | None = None, kv_dtype: str | None = None):
        self.model = model
        self.reader: Reader = open_reader(model, 1, max_length or model.config.context_length, kv_dtype)
        self.ids: list[int] = []
        self.reads: list[int] = []

    def read(self, text: list[int], last: int = 1) -> Array:
        """Logits (last, V) of the last tokens of `text`; what the session holds of its beginning is not read again."""
        keep = min(_common(self.ids, text), len(text) - last)
        self.reader.truncate(keep)
        self.ids = list(text[:keep])  # an interrupted read leaves what was there before it
        logits = self.reader.step([text[keep:]], last)
        self.reads.append(len(text) - keep)
        self.ids = list(text)
        return logits

    def read_on(self, new: list[int]) -> Array:
        """Logits (1, V) after reading `new` behind what the session holds."""
        logits = self.reader.step([new])
        self.reads.append(len(new))
        self.ids += new
        return logits

    def forget(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.reader.truncate(length)
        del self.ids[length:]


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return int(np.argmax(np.array(a[:n]) != np.array(b[:n])))
