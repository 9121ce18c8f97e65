"""Hand-made safetensors files, one per rule of the format, and what the `safetensors` library says about a file."""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError, deserialize

__all__ = ["BAD", "GOOD", "STRICTER", "entry", "library_accepts", "pack"]


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from a header (an object, or its text) and the tensors' bytes; `length` lies about the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def library_accepts(data: bytes) -> bool:
    try:
        deserialize(data)
    except SafetensorError:
        return False
    return True


_T = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
_EIGHT = bytes(8)

GOOD = {
    "no tensors": pack({}),
    "one tensor": pack({"a": entry()}, _EIGHT),
    "padded with spaces": pack(b"{" + _T + b"}   ", _EIGHT),
    "white space between tokens": pack(
        b'{ "a" :\n{"dtype":\t"F32", "shape" : [ 2 ],\r "data_offsets":[0 , 8]} }', _EIGHT
    ),
    "keys in another order": pack(b'{"a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}', _EIGHT),
    "entries not in the order of their bytes": pack({"b": entry(offsets=(8, 16)), "a": entry()}, bytes(16)),
    "metadata": pack({"__metadata__": {"format": "pt"}, "a": entry()}, _EIGHT),
    "scalar": pack({"a": entry(shape=(), offsets=(0, 4))}, bytes(4)),
    "empty tensor with a large other dimension": pack({"a": entry(shape=(4096, 0), offsets=(0, 0))}),
    "escaped name": pack(b'{"\\u00e9\\ud83d\\ude00\\n":' + _T[4:] + b"}", _EIGHT),
    "name beyond ASCII": pack('{"é漢😀":'.encode() + _T[4:] + b"}", _EIGHT),
}

