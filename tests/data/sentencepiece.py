"""A small SentencePiece-style tokenizer: a space before every text, bytes for the rest, `<s>` and `</s>`."""

from __future__ import annotations

from minedge.data.tokenizer import Tokenizer
from minedge.io import sentencepiece as spm

WORDS = ("\u2581the", "\u2581cat", "\u2581sat", "the", "cat", "sat")


def small(add_bos: bool = True, **settings) -> Tokenizer:
    """Ids 0 to 2 are unknown, `<s>`, `</s>`; `settings` are those of tokenizer_config.json."""
    pieces = ["<unk>", "<s>", "</s>", *map(spm.byte_piece, range(256))]
    types = [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, *[spm.BYTE] * 256]
    steps = {word[:n] for word in WORDS for n in range(2, len(word) + 1)}
    letters = sorted({letter for word in WORDS for letter in word})
    plain = [*letters, *sorted(steps, key=lambda piece: (len(piece), piece))]
    types += [spm.NORMAL] * len(plain)
    scores = [0.0] * len(pieces) + [-float(i) for i in range(len(plain))]
    made = spm.build([*pieces, *plain], scores, types, "test", 1, 2, add_bos=add_bos)
    return Tokenizer(made.backend, made.eos_token, made.bos_token, settings=settings)
