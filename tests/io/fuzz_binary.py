"""Mutants of binary files: safetensors (against its library), GGUF (against its package), llama2.c, SentencePiece."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf as oracle
from safetensors import deserialize

from minedge.errors import MinedgeFormatError
from minedge.io import gguf, llama2c, safetensors
from tests.io.badfiles import GOOD, entry, pack
from tests.io.fuzz_common import TEXTS, WIDE, Format, is_whole
from tests.io.gguf_files import ARRAY, GGUF, U32, Tensor, array, good, u32, u64
from tests.io.llama2c_files import BAD_TOKENIZERS, sentencepiece, tokenizer
from tests.io.llama2c_files import good as good_llama2c

__all__ = ["gguf_files", "llama2c_models", "safetensors_files", "vocabularies"]

# ---------------------------------------------------------------- safetensors, against the library

_SEED = {"a": entry(shape=(2, 1), offsets=(0, 8)), "b": entry("F16", (3,), (8, 14)), "c": entry("BOOL", (2,), (14, 16))}
_NUMBERS = [
    -1, 0, 1, 2, 3, 4, 6, 8, 14, 16, 17, 1 << 31, 1 << 32, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64,
    0.5, True,
]  # fmt: skip
_TYPES = ["F16", "BF16", "U8", "I64", "F8_E5M2", "C64", "", 1, "BOOL", "F64", "U16"]


def _header(rng: random.Random) -> bytes:
    """A header with up to three fields, tensors or names changed."""
    header: dict[str, Any] = {name: dict(fields) for name, fields in _SEED.items()}
    for _ in range(rng.randint(1, 3)):
        if not header:
            break
        name = rng.choice(sorted(header))
        match rng.randrange(8):
            case 0:
                header[name].pop(rng.choice(["dtype", "shape", "data_offsets"]), None)
            case 1:
                header[rng.choice(["", "a", "z", "__metadata__", "é"])] = header.pop(name)
            case 2:
                header[name]["extra"] = 1
            case 3:
                header[name]["dtype"] = rng.choice(_TYPES)
            case 4 | 5:
                header[name]["shape"] = [rng.choice(_NUMBERS) for _ in range(rng.randint(0, 4))]
            case 6:
                header[name]["data_offsets"] = [rng.choice(_NUMBERS) for _ in range(rng.choice([2, 2, 2, 1, 3]))]
            case 7:
                header = dict(rng.sample(sorted(header.items()), len(header)))
    text = json.dumps(header, separators=rng.choice([None, (",", ":")])).encode()
    if rng.random() < 0.5:
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(TEXTS) + text[at + rng.randint(0, 3) :]
    length = rng.choice([None, None, None, None, len(text) - 1, len(text) + 1, 0, 1 << 63])
    return pack(text, bytes(rng.choice([16, 16, 16, 15, 17, 0])), length)


def _bytes(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A good file with up to three bytes or words changed, put in or left out; often with a length that fits again."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 4)]
            case 2:
                data[at : at + rng.randint(0, 2)] = rng.choice(TEXTS)
            case 3:
                data[at : at + 1] = rng.choice(b'0123456789,:[]{}" ').to_bytes(1, "little")
    if rng.random() < 0.7 and len(data) > 8:  # so that mutations reach the parser
        data[:8] = max(0, min(len(data) - 8, data.rfind(b"}") + 1 - 8)).to_bytes(8, "little")
    return bytes(data)


def safetensors_files(folder: Path) -> Format:
    seeds, path = [*GOOD.values(), pack(_SEED, bytes(16))], folder / "f.safetensors"

    def one(rng: random.Random, folder: Path) -> bool:
        data = _header(rng) if rng.random() < 0.5 else _bytes(rng, seeds)
        path.write_bytes(data)
        return _agrees(data, path)

    return one


def _agrees(data: bytes, path: Path) -> bool:
    """Whether the reader accepts `data`, which is at `path`; fails if the library rejects that or reads other values,
    or on another error.
    """
    try:
        ours = safetensors.read(path)
    except MinedgeFormatError:
        return False
    theirs = dict(deserialize(data))  # raises if the library rejects it
    assert ours.keys() == theirs.keys()
    for name, array_ in ours.items():
        assert list(array_.shape) == theirs[name]["shape"]
        if theirs[name]["dtype"] != "BF16":
            assert array_.tobytes() == bytes(theirs[name]["data"])
    return True


# ---------------------------------------------------------------- GGUF


def gguf_mutant(rng: random.Random, base: GGUF) -> bytes:
    """A good file with one or two parts changed: a number, a type, a name, a shape, an order, or plain bytes."""
    f = GGUF(dict(base.keys), [Tensor(**vars(t)) for t in base.tensors])
    for _ in range(rng.randint(1, 2)):
        if not f.keys or not f.tensors:
            break
        key, tensor = rng.choice(list(f.keys)), rng.choice(f.tensors)
        match rng.randrange(12):
            case 0:
                f.keys[key] = (rng.choice([0, 4, 5, 6, 7, 8, 9, 10, 12, 13]), f.keys[key][1])
            case 1:
                value = bytearray(f.keys[key][1])
                at = rng.randrange(0, len(value), 4)
                value[at : at + 8] = u64(rng.choice(WIDE))[: len(value[at : at + 8])]
                f.keys[key] = (f.keys[key][0], bytes(value))
            case 2:
                del f.keys[key]
            case 3:
                tensor.shape = tuple(rng.choice([*tensor.shape, *WIDE]) for _ in range(rng.randint(0, 4)))
            case 4:
                tensor.code = rng.choice([0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 20, 30, 99])
            case 5:
                tensor.offset = rng.choice([0, 32, 64, 1024, *WIDE])
            case 6:
                tensor.name = rng.choice([t.name for t in f.tensors] + ["", "n", "output.weight", "rope_freqs.weight"])
            case 7:
                f.tensors.remove(tensor)
            case 8:
                tensor.data = tensor.data[: rng.choice([0, 4, 32, len(tensor.data)])] + bytes(rng.choice([0, 1, 32]))
            case 9:
                f.n_tensors, f.n_keys = rng.choice([None, *WIDE]), rng.choice([None, None, *WIDE])
            case 10:
                f.keys[key] = (ARRAY, array(rng.choice([0, 4, 8, 9]), [f.keys[key][1]], rng.choice([None, *WIDE])))
            case 11:
                f.keys["general.alignment"] = (U32, u32(rng.choice([0, 8, 16, 32, 48, 64, 1 << 20])))
    data = bytearray(f.build())
    if rng.random() < 0.3:
        at = rng.randrange(min(len(data), 2000))
        data[at : at + rng.randint(0, 8)] = rng.choice([b"", b"\xff", bytes(8), u64(rng.choice(WIDE))])
    return bytes(data)


def gguf_files(folder: Path) -> Format:
    base, path, accepted = good(), folder / "m.gguf", [0]

    def one(rng: random.Random, folder: Path) -> bool:
        path.write_bytes(gguf_mutant(rng, base))
        try:
            with gguf.GGUFFile(path) as file:
                header = file.header
            config, params, linears, _ = gguf.read_model(path)
        except MinedgeFormatError:
            return False
        is_whole(config, params, linears)
        accepted[0] += 1
        if accepted[0] % 20 == 1:
            theirs = {t.name: t for t in oracle.GGUFReader(path).tensors}
            assert theirs.keys() == header.tensors.keys()
            for name, info in header.tensors.items():
                assert tuple(theirs[name].shape[::-1]) == info.shape and theirs[name].data_offset == info.start
        return True

    return one


# ---------------------------------------------------------------- llama2.c: models, vocabularies, SentencePiece's


def llama2c_models(folder: Path) -> Format:
    whole, path = good_llama2c(), folder / "m.bin"

    def one(rng: random.Random, folder: Path) -> bool:
        data = bytearray(whole)
        for _ in range(rng.randint(1, 2)):
            at = 4 * rng.randrange(7)
            data[at : at + 4] = struct.pack("<i", rng.choice([0, 1, 2, 3, 4, 8, -1, -3, 1 << 20, 2**31 - 1, -(2**31)]))
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        try:
            config, params, linears, _ = llama2c.read_model(path)
        except MinedgeFormatError:
            return False
        is_whole(config, params, linears)
        assert sum(a.nbytes for a in params.values()) <= path.stat().st_size
        return True

    return one


_PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", b"a", b"b", b" a", b"ab", b" ab"]
_WORDS = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("a", 1), ("b", 1), ("▁a", 1), ("ab", 1), ("▁ab", 4)]


def vocabularies(folder: Path) -> Format:
    seeds = {
        ".bin": [tokenizer([(-float(i), piece) for i, piece in enumerate(_PIECES)])],
        ".model": [sentencepiece([(word, -float(i), kind) for i, (word, kind) in enumerate(_WORDS)])],
    }
    for ending, data in BAD_TOKENIZERS.values():
        if data:
            seeds[ending].append(data)

    def one(rng: random.Random, folder: Path) -> bool:
        ending = rng.choice(sorted(seeds))
        data = bytearray(seeds[ending][0] if rng.random() < 0.8 else rng.choice(seeds[ending]))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            with_ = rng.choice([b"", bytes([rng.randrange(256)]), u32(rng.choice(WIDE) & 0xFFFFFFFF), b"a", b"\xff"])
            data[at : at + rng.choice([0, 1, len(with_)])] = with_
        (folder / f"t{ending}").write_bytes(data)
        try:
            read = llama2c.read_tokenizer(folder / f"t{ending}", len(_PIECES))
        except MinedgeFormatError:
            return False
        assert isinstance(read.decode(read.encode("ab a é")), str)
        assert max(read.backend.get_vocab().values(), default=0) < len(_PIECES)
        return True

    return one
