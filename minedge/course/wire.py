"""Plain values as bytes, between the grader and a student's process: never pickle, which would run what it reads.

A message is a u64 length, then a u32 length of JSON, then JSON, then the arrays' bytes; in the JSON an array is
{"$array": [dtype, shape, offset]}. Reading checks every bound, since the other side may have written anything.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

from minedge.errors import MinedgeFormatError
from minedge.io.jsonfile import parse_json

__all__ = ["MAX_MESSAGE", "pack", "unpack"]

MAX_MESSAGE = 256 << 20
_KEY = "$array"
_DTYPES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)


def pack(value: Any) -> bytes:
    """None, bool, int, float, str, numeric arrays, and lists, tuples and dicts (with str keys) of them. Anything else
    raises TypeError naming it.
    """
    arrays: list[bytes] = []
    tree = _plain(value, arrays, 0)
    head = json.dumps({"v": tree}).encode()
    body = struct.pack("<I", len(head)) + head + b"".join(arrays)
    return struct.pack("<Q", len(body)) + body


def unpack(body: bytes, where: str = "answer") -> Any:
    """Inverse of `pack` for what follows the first length; tuples come back as lists. MinedgeFormatError on anything
    that `pack` does not write.
    """
    if len(body) < 4:
        raise MinedgeFormatError(f"{where}: cut off")
    (length,) = struct.unpack_from("<I", body)
    if length > len(body) - 4:
        raise MinedgeFormatError(f"{where}: cut off")
    tree = parse_json(body[4 : 4 + length], where, constants=True)
    return _arrays(tree.get("v"), memoryview(body)[4 + length :], where)


def _plain(value: Any, arrays: list[bytes], depth: int) -> Any:
    if depth > 20:
        raise TypeError("a value nested deeper than 20 levels")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.name not in _DTYPES:
            raise TypeError(f"an array of dtype {value.dtype}")
        at = sum(map(len, arrays))
        arrays.append(np.ascontiguousarray(value).tobytes())
        return {_KEY: [value.dtype.name, list(value.shape), at]}
    if isinstance(value, (list, tuple)):
        return [_plain(item, arrays, depth + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, arrays, depth + 1) for key, item in value.items()}
    raise TypeError(f"a value of type {type(value).__name__}")


def _arrays(tree: Any, data: memoryview, where: str) -> Any:
    if isinstance(tree, list):
        return [_arrays(item, data, where) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) != {_KEY}:
        return {key: _arrays(item, data, where) for key, item in tree.items()}
    try:
        dtype, shape, at = tree[_KEY]
        if dtype not in _DTYPES or len(shape) > 16 or any(type(n) is not int or n < 0 for n in (*shape, at)):
            raise ValueError
        count = math.prod(min(n, MAX_MESSAGE) for n in shape)
        if at + count * np.dtype(dtype).itemsize > len(data):
            raise ValueError
    except (ValueError, TypeError):
        raise MinedgeFormatError(f"{where}: an array that does not fit its bytes") from None
    return np.frombuffer(data, dtype, count, at).reshape(shape).copy() if count else np.empty(shape, dtype)
