"""The header of a safetensors file: parsed and checked against the file's real length before anything is allocated.

`minedge.io.safetensors` describes the format and says where this reader is stricter than the library.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import numpy as np

from minedge.errors import MinedgeFormatError
from minedge.io.jsonfile import open_regular

__all__ = ["FILE_DTYPES", "Header", "TensorInfo", "load_header", "read_header"]

_MAX_HEADER = 100_000_000
_MAX_NDIM = 32  # NumPy 1.x stops here

# Bytes of memory that an entry costs at most until its tensor is an array in a model's dict, or a string is in one;
# its name and the header's own bytes are counted apart. The whole may take four times the file, and what few entries
# cost in any file.
_TENSOR_COST, _NUMBER_COST, _STRING_COST = 700, 40, 100
_FREE = 128 << 10

# The element type as it lies in the file. bfloat16 is the upper half of a float32, which NumPy has no type for.
FILE_DTYPES = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: element type as the file names it, shape, and byte range counted from the end of the
    header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors in the order of their bytes, metadata, and where the data begin in the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


# ---------------------------------------------------------------- grammar

_SPACE = re.compile(rb"[ \t\n\r]*")
_SPACES = re.compile(rb" *")
_STRING_PART = re.compile(
    rb'[^"\\\x00-\x1f]*'
)  # up to the closing quote, an escape, or a control character (not allowed in JSON)
_NUMBER = re.compile(rb"(0|[1-9][0-9]{0,18})")  # at most 19 digits; -0, 1.0, 1e3, 01 then fail at their next character


class _Parser:
    """A JSON parser for just this grammar.

    It stops at the first thing the grammar does not allow, so it cannot recurse and never holds more than what it has
    accepted.
    """

    def __init__(self, data: bytes, where: str, file_size: int) -> None:
        self.data, self.where, self.at = data, where, 0
        self.left = 4 * file_size - len(data) + _FREE  # bytes of memory that may still be used

    def fail(self, why: str) -> NoReturn:
        raise MinedgeFormatError(f"{self.where}: header byte {self.at}: {why}")

    def pay(self, cost: int, for_now: int = 0) -> None:
        """Count `cost` bytes of memory, and fail where those and `for_now` more are too much for the file's size."""
        self.left -= cost
        if self.left < for_now:
            self.fail("names and metadata take more memory than four times the file; a real file has more data")

    def peek(self) -> bytes:
        match = _SPACE.match(self.data, self.at)
        self.at = match.end() if match else self.at
        return self.data[self.at : self.at + 1]

    def take(self, *chars: bytes) -> bytes:
        found = self.peek()
        if found not in chars:
            wanted = " or ".join(repr(char.decode()) for char in chars)
            self.fail(f"expected {wanted}, got {repr(found.decode('latin-1')) if found else 'the end of the header'}")
        self.at += 1
        return found

    def string(self) -> str:
        self.take(b'"')
        data, start, escaped = self.data, self.at, False
        while True:
            match = _STRING_PART.match(data, self.at)
            self.at = match.end() if match else self.at
            char = data[self.at : self.at + 1]
            if char == b'"':
                break
            if char != b"\\":
                self.fail("a string does not end" if not char else "a control character inside a string")
            escaped, self.at = True, self.at + 2
        raw = data[start : self.at]
        # Copies for a moment: with four bytes for each character where one is beyond ASCII, and several for escapes.
        self.pay(0, for_now=(16 if escaped else 2 if raw.isascii() else 6) * len(raw))
        self.at += 1
        try:
            text = json.loads(b'"' + raw + b'"') if escaped else raw.decode("utf-8")
            if escaped:
                text.encode("utf-8")  # refuses lone surrogates, as the library's parser does
        except ValueError as error:
            self.fail(f"a string is not valid: {error}")
        return text

    def number(self) -> int:
        self.peek()
        match = _NUMBER.match(self.data, self.at)
        if match is None:
            self.fail("expected an integer from 0 to below 10^19")
        self.at = match.end()
        return int(match.group())

    def numbers(self, limit: int) -> tuple[int, ...]:
        """A list of at most `limit` integers."""
        self.take(b"[")
        if self.peek() == b"]":
            self.at += 1
            return ()
        values = [self.number()]
        while self.take(b",", b"]") == b",":
            if len(values) == limit:
                self.fail(f"more than {limit} numbers in a list")
            values.append(self.number())
        self.pay(_NUMBER_COST * len(values))
        return tuple(values)

    def members(self, seen: Container[str] = ()) -> Iterator[str]:
        """The keys of an object, one at a time; the caller reads a key's value before it asks for the next.

        `seen` is the collection into which the caller puts the keys: one that is in it already occurs twice.
        """
        self.take(b"{")
        if self.peek() == b"}":
            self.at += 1
            return
        while True:
            key = self.string()
            if key in seen:
                self.fail(f"key {key!r} occurs twice")
            self.take(b":")
            yield key
            if self.take(b",", b"}") == b"}":
                return