# The library rejects these too.
BAD = {
    "empty file": b"",
    "seven bytes": bytes(7),
    "header length beyond the limit": pack(b"{}", length=100_000_001),
    "header length of 2^64-1": pack(b"{}", length=(1 << 64) - 1),
    "header length beyond the file": pack(b"{}", length=3),
    "header of length 0": pack(b""),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c",
    "zip file (pytorch_model.bin)": b"PK\x03\x04" + bytes(60),
    "header is not an object": pack(b"[1]"),
    "header is a string": pack(b'"a"'),
    "unfinished object": pack(b"{" + _T, _EIGHT),
    "unfinished string": pack(b'{"a'),
    "unfinished escape": pack(b'{"a\\'),
    "bad escape": pack(b'{"a\\x":' + _T[4:] + b"}", _EIGHT),
    "lone surrogate": pack(b'{"\\ud800":' + _T[4:] + b"}", _EIGHT),
    "surrogate as UTF-8": pack(b'{"\xed\xa0\x80":' + _T[4:] + b"}", _EIGHT),
    "invalid UTF-8": pack(b'{"\xff":' + _T[4:] + b"}", _EIGHT),
    "overlong UTF-8": pack(b'{"\xc0\xaf":' + _T[4:] + b"}", _EIGHT),
    "control character in a string": pack(b'{"a\n":' + _T[4:] + b"}", _EIGHT),
    "zero byte in a string": pack(b'{"a\0":' + _T[4:] + b"}", _EIGHT),
    "comma after the last entry": pack(b"{" + _T + b",}", _EIGHT),
    "missing comma": pack(b"{" + _T + b' "b":{}}', _EIGHT),
    "missing colon": pack(b'{"a" {}}', _EIGHT),
    "single quotes": pack(b"{'a':{}}"),
    "second object": pack(b"{}{}"),
    "text after the header": pack(b"{}x"),
    "comment": pack(b"{/* */}"),
    "entry is null": pack(b'{"a":null}'),
    "entry is a list": pack(b'{"a":[]}'),
    "entry is a number": pack(b'{"a":1}'),
    "dtype missing": pack({"a": {"shape": [2], "data_offsets": [0, 8]}}, _EIGHT),
    "shape missing": pack({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, _EIGHT),
    "data_offsets missing": pack({"a": {"dtype": "F32", "shape": [2]}}, _EIGHT),
    "dtype twice": pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', _EIGHT),
    "unknown dtype": pack({"a": entry("F31")}, _EIGHT),
    "dtype in small letters": pack({"a": entry("f32")}, _EIGHT),
    "dtype is a number": pack(b'{"a":{"dtype":32,"shape":[2],"data_offsets":[0,8]}}', _EIGHT),
    "shape is a number": pack(b'{"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}}', _EIGHT),
    "shape of strings": pack({"a": entry(shape=("2",))}, _EIGHT),
    "shape with null": pack({"a": entry(shape=(2, None))}, _EIGHT),
    "negative dimension": pack({"a": entry(shape=(-2,))}, _EIGHT),
    "two negative dimensions": pack({"a": entry(shape=(-2, -1))}, _EIGHT),
    "minus zero": pack(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
    "float dimension": pack(b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', _EIGHT),
    "exponent": pack(b'{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', _EIGHT),
    "leading zero": pack(b'{"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}}', _EIGHT),
    "plus sign": pack(b'{"a":{"dtype":"F32","shape":[+2],"data_offsets":[0,8]}}', _EIGHT),
    "hexadecimal": pack(b'{"a":{"dtype":"F32","shape":[0x2],"data_offsets":[0,8]}}', _EIGHT),
    "NaN dimension": pack(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', _EIGHT),
    "dimension of 2^64": pack({"a": entry(shape=(1 << 64,))}, _EIGHT),
    "dimension of 5,000 digits": pack({"a": entry(shape=(0,))}, _EIGHT).replace(b"[0]", b"[" + b"9" * 5000 + b"]"),
    "dimension of 100,000 digits": pack(b'{"a":{"dtype":"F32","shape":[' + b"1" * 100_000 + b"]}}"),
    "shape product wraps to zero": pack({"a": entry(shape=(1 << 32, 1 << 32), offsets=(0, 0))}),
    "shape product wraps to the size": pack({"a": entry(shape=((1 << 62) + 2,))}, _EIGHT),
    "huge dimensions before a zero": pack({"a": entry(shape=(1 << 40, 1 << 40, 0), offsets=(0, 0))}),
    "shape larger than the range": pack({"a": entry(shape=(3,))}, _EIGHT),
    "shape smaller than the range": pack({"a": entry(shape=(1,))}, _EIGHT),
    "element type larger than the range": pack({"a": entry("F64")}, _EIGHT),
    "one offset": pack({"a": entry(offsets=(8,))}, _EIGHT),
    "three offsets": pack({"a": entry(offsets=(0, 8, 8))}, _EIGHT),
    "no offsets": pack({"a": entry(offsets=())}, _EIGHT),
    "offsets are an object": pack({"a": {"dtype": "F32", "shape": [2], "data_offsets": {"0": 8}}}, _EIGHT),
    "negative offset": pack({"a": entry(offsets=(-8, 0))}, _EIGHT),
    "end before begin": pack({"a": entry(offsets=(8, 0))}, _EIGHT),
    "end beyond the file": pack({"a": entry(shape=(3,), offsets=(0, 12))}, _EIGHT),
    "end far beyond the file": pack({"a": entry("U8", (1 << 50,), (0, 1 << 50))}, _EIGHT),
    "begin beyond the file": pack({"a": entry(offsets=(1 << 40, (1 << 40) + 8))}, _EIGHT),
    "hole at the start": pack({"a": entry(offsets=(8, 16))}, bytes(16)),
    "hole between tensors": pack({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "bytes after the last tensor": pack({"a": entry()}, bytes(9)),
    "bytes without tensors": pack({}, bytes(1)),
    "overlapping tensors": pack({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same range twice": pack({"a": entry(), "b": entry()}, _EIGHT),
    "one range inside another": pack({"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 12))}, bytes(16)),
    "truncated data": pack({"a": entry()}, bytes(7)),
    "metadata twice": pack(b'{"__metadata__":{},"__metadata__":{}}'),
    "metadata with a number": pack({"__metadata__": {"a": 1}}),
    "metadata with an object": pack({"__metadata__": {"a": {}}}),
    "metadata is a list": pack({"__metadata__": []}),
    "metadata is a string": pack({"__metadata__": "pt"}),
    "100,000 lists deep": pack(b"[" * 100_000),
    "100,000 objects deep": pack(b'{"a":' * 100_000),
    "deep list as a shape": pack(b'{"a":{"dtype":"F32","shape":' + b"[" * 100_000 + b"}}"),
    "deep list as metadata": pack(b'{"__metadata__":{"a":' + b"[" * 100_000 + b"}}"),
}

# The library accepts these, this package does not: the list in minedge/io/safetensors.py.
STRICTER = {
    "space before the header": pack(b" {" + _T + b"}", _EIGHT),
    "line end after the header": pack(b"{" + _T + b"}\n", _EIGHT),
    "tensor twice": pack(b"{" + _T + b"," + _T + b"}", _EIGHT),
    "metadata key twice": pack(b'{"__metadata__":{"a":"1","a":"2"},' + _T + b"}", _EIGHT),
    "unknown key in an entry": pack({"a": entry(more=1)}, _EIGHT),
    "metadata is null": pack(b'{"__metadata__":null,' + _T + b"}", _EIGHT),
    "element type without a NumPy type": pack({"a": entry("F8_E4M3", (8,))}, _EIGHT),
    "33 dimensions": pack({"a": entry(shape=(1,) * 33, offsets=(0, 4))}, bytes(4)),
    "zero before huge dimensions": pack({"a": entry(shape=(0, 1 << 40, 1 << 40), offsets=(0, 0))}),
    "thousands of names and no data": pack({f"{i:x}": entry("U8", (0,), (0, 0)) for i in range(20_000)}),
    "thousands of one-byte tensors": pack(
        {f"{i:x}": entry("U8", (), (i, i + 1)) for i in range(20_000)}, bytes(20_000)
    ),
    "thousands of entries in the metadata": pack({"__metadata__": {f"{i:x}": "" for i in range(50_000)}}),
    "a million letters and one of four bytes": pack(
        b'{"__metadata__":{"a":"' + b"a" * 1_000_000 + "😀".encode() + b'"}}'
    ),
    "a million escapes": pack(b'{"__metadata__":{"a":"' + b"\\n" * 1_000_000 + b'"}}'),
    "BOOL byte of 2": pack({"a": entry("BOOL", (1,), (0, 1))}, b"\x02"),
}
