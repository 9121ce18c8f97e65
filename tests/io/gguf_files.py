"""GGUF files by hand: a small good model, and one file per way to be bad."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["BAD", "GGUF", "HEADER_RULES", "good", "string", "u32", "u64"]

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10
MAX64 = (1 << 64) - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & MAX64)


def string(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data) if length is None else length) + data


def array(code: int, items: list[bytes], count: int | None = None) -> bytes:
    return u32(code) + u64(len(items) if count is None else count) + b"".join(items)


@dataclass
class Tensor:
    name: str | bytes
    shape: tuple[int, ...]  # NumPy's order
    code: int = 0
    data: bytes = b""
    offset: int | None = None  # None: where it belongs
    n_dims: int | None = None
    name_length: int | None = None


@dataclass
class GGUF:
    """A file in parts, so that a test can change one of them and leave the rest right."""

    keys: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # key -> type, encoded value
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    extra_keys: bytes = b""  # encoded entries after the others, counted in n_extra
    n_extra: int = 0
    tail: bytes = b""
    magic: bytes = b"GGUF"
    alignment: int = 32

    def build(self) -> bytes:
        n_keys = len(self.keys) + self.n_extra if self.n_keys is None else self.n_keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        out = self.magic + u32(self.version) + u64(n_tensors) + u64(n_keys)
        for key, (code, value) in self.keys.items():
            out += string(key) + u32(code) + value
        out += self.extra_keys
        data = b""
        for t in self.tensors:
            offset = len(data) if t.offset is None else t.offset
            dims = b"".join(map(u64, t.shape[::-1]))
            n_dims = len(t.shape) if t.n_dims is None else t.n_dims
            out += string(t.name, t.name_length) + u32(n_dims) + dims + u32(t.code) + u64(offset)
            data += t.data + bytes(-len(t.data) % self.alignment)
        return out + bytes(-len(out) % self.alignment) + data + self.tail

    def set(self, key: str, code: int, value: Any) -> GGUF:
        encoded = (
            value
            if isinstance(value, bytes)
            else {F32: lambda v: struct.pack("<f", v), STRING: string}.get(
                code, u64 if code == U64 else lambda v: bytes([v]) if code in (U8, BOOL) else u32(v)
            )(value)
        )
        self.keys[key] = (code, encoded)
        return self

    def drop(self, key: str) -> GGUF:
        del self.keys[key]
        return self

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def change(self, _tensor: str, **changes: Any) -> GGUF:
        for key, value in changes.items():
            setattr(self.tensor(_tensor), key, value)
        return self


V, C = 8, 32


def good() -> GGUF:
    """A llama of one layer: 8 tokens, 32 wide, one matrix in Q4_0, with a SentencePiece vocabulary."""
    f, rng = GGUF(), np.random.default_rng(0)
    f.set("general.architecture", STRING, "llama")
    sizes = dict(block_count=1, context_length=16, embedding_length=C, feed_forward_length=C)
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 1}
    for key, value in sizes.items():
        f.set(f"llama.{key}", U32, value)
    f.set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    f.set("tokenizer.ggml.model", STRING, "llama")
    f.set("tokenizer.ggml.tokens", ARRAY, _tokens("<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"))
    f.set("tokenizer.ggml.scores", ARRAY, array(F32, [struct.pack("<f", -i) for i in range(V)]))
    f.set("tokenizer.ggml.token_type", ARRAY, array(I32, [u32(t) for t in (2, 3, 3, 1, 1, 1, 1, 1)]))
    f.set("tokenizer.ggml.bos_token_id", U32, 1).set("tokenizer.ggml.eos_token_id", U32, 2)
    shapes = {"token_embd": (V, C), "blk.0.attn_norm": (C,), "blk.0.attn_q": (C, C), "blk.0.attn_k": (16, C)}
    shapes |= {"blk.0.attn_v": (16, C), "blk.0.attn_output": (C, C), "blk.0.ffn_norm": (C,)}
    shapes |= {f"blk.0.ffn_{n}": (C, C) for n in ("gate", "up", "down")} | {"output_norm": (C,)}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype("<f4")
        f.tensors.append(Tensor(f"{name}.weight", shape, 0, values.tobytes()))
    blocks = rng.integers(0, 256, (C, 18), np.uint8)
    blocks[:, :2] = np.full(C, 0.5, "<f2").view(np.uint8).reshape(C, 2)
    return f.change("blk.0.ffn_up.weight", code=2, data=blocks.tobytes())


def _entry(key: str | bytes, code: int, value: bytes, length: int | None = None) -> GGUF:
    f = good()
    f.extra_keys, f.n_extra = string(key, length) + u32(code) + value, 1
    return f


def _extra(tensor: Tensor) -> GGUF:
    f = good()
    f.tensors.append(tensor)
    return f


def _with(**changes: Any) -> GGUF:
    f = good()
    for key, value in changes.items():
        setattr(f, key, value)
    return f


def _tokens(*words: str, **more: int) -> bytes:
    return array(STRING, [string(word) for word in words], **more)


def _gpt2(merges: list[str]) -> GGUF:
    f = good().set("tokenizer.ggml.model", STRING, "gpt2").set("tokenizer.ggml.pre", STRING, "gpt-2")
    return f.set("tokenizer.ggml.merges", ARRAY, _tokens(*merges))


_UP, _NORM = "blk.0.ffn_up.weight", "output_norm.weight"
_ONE = bytes(32)

# Name -> a function that makes the file, so that a file of megabytes is made only when it is used.
BAD: dict[str, Callable[[], GGUF | bytes]] = {
    # --- the first 24 bytes
    "empty file": lambda: b"",
    "three bytes": lambda: b"GGU",
    "magic alone": lambda: b"GGUF",
    "another magic": lambda: _with(magic=b"GGML"),
    "version 1": lambda: _with(version=1),
    "version 4": lambda: _with(version=4),
    "version 0": lambda: _with(version=0),
    "big-endian": lambda: _with(version=3 << 24),
    "2^64-1 tensors": lambda: _with(n_tensors=MAX64),
    "2^64-1 keys": lambda: _with(n_keys=MAX64),
    "tensor count that wraps when multiplied": lambda: _with(n_tensors=1 << 60),
    "key count that wraps when multiplied": lambda: _with(n_keys=1 << 59),
    "one tensor more than there is": lambda: _with(n_tensors=12),
    "one tensor less than there is": lambda: _with(n_tensors=10),
    "one key more than there is": lambda: _with(n_keys=15),
    "one key less than there is": lambda: _with(n_keys=13),
    "no tensors": lambda: _with(tensors=[]),
    # --- metadata
    "key longer than the file": lambda: _entry("k", U8, b"\1", length=MAX64),
    "key of length 0": lambda: _entry("", U8, b"\1"),
    "key of 65,536 bytes": lambda: _entry("k" * 65536, U8, b"\1"),
    "key that is not UTF-8": lambda: _entry(b"k\xff", U8, b"\1"),
    "key twice": lambda: _entry("general.architecture", STRING, string("llama")),
    "value of type 13": lambda: _entry("k", 13, u64(1)),
    "value of type 2^32-1": lambda: _entry("k", 0xFFFFFFFF, u64(1)),
    "truth value of 2": lambda: _entry("k", BOOL, b"\2"),
    "string longer than the file": lambda: _entry("k", STRING, string("v", length=1 << 20)),
    "string of 2^63 bytes": lambda: _entry("k", STRING, string("v", length=1 << 63)),
    "string of 2^64-1 bytes": lambda: _entry("k", STRING, string("v", length=MAX64)),
    "string that is not UTF-8": lambda: _entry("k", STRING, string(b"\xc3\x28")),
    "string that ends inside a character": lambda: _entry("k", STRING, string("é".encode()[:1])),
    "string with a surrogate": lambda: _entry("k", STRING, string(b"\xed\xa0\x80")),
    "long string with a bad byte at its end": lambda: _entry("k", STRING, string(b"a" * 200_000 + b"\xff")),
    "array of 2^64-1 elements": lambda: _entry("k", ARRAY, array(U32, [u32(1)], count=MAX64)),
    "array whose bytes wrap to zero": lambda: _entry("k", ARRAY, array(U64, [], count=1 << 61)),
    "array of strings whose bytes wrap to zero": lambda: _entry("k", ARRAY, array(STRING, [], count=1 << 61)),
    "array longer than the file": lambda: _entry("k", ARRAY, array(F32, [bytes(4)], count=1 << 30)),
    "array of arrays": lambda: _entry("k", ARRAY, array(ARRAY, [array(U8, [b"\1"])])),
    "arrays 100,000 deep": lambda: _entry("k", ARRAY, (u32(ARRAY) + u64(1)) * 100_000),
    "array of type 13": lambda: _entry("k", ARRAY, array(13, [bytes(8)])),
    "array of truth values with a 2": lambda: _entry("k", ARRAY, array(BOOL, [b"\0", b"\2"])),
    "array whose second string is longer than the file": lambda: _entry(
        "k", ARRAY, array(STRING, [string("a"), string("b", length=1 << 40)])
    ),
    "array with a string that is not UTF-8": lambda: _entry("k", ARRAY, array(STRING, [string(b"\xff")])),
    "alignment 0": lambda: good().set("general.alignment", U32, 0),
    "alignment 1": lambda: good().set("general.alignment", U32, 1),
    "alignment 48": lambda: good().set("general.alignment", U32, 48),
    "alignment 2^31": lambda: good().set("general.alignment", U32, 1 << 31),
    "alignment that is a string": lambda: good().set("general.alignment", STRING, "32"),
    "alignment other than the file's": lambda: good().set("general.alignment", U32, 4096),
    # --- tensors
    "tensor name of 65 bytes": lambda: _extra(Tensor("n" * 65, (8,), data=_ONE)),
    "tensor name of length 0": lambda: _extra(Tensor("", (8,), data=_ONE)),
    "tensor name that is not UTF-8": lambda: _extra(Tensor(b"\xff", (8,), data=_ONE)),
    "tensor name longer than the file": lambda: _extra(Tensor("n", (8,), data=_ONE, name_length=MAX64)),
    "tensor name twice": lambda: _extra(Tensor(_NORM, (8,), data=_ONE)),
    "no dimensions": lambda: _extra(Tensor("n", (), data=_ONE)),
    "five dimensions": lambda: _extra(Tensor("n", (1, 1, 1, 1, 8), data=_ONE)),
    "2^32-1 dimensions": lambda: _extra(Tensor("n", (8,), data=_ONE, n_dims=0xFFFFFFFF)),
    "dimension of 0": lambda: _extra(Tensor("n", (4, 0), data=_ONE)),
    "zero among huge dimensions": lambda: _extra(Tensor("n", (1 << 40, 0, 1 << 40), data=_ONE)),
    "dimension of 2^64-1": lambda: _extra(Tensor("n", (MAX64,), data=_ONE)),
    "shape product wraps to zero": lambda: _extra(Tensor("n", (1 << 32, 1 << 32), data=_ONE)),
    "shape product wraps to the size": lambda: _extra(Tensor("n", ((1 << 61) + 1, 8), data=_ONE)),
    "four dimensions that wrap": lambda: _extra(Tensor("n", (1 << 16,) * 4, data=_ONE)),
    "bytes wrap where the elements do not": lambda: _extra(Tensor("n", (1 << 62,), data=_ONE)),
    "type that was removed": lambda: good().change(_NORM, code=4),
    "unknown type": lambda: good().change(_NORM, code=99),
    "type 2^32-1": lambda: good().change(_NORM, code=0xFFFFFFFF),
    "rows that are no whole blocks": lambda: _extra(Tensor("n", (4, 8), 2, bytes(32))),
    "row of a K type that is no whole block": lambda: good().change(_UP, code=12),
    "offset that is not aligned": lambda: good().change(_NORM, offset=8),
    "offset beyond the file": lambda: good().change(_NORM, offset=1 << 40),
    "offset that wraps with its size": lambda: good().change(_NORM, offset=(1 << 64) - 32),
    "negative offset": lambda: good().change(_NORM, offset=-32),
    "overlapping tensors": lambda: good().change("blk.0.ffn_norm.weight", offset=32),
    "same range twice": lambda: _extra(Tensor("n", (8,), offset=0)),
    "gap between tensors": lambda: good().change(_UP, data=good().tensor(_UP).data + bytes(64)),
    "bytes after the last tensor": lambda: _with(tail=bytes(64)),
    "truncated data": lambda: good().build()[:-4],
    "truncated inside the header": lambda: good().build()[:500],
    "declared size far above the file's": lambda: _extra(Tensor("n", (1 << 20, 1 << 14), 0, _ONE)),
    "larger type than the data": lambda: good().change(_NORM, code=27),
    # --- what the metadata say about the model
    "no architecture": lambda: good().drop("general.architecture"),
    "unknown architecture": lambda: good().set("general.architecture", STRING, "mamba"),
    "architecture that is a number": lambda: good().set("general.architecture", U32, 1),
    "2^32-1 layers": lambda: good().set("llama.block_count", U32, 0xFFFFFFFF),
    "no layers": lambda: good().set("llama.block_count", U32, 0),
    "two layers, tensors of one": lambda: good().set("llama.block_count", U32, 2),
    "layers as a float": lambda: good().set("llama.block_count", F32, 1.0),
    "head count missing": lambda: good().drop("llama.attention.head_count"),
    "no heads": lambda: good().set("llama.attention.head_count", U32, 0),
    "negative heads": lambda: good().set("llama.attention.head_count", I32, u32(-2)),
    "heads that do not divide the width": lambda: good().set("llama.attention.head_count", U32, 5),
    "key heads that do not divide the heads": lambda: good().set("llama.attention.head_count_kv", U32, 3),
    "key heads for each layer": lambda: good().set("llama.attention.head_count_kv", ARRAY, array(U32, [u32(1)])),
    "no epsilon": lambda: good().drop("llama.attention.layer_norm_rms_epsilon"),
    "epsilon of NaN": lambda: good().set("llama.attention.layer_norm_rms_epsilon", F32, float("nan")),
    "epsilon of 0": lambda: good().set("llama.attention.layer_norm_rms_epsilon", F32, 0.0),
    "rotary base of infinity": lambda: good().set("llama.rope.freq_base", F32, float("inf")),
    "negative rotary base": lambda: good().set("llama.rope.freq_base", F32, -1.0),
    "no context": lambda: good().set("llama.context_length", U32, 0),
    "another width": lambda: good().set("llama.embedding_length", U32, 64),
    "another inner width": lambda: good().set("llama.feed_forward_length", U32, 64),
    "another vocabulary size": lambda: good().set("llama.vocab_size", U32, 9),
    "partial rotary": lambda: good().set("llama.rope.dimension_count", U32, 8),
    "values narrower than keys": lambda: good().set("llama.attention.value_length", U32, 8),
    "unknown rotary scaling": lambda: good().set("llama.rope.scaling.type", STRING, "yarn").set(
        "llama.rope.scaling.factor", F32, 4.0
    ),
    "experts": lambda: good().set("llama.expert_count", U32, 8),
    "sliding window": lambda: good().set("llama.attention.sliding_window", U32, 8),
    "scaled logits": lambda: good().set("llama.logit_scale", F32, 0.5),
    "one part of several": lambda: good().set("split.count", U32, 2),
    "no embedding": lambda: _with(tensors=good().tensors[1:]),
    "embedding with one dimension": lambda: good().change("token_embd.weight", shape=(V * C,)),
    "tensor missing": lambda: _with(tensors=good().tensors[:-1]),
    "unknown tensor": lambda: _extra(Tensor("blk.0.attn_q.bias", (8,), data=_ONE)),
    "tensor of a layer there is not": lambda: _extra(Tensor("blk.1.attn_norm.weight", (C,), data=bytes(4 * C))),
    "transposed matrix": lambda: good().change("blk.0.attn_k.weight", shape=(C, 16)),
    "vector with two dimensions": lambda: good().change(_NORM, shape=(1, C)),
    "type that cannot be read": lambda: good().change(_UP, code=20),
    "scale that is not finite": lambda: good().change(_UP, data=b"\xff\x7f" + good().tensor(_UP).data[2:]),
    "frequencies of no known scaling": lambda: _extra(
        Tensor("rope_freqs.weight", (8,), data=np.arange(1, 9, dtype="<f4").tobytes())
    ),
    "frequencies of NaN": lambda: _extra(Tensor("rope_freqs.weight", (8,), data=np.full(8, np.nan, "<f4").tobytes())),
    "frequencies of another width": lambda: _extra(
        Tensor("rope_freqs.weight", (16,), data=np.ones(16, "<f4").tobytes())
    ),
    "own scaling that is not JSON": lambda: _extra(
        Tensor("rope_freqs.weight", (8,), data=np.ones(8, "<f4").tobytes())
    ).set("minedge.rope_scaling", STRING, "[" * 100_000),
    # --- tokenizer
    "no tokens": lambda: good().drop("tokenizer.ggml.tokens"),
    "more tokens than the embedding has rows": lambda: good().set(
        "tokenizer.ggml.tokens", ARRAY, _tokens(*map(str, range(9)))
    ),
    "tokens that are numbers": lambda: good().set("tokenizer.ggml.tokens", ARRAY, array(U32, [u32(1)] * V)),
    "tokens that are one string": lambda: good().set("tokenizer.ggml.tokens", STRING, "abc"),
    "fewer scores than tokens": lambda: good().set("tokenizer.ggml.scores", ARRAY, array(F32, [bytes(4)])),
    "scores that are strings": lambda: good().set("tokenizer.ggml.scores", ARRAY, _tokens(*"12345678")),
    "score of NaN": lambda: good().set("tokenizer.ggml.scores", ARRAY, array(F32, [u32(0x7FC00000)] * V)),
    "fewer types than tokens": lambda: good().set("tokenizer.ggml.token_type", ARRAY, array(I32, [u32(1)])),
    "token type 9": lambda: good().set("tokenizer.ggml.token_type", ARRAY, array(I32, [u32(9)] * V)),
    "token twice": lambda: good().set("tokenizer.ggml.tokens", ARRAY, _tokens(*"abcdefga")),
    "empty token": lambda: good().set("tokenizer.ggml.tokens", ARRAY, _tokens(*"abcdefg", "")),
    "token of 5,000 characters": lambda: good().set("tokenizer.ggml.tokens", ARRAY, _tokens(*"abcdefg", "x" * 5000)),
    "merge without a space": lambda: _gpt2(["ab"]),
    "merge with two spaces": lambda: _gpt2(["a b c"]),
    "merge of unknown tokens": lambda: _gpt2(["a z"]),
    "merge into an unknown token": lambda: _gpt2(["b a"]),
}  # fmt: skip

# Those that break a rule of the file format itself, whatever is in it: the header's reader has to refuse them.
HEADER_RULES = tuple(BAD)[: tuple(BAD).index("no architecture")]