def _parse(data: bytes, where: str, file_size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    parser = _Parser(data, where, file_size)
    if data[:1] != b"{":
        parser.fail("a header starts with '{'")
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    with_metadata = False
    for name in parser.members(tensors):
        if name != "__metadata__":
            parser.pay(_TENSOR_COST + sys.getsizeof(name))
            tensors[name] = _parse_tensor(parser, name)
        elif with_metadata:
            parser.fail("key '__metadata__' occurs twice")
        else:
            with_metadata = True
            for key in parser.members(metadata):
                metadata[key] = value = parser.string()
                parser.pay(_STRING_COST + sys.getsizeof(key) + sys.getsizeof(value))
    if _SPACES.fullmatch(data, parser.at) is None:
        parser.fail("only spaces may follow the header's last '}'")
    return tensors, metadata


def _parse_tensor(parser: _Parser, name: str) -> TensorInfo:
    fields: dict[str, Any] = {}
    for key in parser.members(fields):
        if key == "dtype":
            fields[key] = sys.intern(parser.string())  # the same few for all tensors
            if fields[key] not in FILE_DTYPES:
                parser.fail(f"tensor {name!r}: element type {fields[key]!r}, expected one of {', '.join(FILE_DTYPES)}")
        elif key == "shape":
            fields[key] = parser.numbers(_MAX_NDIM)
        elif key == "data_offsets":
            fields[key] = parser.numbers(2)
            if len(fields[key]) != 2:
                parser.fail(f"tensor {name!r}: data_offsets must be two numbers")
        else:
            parser.fail(f"tensor {name!r}: unknown key {key!r}, expected dtype, shape and data_offsets")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in fields:
            parser.fail(f"tensor {name!r}: key {key!r} is missing")
    return TensorInfo(fields["dtype"], fields["shape"], *fields["data_offsets"])


def _check_ranges(tensors: dict[str, TensorInfo], data_bytes: int, where: str) -> dict[str, TensorInfo]:
    """Tensors in the order of their bytes, once it is certain that shapes fit ranges and ranges tile the data
    exactly.
    """
    names = sorted(tensors, key=lambda name: tensors[name].end)
    names.sort(key=lambda name: tensors[name].begin)  # stable: by begin, then end, without a tuple for each
    position = 0
    for name in names:
        info = tensors[name]
        # Python integers do not wrap; the bound on nonzero dimensions keeps [2^40, 2^40, 0] out, which the library
        # refuses too.
        if prod(max(dim, 1) for dim in info.shape) * 8 >= 1 << 63:
            raise MinedgeFormatError(f"{where}: tensor {name!r}: shape {list(info.shape)} is too large")
        expected = prod(info.shape) * np.dtype(FILE_DTYPES[info.dtype]).itemsize
        if info.begin > info.end or info.end - info.begin != expected:
            raise MinedgeFormatError(
                f"{where}: tensor {name!r}: {info.dtype} {list(info.shape)} needs {expected} bytes, "
                f"data_offsets [{info.begin}, {info.end}] hold {info.end - info.begin}"
            )
        if info.begin != position:
            what = "overlap another tensor" if info.begin < position else "leave a gap"
            raise MinedgeFormatError(
                f"{where}: tensor {name!r}: data_offsets [{info.begin}, {info.end}] {what}, expected begin {position}"
            )
        position = info.end
        if position > data_bytes:
            raise MinedgeFormatError(
                f"{where}: tensor {name!r}: ends at data byte {position}, the file holds only {data_bytes}; truncated?"
            )
    if position != data_bytes:
        raise MinedgeFormatError(
            f"{where}: {data_bytes - position} bytes after the last tensor's end at data byte {position}"
        )
    return {name: tensors[name] for name in names}


def load_header(file: Any, size: int, where: str) -> Header:
    """The checked header of an open file of `size` bytes, called `where` in messages."""
    try:
        first = file.read(8) or b""
        if len(first) < 8:
            raise MinedgeFormatError(f"{where}: {size} bytes, too short for a safetensors file")
        length = int.from_bytes(first, "little")
        if length > _MAX_HEADER:
            raise MinedgeFormatError(
                f"{where}: header length {length}, at most {_MAX_HEADER} allowed; is this a safetensors file?"
            )
        if length > size - 8:
            raise MinedgeFormatError(f"{where}: header length {length}, but only {size - 8} bytes follow; truncated?")
        data = file.read(length) or b""
    except OSError as error:
        raise MinedgeFormatError(f"{where}: cannot be read: {error.strerror}") from error
    if len(data) != length:
        raise MinedgeFormatError(f"{where}: truncated while being read")
    tensors, metadata = _parse(data, where, size)
    return Header(_check_ranges(tensors, size - 8 - length, where), metadata, 8 + length, size)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file; MinedgeFormatError names the file and the byte or tensor at
    fault.
    """
    file, size = open_regular(path)
    with file:
        return load_header(file, size, os.fspath(path))
