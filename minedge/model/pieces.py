"""Tokens as text that comes piece by piece: whole characters, and nothing that may turn out to begin a stop text.

A token alone need not be text: it may hold half a character, and a SentencePiece decoder takes the first space off
whatever it is given. Decoding everything anew at each token is right and takes time that grows with the square of the
text. Here tokens are decoded together until their text ends with a whole character; from there on what follows is
decoded by itself, behind an `a` that is cut off again, so that no space is lost. The pieces joined are the text of all
tokens decoded at once; only where SentencePiece's bytes break off within a character are the whole characters right
before it kept, which the library gives up with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["Pieces"]

CUT = "\ufffd"  # what a character that is not whole decodes to


class Pieces:
    """The text after a prompt, token by token.

    count  tokens taken so far
    ended  a stop text came
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: Sequence[int]):
        self.tokenizer, self.stops = tokenizer, stops
        self.before: Sequence[int] = prompt  # what the open tokens are decoded after
        self.open: list[int] = []  # tokens that are decoded together
        self.settled = ""  # the text of those before them, as far as it was not given
        self.text = ""  # `settled` and the open tokens' text so far
        self.sent, self.certain = 0, 0  # how much of `text` was given, and can be
        self.count, self.ended = 0, False
        self._anchor: list[int] | None = None

    def add(self, token: int) -> bool:
        """Take a token; False where a stop text ends the text before it."""
        self.count += 1
        self.open.append(token)
        self.text = self.settled + self._decode()
        cut = min((at for at in (self.text.find(x) for x in self.stops) if at >= 0), default=-1)
        if cut >= 0:
            self.certain, self.ended = max(cut, self.sent), True
            return False
        safe = len(self.text.rstrip(CUT))
        self.certain = safe - max((_overlap(self.text[:safe], x) for x in self.stops), default=0)
        if safe == len(self.text) > 0:
            self._settle()
        return True

    def sure(self) -> Iterator[str]:
        """What became certain and was not given yet."""
        if self.certain > self.sent:
            piece, self.sent = self.text[self.sent : self.certain], self.certain
            yield piece

    def rest(self) -> Iterator[str]:
        """Everything else, once no token follows."""
        if not self.ended:
            self.certain = len(self.text)
        return self.sure()

    def _decode(self) -> str:
        """The open tokens' text."""
        after = getattr(self.tokenizer, "decode_after", None)
        if after is not None:
            return after(self.before, self.open)
        before = self._anchor or []
        return self.tokenizer.decode([*before, *self.open])[len(self.tokenizer.decode(before)) :]

    def _settle(self) -> None:
        """The text ends with a whole character: what follows is decoded by itself, and what was given is dropped."""
        if self._anchor is None:
            self._anchor = _anchor(self.tokenizer)
        if self._anchor:
            self.before, self.open = self._anchor, []
            self.settled = self.text = self.text[self.sent :]
            self.certain, self.sent = self.certain - self.sent, 0


def _anchor(tokenizer: Any) -> list[int]:
    """A token to decode others after, which is text by itself; none where the vocabulary has no such `a`."""
    last = tokenizer.encode("a")[-1:]
    twice = tokenizer.decode(last * 2)  # a space alone would give no text
    return last if twice and CUT not in twice else []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
