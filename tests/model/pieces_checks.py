"""What text piece by piece promises, as functions of the module under test, so that planted bugs can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers as hf

from minedge.data.tokenizer import Tokenizer
from tests.data.sentencepiece import small

__all__ = ["a_stop_text_ends_it", "few_tokens_are_decoded_again", "nothing_is_taken_back", "pieces_are_the_text"]

TEXTS = (
    "the cat sat caf\u00e9",
    " \u6f22\u5b57 \U0001f600\U0001f600 ",
    "\n\n  the\t\u00e9\u00e9\u00e9",
    "  ",
    "a\u0301 \u00df",
)
BYTES = Tokenizer.train_bpe([*TEXTS, "the cat sat on the cat"], 290)
SPM = small()


def characters() -> Tokenizer:
    """A token for each character."""
    letters = sorted(set("".join(TEXTS)))
    backend = hf.Tokenizer(hf.models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token=letters[0]))
    backend.pre_tokenizer = hf.pre_tokenizers.Split("", "isolated")
    backend.decoder = hf.decoders.Fuse()
    return Tokenizer(backend)


CHARACTERS = characters()


def printed(module: Any, tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], stops: Sequence[str] = ()) -> str:
    """The pieces as a terminal gets them, joined."""
    pieces, out = module.Pieces(tokenizer, stops, prompt), ""
    for token in ids:
        more = pieces.add(token)
        out += "".join(pieces.sure())
        if not more:
            return out
    return out + "".join(pieces.rest())


def bytes_text(ids: Sequence[int]) -> str:
    """Byte-level tokens by their definition: the bytes that their letters stand for, read as UTF-8."""
    # GPT-2's alphabet: printable bytes stand for themselves, the others for the letters from U+0100 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in plain]
    table = {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(odd)}
    spelled = (BYTES.backend.id_to_token(i) for i in ids if i != BYTES.eos_id)
    return bytes(table[letter] for piece in spelled for letter in piece).decode("utf-8", "replace")


def spm_text(ids: Sequence[int], strip: bool) -> str:
    """SentencePiece by its definition: pieces, `\u2581` a space, the first one dropped; bytes that make no character
    U+FFFD each, but whole characters before them stay.
    """
    out, held = "", b""
    for piece in (SPM.backend.id_to_token(i) for i in ids if i > 2):
        if piece.startswith("<0x"):
            held += bytes([int(piece[3:5], 16)])
            try:
                out, held = out + held.decode(), b""
            except UnicodeDecodeError:
                continue
        else:
            out, held = out + "\ufffd" * len(held) + piece.replace("\u2581", " "), b""
    out += "\ufffd" * len(held)
    return out.removeprefix(" ") if strip else out


def draws(seed: int, count: int):
    """Tokens of texts, cut anywhere, and tokens drawn at random: (tokenizer, prompt, ids, their text)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        text = "".join(rng.choice(TEXTS, rng.integers(1, 6)))
        for tokenizer in (BYTES, SPM, CHARACTERS):
            ids = tokenizer.encode(text)
            wild = rng.integers(0 if tokenizer is not SPM else 1, tokenizer.vocab_size, rng.integers(0, 30)).tolist()
            cut = rng.integers(0, len(ids) + 1)
            for some in (ids[:cut], ids[cut:], wild, [*ids[:cut], *wild]):
                if tokenizer is SPM:
                    for prompt, strip in (([], True), ([1], True), (SPM.encode("the"), False), ([1, 2 + 0xC3], True)):
                        yield tokenizer, prompt, some, spm_text(some, strip)
                else:
                    own = bytes_text(some) if tokenizer is BYTES else tokenizer.decode(some)
                    yield tokenizer, tokenizer.encode(text), some, own


def pieces_are_the_text(module: Any, count: int = 60) -> None:
    for tokenizer, prompt, ids, text in draws(1, count):
        assert printed(module, tokenizer, prompt, ids) == text, (ids, prompt)


def a_stop_text_ends_it(module: Any, count: int = 20) -> None:
    for stop in ("\u00e9", " the", "cat s", "\n", "\U0001f600 "):
        for tokenizer, prompt, ids, text in draws(2, count):
            assert printed(module, tokenizer, prompt, ids, [stop]) == text.partition(stop)[0], (ids, stop)


def nothing_is_taken_back(module: Any) -> None:
    """What is given at any moment begins the whole text."""
    for tokenizer, prompt, ids, text in draws(3, 10):
        pieces, out = module.Pieces(tokenizer, [], prompt), ""
        for n, token in enumerate(ids):
            pieces.add(token)
            out += "".join(pieces.sure())
            assert text.startswith(out) and pieces.count == n + 1
            assert "\ufffd" in text or len(text) < 2 or out or n < 8  # it comes while tokens do


def few_tokens_are_decoded_again(module: Any) -> None:
    """A token of a long text takes no longer than one of a short: what is decoded with it is a character's tokens."""
    for tokenizer in (BYTES, SPM, CHARACTERS):
        ids, most = (
            tokenizer.encode("the cat \U0001f600\u00e9 " * 100 if tokenizer is not CHARACTERS else TEXTS[0] * 50),
            [],
        )

        class Counted:
            encode = tokenizer.encode

            def decode(self, given: Sequence[int], real: Any = tokenizer, most: list[int] = most) -> str:
                most.append(len(given))
                return real.decode(given)

        pieces = module.Pieces(Counted(), [], [])
        for token in ids:
            pieces.add(token)
            list(pieces.sure())
        assert len(ids) > 300 and max(most) < 16, (len(ids), max(most))
