"""SentencePiece's byte-pair vocabularies (Llama's, llama2.c's) as a `tokenizers.Tokenizer`.

Such a vocabulary is a list of pieces with scores, and encoding joins the two neighbours whose joint piece has the
highest score until no two join. The `tokenizers` library wants the joins as a ranked list instead: every way to cut a
piece into two other pieces, best score first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from minedge.data.tokenizer import Tokenizer, library_errors
from minedge.errors import MinedgeFormatError

__all__ = [
    "BYTE",
    "CONTROL",
    "NORMAL",
    "SPACE",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "build",
    "byte_piece",
    "check_vocabulary",
    "finish",
    "parse_model",
]

# Types of pieces, as SentencePiece and GGUF number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # stands for a space
_MAX_PIECE = 1024  # characters; a cut at every place of a longer one would take quadratic time


def byte_piece(value: int) -> str:
    return f"<0x{value:02X}>"


def build(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    where: str,
    bos_id: int | None = None,
    eos_id: int | None = None,
    add_space_prefix: bool = True,
    add_bos: bool = True,
) -> Tokenizer:
    """The tokenizer of a vocabulary: piece, score and type of each id.

    A piece that stands for bytes ("<0x0A>") has type BYTE; characters without a piece become those where all 256 are
    there, otherwise the unknown piece. Raises MinedgeFormatError, naming `where`, for a vocabulary that contradicts
    itself.
    """
    import tokenizers as hf

    vocab = check_vocabulary(pieces, types, where)
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            raise MinedgeFormatError(f"{where}: token {i} ({pieces[i]!r}) has score {score}")
    unknown = next((piece for piece, kind in zip(pieces, types, strict=True) if kind == UNKNOWN), None)
    has_bytes = all(byte_piece(value) in vocab for value in range(256))
    joins = _joins(pieces, scores, types, vocab, where)
    with library_errors(f"{where}: not a vocabulary that the tokenizers library takes"):
        model = hf.models.BPE(vocab, joins, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
        backend = hf.Tokenizer(model)
    replace = hf.normalizers.Replace(" ", SPACE)
    prefix = [hf.normalizers.Prepend(SPACE)] if add_space_prefix else []
    backend.normalizer = hf.normalizers.Sequence([*prefix, replace])
    steps: list[Any] = [hf.decoders.Replace(SPACE, " "), hf.decoders.ByteFallback(), hf.decoders.Fuse()]
    if add_space_prefix:
        steps.append(hf.decoders.Strip(" ", 1, 0))
    backend.decoder = hf.decoders.Sequence(steps)
    return finish(backend, pieces, types, bos_id, eos_id, add_bos)


def check_vocabulary(pieces: Sequence[str], types: Sequence[int], where: str) -> dict[str, int]:
    """Piece -> id, without the unused ones; MinedgeFormatError for one that is empty or given twice."""
    vocab: dict[str, int] = {}
    for i, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        if kind == UNUSED:
            continue
        if not NORMAL <= kind <= BYTE:
            raise MinedgeFormatError(f"{where}: token {i} has type {kind}, expected 1 to 6")
        if not piece:
            raise MinedgeFormatError(f"{where}: token {i} is empty")
        if piece in vocab:
            raise MinedgeFormatError(f"{where}: token {piece[:80]!r} has two ids, {vocab[piece]} and {i}")
        vocab[piece] = i
    return vocab


def finish(
    backend: Any, pieces: Sequence[str], types: Sequence[int], bos_id: int | None, eos_id: int | None, add_bos: bool
) -> Tokenizer:
    """Mark special and added tokens, note whether texts start with the first, and wrap."""
    import tokenizers as hf

    special = {i for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)}
    plain = [i for i, kind in enumerate(types) if kind == USER_DEFINED]
    backend.add_special_tokens([hf.AddedToken(pieces[i], special=True, normalized=False) for i in sorted(special)])
    backend.add_tokens([hf.AddedToken(pieces[i], special=False, normalized=False) for i in plain])
    bos, eos = (pieces[i] if i is not None and 0 <= i < len(pieces) else None for i in (bos_id, eos_id))
    if add_bos and bos is not None and bos_id is not None and ":" not in bos and bos.strip() == bos and " " not in bos:
        backend.post_processor = hf.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
        )
    return Tokenizer(backend, eos_token=eos, bos_token=bos)


def _joins(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], vocab: dict[str, int], where: str
) -> list[tuple[str, str]]:
    ranked = []
    for i, piece in enumerate(pieces):
        if types[i] != NORMAL or len(piece) < 2:
            continue
        if len(piece) > _MAX_PIECE:
            raise MinedgeFormatError(f"{where}: token {i} has {len(piece)} characters, expected at most {_MAX_PIECE}")
        for cut in range(1, len(piece)):
            left, right = vocab.get(piece[:cut]), vocab.get(piece[cut:])
            if left is not None and right is not None and types[left] == types[right] == NORMAL:
                ranked.append((-scores[i], i, left, right))
    ranked.sort()
    return [(pieces[left], pieces[right]) for _, _, left, right in ranked]


# ---------------------------------------------------------------- SentencePiece's own file


def parse_model(data: bytes, where: str, limit: int) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types of a SentencePiece model file (a protocol buffer; field 1 is a piece: 1 text, 2 score,
    3 type). MinedgeFormatError for anything else, for more than `limit` pieces, and for models that are not byte-pair
    encoding.
    """
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    model_type: Any = 1
    for number, value in _fields(data, 0, len(data), where):
        if number == 1 and isinstance(value, slice):
            if len(pieces) == limit:
                raise MinedgeFormatError(f"{where}: byte {value.start}: more than the {limit} pieces of the model")
            found: dict[int, Any] = {n: v for n, v in _fields(data, value.start, value.stop, where) if n <= 3}
            text, kind, score = found.get(1), found.get(3, NORMAL), found.get(2, 0.0)
            if (
                not isinstance(text, slice)
                or text.start == text.stop
                or not isinstance(kind, int)
                or not isinstance(score, float)
            ):
                raise MinedgeFormatError(f"{where}: byte {value.start}: piece {len(pieces)} is not one")
            try:
                pieces.append(data[text].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise MinedgeFormatError(f"{where}: byte {text.start}: not UTF-8: {error.reason}") from None
            scores.append(score)
            types.append(kind)
        elif number == 2 and isinstance(value, slice):
            given = [v for n, v in _fields(data, value.start, value.stop, where) if n == 3]
            model_type = given[-1] if given else 1
    if model_type != 2:
        raise MinedgeFormatError(f"{where}: SentencePiece model type {model_type}, expected 2 (byte-pair encoding)")
    return pieces, scores, types


def _fields(data: bytes, at: int, end: int, where: str) -> Iterator[tuple[int, int | float | slice]]:
    """Field numbers and values of one protocol buffer message: integers, float32, or where bytes lie."""
    while at < end:
        key, at = _varint(data, at, end, where)
        kind = key & 7
        width = {1: 8, 5: 4}.get(kind, 0)
        value: int | float | slice
        if kind == 0:
            value, at = _varint(data, at, end, where)
        elif kind in (1, 2, 5):
            if kind == 2:
                width, at = _varint(data, at, end, where)
            if width > end - at:
                raise MinedgeFormatError(f"{where}: byte {at}: a field of {width} bytes, only {end - at} are left")
            value = slice(at, at + width)
            if kind == 5:
                value = struct.unpack_from("<f", data, at)[0]
            at += width
        else:
            raise MinedgeFormatError(f"{where}: byte {at}: not a SentencePiece model (wire type {kind})")
        yield key >> 3, value


def _varint(data: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise MinedgeFormatError(f"{where}: byte {at}: the file ends inside a number; truncated?")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise MinedgeFormatError(f"{where}: byte {at}: a number of more than 10 bytes")
