"""llama2.c's model files (legacy .bin) and tokenizer files, in.

Seven int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: the head is a matrix of its own),
seq_len. Then float32 arrays without names or gaps: embedding; for all layers norm 1, q, k, v, o, norm 2, gate, down,
up; the last norm; two rotary tables, which are not used here because they follow from the sizes; an untied head. So
the file's length follows from its header, and any other length is an error. Rotary pairs are (2i, 2i + 1), as GGUF
has them; rows of q and k are reordered on the way in. The norms' epsilon is 1e-5 and theta is 10,000.

A tokenizer file holds an int32, the longest piece's length, then per id a float32 score, an int32 length, and the
piece with plain spaces. A SentencePiece model (`.model`) beside the weights is read as well.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from minedge.config import Config
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import sentencepiece as spm
from minedge.io.jsonfile import open_regular
from minedge.model.linears import LinearKind, dense_kind
from minedge.model.shapes import linear_shapes, param_shapes

__all__ = ["read_model", "read_tokenizer", "tokenizer_beside"]

_HEADER = 28
_LIMITS = {  # what no model of this format comes near
    "dim": 1 << 20, "hidden_dim": 1 << 22, "n_layers": 10_000, "n_heads": 1 << 16, "n_kv_heads": 1 << 16,
    "vocab_size": 1 << 24, "seq_len": 1 << 24,
}  # fmt: skip
_CHUNK = 4 << 20  # bytes
_MAX_TOKENIZER = 64 << 20
_NEWER = 0x616B3432  # "ak42", which later formats start with
_FOREIGN = {b"PK\x03\x04": "a zip archive", b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle"}


def read_model(
    path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None, with_tokenizer: bool = True
) -> tuple[Config, dict[str, np.ndarray], dict[str, LinearKind], Any]:
    """Read a model: config, read-only float32 params, linears (all dense), and the tokenizer: the file given, or one
    that lies beside the model and fits, or None with a warning.

    Raises MinedgeFormatError where the header's sizes are impossible or not those of the file.
    """
    path = os.fspath(path)
    file, size = open_regular(path)
    with file:
        config = _read_config(file, size, path)
        linears = dict.fromkeys(linear_shapes(config), dense_kind())
        params = {}
        for keys, shape in _layout(config):
            for key in keys:
                array = np.empty(shape, np.float32)
                _read_into(file, array, path)
                if key is not None:
                    params[key] = _half_split(config, key, array)
    for array in params.values():
        array.flags.writeable = False
    found = None
    if tokenizer:
        found = read_tokenizer(tokenizer, config.vocab_size)
    elif with_tokenizer:
        found = tokenizer_beside(Path(path), config.vocab_size)
    return config, {key: params[key] for key in param_shapes(config, linears)}, linears, found


def _read_config(file: Any, size: int, path: str) -> Config:
    head = file.read(_HEADER) or b""
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise MinedgeFormatError(
                f"{path}: {what}, which can run any code and is never read; convert a PyTorch checkpoint where "
                "transformers is installed: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
    if len(head) < _HEADER:
        raise MinedgeFormatError(f"{path}: {size} bytes, too short for a llama2.c model")
    numbers = struct.unpack("<7i", head)
    if numbers[0] == _NEWER:
        raise MinedgeFormatError(
            f"{path}: llama2.c format {numbers[1]}; expected the legacy format (export.py --version 0)"
        )
    sizes = dict(zip(_LIMITS, numbers, strict=True))
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    for name, limit in _LIMITS.items():
        if not 1 <= sizes[name] <= limit:
            raise MinedgeFormatError(f"{path}: {name}: expected 1 to {limit}, got {sizes[name]}; not a llama2.c model?")
    try:
        config = Config(
            architecture="llama", vocab_size=sizes["vocab_size"], n_layer=sizes["n_layers"], n_embd=sizes["dim"],
            n_head=sizes["n_heads"], n_kv_head=sizes["n_kv_heads"], n_inner=sizes["hidden_dim"],
            context_length=sizes["seq_len"], tie_embeddings=numbers[5] > 0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    except UsageError as error:
        raise MinedgeFormatError(f"{path}: {error}; not a llama2.c model?") from None
    expected = _HEADER + 4 * sum(len(keys) * prod(shape) for keys, shape in _layout(config))
    if expected != size:
        what = "truncated?" if size < expected else "not a llama2.c model?"
        raise MinedgeFormatError(f"{path}: its sizes ask for {expected} bytes, the file has {size}; {what}")
    return config


def _layout(config: Config) -> Iterator[tuple[list[str | None], tuple[int, ...]]]:
    """What follows the header: runs of arrays of one shape, by parameter name; None is passed over."""
    a, L, C, V = config.arch, config.n_layer, config.n_embd, config.vocab_size

    def layers(role: str) -> list[str | None]:
        return [f"{config.layer_name(i, role)}.weight" for i in range(L)]

    yield [f"{a.embed}.weight"], (V, C)
    yield layers(a.norm1), (C,)
    for role, width in zip(a.attn_in, (config.q_width, config.kv_width, config.kv_width), strict=True):
        yield layers(role), (width, C)
    yield layers(a.attn_out), (C, config.q_width)
    yield layers(a.norm2), (C,)
    gate, up = a.mlp_in
    yield layers(gate), (config.n_inner, C)
    yield layers(a.mlp_out), (C, config.n_inner)
    yield layers(up), (config.n_inner, C)
    yield [f"{a.final_norm}.weight"], (C,)
    yield [None, None], (config.context_length, config.head_dim // 2)
    if not config.tie_embeddings:
        yield [f"{a.head}.weight"], (V, C)


def _read_into(file: Any, array: np.ndarray, path: str) -> None:
    view, done = array.reshape(-1).view(np.uint8).data, 0
    while done < len(view):
        try:
            count = file.readinto(view[done : done + _CHUNK])
        except OSError as error:
            raise MinedgeFormatError(f"{path}: cannot be read: {error.strerror}") from error
        if not count:
            raise MinedgeFormatError(f"{path}: the file became shorter while it was read")
        done += count
    if not array.dtype.isnative:  # the file is little-endian
        array.byteswap(inplace=True)


def _half_split(config: Config, key: str, array: np.ndarray) -> np.ndarray:
    """Rows of q and k from pairs (2i, 2i + 1) to pairs (i, i + head_dim/2)."""
    if not key.removesuffix(".weight").endswith(config.arch.attn_in[:2]):
        return array
    paired = array.reshape(-1, config.head_dim // 2, 2, config.n_embd)
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(array.shape)


# ---------------------------------------------------------------- tokenizer


def read_tokenizer(path: str | os.PathLike[str], vocab_size: int) -> Tokenizer:
    """Read a llama2.c tokenizer file of `vocab_size` pieces, or a SentencePiece model; MinedgeFormatError if it is
    neither.
    """
    path = os.fspath(path)
    file, size = open_regular(path, _MAX_TOKENIZER)
    with file:
        data = file.read(size) or b""
    if path.endswith(".model"):
        pieces, scores, types = spm.parse_model(data, path, vocab_size)
        if len(pieces) != vocab_size:
            raise MinedgeFormatError(f"{path}: {len(pieces)} pieces, but the model has {vocab_size}")
    else:
        pieces, scores = _parse(data, vocab_size, path)
        types = [_type(i, piece) for i, piece in enumerate(pieces)]
    return spm.build(pieces, scores, types, path, bos_id=1, eos_id=2)


def _parse(data: bytes, count: int, path: str) -> tuple[list[str], list[float]]:
    if 4 + 8 * count > len(data):
        raise MinedgeFormatError(f"{path}: {len(data)} bytes, too short for the {count} tokens of the model")
    longest, at = int.from_bytes(data[:4], "little", signed=True), 4
    pieces, scores = [], []
    for i in range(count):
        if at + 8 > len(data):
            raise MinedgeFormatError(f"{path}: byte {at}: token {i}: the file ends; truncated?")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 < length <= min(longest, len(data) - at):
            raise MinedgeFormatError(
                f"{path}: byte {at - 4}: token {i}: length {length}, expected 1 to {min(longest, len(data) - at)}"
            )
        try:
            piece = data[at : at + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise MinedgeFormatError(f"{path}: byte {at}: token {i} is not UTF-8: {error.reason}") from None
        at += length
        # The exporter wraps the two markers in line ends and writes plain spaces.
        pieces.append(piece.strip("\n") if i in (1, 2) and len(piece) > 2 else piece.replace(" ", spm.SPACE))
        scores.append(score)
    if at != len(data):
        raise MinedgeFormatError(f"{path}: byte {at}: {len(data) - at} bytes after the last of {count} tokens")
    return pieces, scores


def _type(i: int, piece: str) -> int:
    if i < 3:
        return (spm.UNKNOWN, spm.CONTROL, spm.CONTROL)[i]
    return spm.BYTE if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">") else spm.NORMAL


def tokenizer_beside(path: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer that lies in the model's folder, by the names llama2.c gives it."""
    names = [f"tok{vocab_size}.bin", "tokenizer.bin", f"tok{vocab_size}.model", "tokenizer.model"]
    for name in names:
        if (path.parent / name).is_file():
            return read_tokenizer(path.parent / name, vocab_size)
    warnings.warn(f"{path}: no tokenizer beside it ({', '.join(names)})", UserWarning, stacklevel=5)
    return None
