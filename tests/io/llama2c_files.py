"""llama2.c files by hand: a small good model and tokenizer, and ways to be bad."""

from __future__ import annotations

import struct

import numpy as np

__all__ = ["BAD", "BAD_TOKENIZERS", "good", "model", "sentencepiece", "tokenizer"]


def model(
    dim: int = 8, hidden: int = 12, layers: int = 2, heads: int = 2, kv: int = 1, vocab: int = 3, length: int = 4,
    seed: int = 0,
) -> bytes:  # fmt: skip
    """A whole file with random weights of the sizes given (a negative vocab: the head is a matrix of its own)."""
    width = dim * kv // heads
    shapes = [(abs(vocab), dim), (layers, dim), (layers, dim, dim), (layers, width, dim), (layers, width, dim)]
    shapes += [(layers, dim, dim), (layers, dim), (layers, hidden, dim), (layers, dim, hidden), (layers, hidden, dim)]
    shapes += [(dim,), (2, length, dim // heads // 2)] + ([(-vocab, dim)] if vocab < 0 else [])
    rng = np.random.default_rng(seed)
    arrays = b"".join(rng.normal(size=shape).astype("<f4").tobytes() for shape in shapes)
    return struct.pack("<7i", dim, hidden, layers, heads, kv, vocab, length) + arrays


def good() -> bytes:
    return model()


def _sizes(**changes: int) -> bytes:
    """The good file's weights under another header."""
    names = ("dim", "hidden", "layers", "heads", "kv", "vocab", "length")
    values = dict(zip(names, struct.unpack("<7i", good()[:28]), strict=True)) | changes
    return struct.pack("<7i", *values.values()) + good()[28:]


BAD = {
    "empty": b"",
    "27 bytes": good()[:27],
    "header alone": good()[:28],
    "dim 0": _sizes(dim=0),
    "negative dim": _sizes(dim=-8),
    "dim 2^31-1": _sizes(dim=2**31 - 1),
    "other dim": _sizes(dim=16),
    "hidden 0": _sizes(hidden=0),
    "other hidden": _sizes(hidden=16),
    "no layers": _sizes(layers=0),
    "2^31-1 layers": _sizes(layers=2**31 - 1),
    "a million layers": _sizes(layers=10**6),
    "no heads": _sizes(heads=0),
    "heads that do not divide": _sizes(heads=3),
    "odd head width": _sizes(heads=8, kv=8),
    "key heads that do not divide": _sizes(kv=3),
    "no key heads": _sizes(kv=0),
    "no vocabulary": _sizes(vocab=0),
    "untied head that is not there": _sizes(vocab=-3),
    "vocabulary of -2^31": _sizes(vocab=-(2**31)),
    "sizes whose product wraps": _sizes(dim=1 << 16, hidden=1 << 16, heads=1, kv=1, layers=1, vocab=1),
    "no context": _sizes(length=0),
    "context of 2^31-1": _sizes(length=2**31 - 1),
    "one byte less": good()[:-1],
    "one number more": good() + bytes(4),
    "version 1 (ak42)": struct.pack("<Ii", 0x616B3432, 1) + good()[8:],
    "zip archive": b"PK\x03\x04" + good()[4:],
    "pickle": b"\x80\x02" + good()[2:],
    "pickle of protocol 4": b"\x80\x04\x95" + good()[3:],
    "text": b"{'a': 1}" * 20,
}


def tokenizer(pieces: list[tuple[float, bytes]], longest: int | None = None) -> bytes:
    longest = max(len(piece) for _, piece in pieces) if longest is None else longest
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", s, len(p)) + p for s, p in pieces)


_THREE = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
_GOOD = tokenizer(_THREE)


def _number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _message(field: int, payload: bytes, length: int | None = None) -> bytes:
    return _number(field << 3 | 2) + _number(len(payload) if length is None else length) + payload


def sentencepiece(pieces: list[tuple[str | bytes, float, int]], model_type: int = 2) -> bytes:
    """A SentencePiece model file: pieces with scores and types, and the trainer's model type."""
    out = b""
    for text, score, kind in pieces:
        data = text.encode() if isinstance(text, str) else text
        fields = _message(1, data) + _number(2 << 3 | 5) + struct.pack("<f", score) + _number(3 << 3) + _number(kind)
        out += _message(1, fields)
    return out + _message(2, _number(3 << 3) + _number(model_type))


_SP: list[tuple[str | bytes, float, int]] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]

# Name -> file name's ending, content; each for a model of three tokens.
BAD_TOKENIZERS = {
    "empty": (".bin", b""),
    "three bytes": (".bin", _GOOD[:3]),
    "too short for its tokens": (".bin", _GOOD[:27]),
    "truncated": (".bin", _GOOD[:-1]),
    "bytes after the last": (".bin", _GOOD + b"\0"),
    "length 0": (".bin", tokenizer([(0.0, b""), *_THREE[:2], *_THREE])),
    "negative length": (".bin", _GOOD[:8] + struct.pack("<i", -1) + _GOOD[12:]),
    "length 2^31-1": (".bin", _GOOD[:8] + struct.pack("<i", 2**31 - 1) + _GOOD[12:]),
    "longer than the longest": (".bin", tokenizer(_THREE, longest=4)),
    "longest that is negative": (".bin", tokenizer(_THREE, longest=-1)),
    "not UTF-8": (".bin", tokenizer([(0.0, b"\xff\xfe\xfd\xfc\xfb"), *_THREE[1:]])),
    "token twice": (".bin", tokenizer([_THREE[0], _THREE[1], _THREE[1]])),
    "score of NaN": (".bin", tokenizer([(float("nan"), b"<unk>"), *_THREE[1:]])),
    "model: empty": (".model", b""),
    "model: two pieces": (".model", sentencepiece(_SP[:2])),
    "model: four pieces": (".model", sentencepiece([*_SP, ("a", 0.0, 1)])),
    "model: unigram": (".model", sentencepiece(_SP, model_type=1)),
    "model: truncated": (".model", sentencepiece(_SP)[:-1]),
    "model: number of 11 bytes": (".model", b"\xff" * 11),
    "model: number that does not end": (".model", b"\x0a\xff"),
    "model: field beyond the end": (".model", _message(1, b"abc", length=1 << 40)),
    "model: piece beyond its message": (".model", _message(1, _message(1, b"a", length=9)) + sentencepiece(_SP)),
    "model: group": (".model", b"\x0b" + sentencepiece(_SP)),
    "model: piece without text": (".model", _message(1, b"") + sentencepiece(_SP[1:])),
    "model: score that is no float": (".model", _message(1, _message(1, b"a") + b"\x10\x01") + sentencepiece(_SP[1:])),
    "model: piece that is not UTF-8": (".model", sentencepiece([(b"\xff", 0.0, 1), *_SP[1:]])),
    "model: piece twice": (".model", sentencepiece([_SP[0], _SP[1], _SP[1]])),
    "model: type 7": (".model", sentencepiece([_SP[0], _SP[1], ("a", 0.0, 7)])),
}
