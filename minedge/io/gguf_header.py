"""The header of a GGUF file, version 2 or 3: parsed and checked against the file's real length.

The format: "GGUF", u32 version, u64 number of tensors, u64 number of metadata entries; the entries (key, u32 type,
value); for each tensor its name, u32 number of dimensions, the dimensions (fastest first, the reverse of NumPy's
order), u32 type, u64 offset; then, from the next multiple of the alignment on, the tensors' bytes. Numbers are
little-endian; a string is a u64 length and UTF-8.

Nothing that the file declares is multiplied in fixed-width numbers or allocated before it is known to fit into the
file. Strings and arrays are checked where they lie and stay in the file until somebody asks for them. Refused beyond
what the format demands: arrays of arrays, keys or tensor names given twice, dimensions of 0, gaps between tensors or
bytes after the last one, metadata keys beyond 64 KB, and more entries than a file of its size can reasonably have.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

from minedge.errors import MinedgeFormatError
from minedge.io.gguf_types import TYPES, BlockType

__all__ = ["GGUFArray", "GGUFHeader", "GGUFString", "GGUFTensor", "load_header"]

MAGIC = b"GGUF"
_WINDOW = 1 << 16
_MAX_KEY = (1 << 16) - 1
_MAX_NAME = 64
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 16
# What one entry costs in memory as Python objects, over four: together with the file's length a bound on both.
_BYTES_PER_KEY, _BYTES_PER_TENSOR = 64, 100

# Type codes of metadata values: struct format of the numbers; strings and arrays have codes of their own.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_INTEGERS = frozenset((0, 1, 2, 3, 4, 5, 10, 11))


@dataclass(frozen=True, slots=True)
class GGUFString:
    """Where a checked string lies in the file."""

    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GGUFArray:
    """Where a checked array lies in the file: its elements' type code, how many they are, and their bytes."""

    code: int
    count: int
    start: int
    nbytes: int

    @property
    def of_strings(self) -> bool:
        return self.code == _STRING

    @property
    def format(self) -> str:
        """struct format of the elements; for arrays of numbers."""
        return _NUMBERS[self.code]


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Type, shape in NumPy's order, and where the bytes are, counted from the start of the file."""

    type: BlockType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """A checked header. Metadata values are numbers, truth values, `GGUFString` or `GGUFArray`."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    file_size: int


class _Cursor:
    """Reads an open file from front to back through a small window; never past its end."""

    def __init__(self, file: Any, size: int, where: str) -> None:
        self.file, self.size, self.where = file, size, where
        self.at = 0  # position in the file
        self._window, self._start = b"", 0

    def fail(self, why: str) -> NoReturn:
        raise MinedgeFormatError(f"{self.where}: byte {self.at}: {why}")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            self.fail(f"{what} needs {count} bytes, only {self.size - self.at} are left; truncated?")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        offset = self.at - self._start
        if offset + count > len(self._window):
            self._window, self._start, offset = self._read(max(count, min(_WINDOW, self.size - self.at))), self.at, 0
        self.at += count
        return self._window[offset : offset + count]

    def _read(self, count: int) -> bytes:
        try:
            self.file.seek(self.at)
            data = self.file.read(count) or b""
        except OSError as error:
            raise MinedgeFormatError(f"{self.where}: cannot be read: {error.strerror}") from error
        if len(data) < count:
            self.fail("the file became shorter while it was read")
        return data

    def number(self, format: str, what: str) -> Any:
        return struct.unpack("<" + format, self.take(struct.calcsize("<" + format), what))[0]

    def skip_string(self, what: str) -> GGUFString:
        """Check a string's length and UTF-8 in pieces, and say where it is."""
        length = self.number("Q", f"the length of {what}")
        self.need(length, what)
        found = GGUFString(self.at, length)
        decoder, left = codecs.getincrementaldecoder("utf-8")(), length
        try:
            while left > _WINDOW:
                decoder.decode(self.take(_WINDOW, what))
                left -= _WINDOW
            decoder.decode(self.take(left, what), final=True)
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8: {error.reason}")
        return found

    def name(self, limit: int, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if not 1 <= length <= limit:
            self.fail(f"{what} has {length} bytes, expected 1 to {limit}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8: {error.reason}")


def load_header(file: Any, size: int, where: str) -> GGUFHeader:
    """The checked header of an open file of `size` bytes, called `where` in messages.

    Raises MinedgeFormatError, naming file and byte, key or tensor, for anything that is not as the format says.
    """
    cursor = _Cursor(file, size, where)
    if size < 4 or cursor.take(4, "the magic") != MAGIC:
        raise MinedgeFormatError(f"{where}: not a GGUF file: it does not start with 'GGUF'")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        hint = "; a big-endian file?" if version and not version & 0xFFFF else ""
        cursor.fail(f"GGUF version {version}, expected 2 or 3{hint}")
    n_tensors, n_keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    if n_tensors * _BYTES_PER_TENSOR + n_keys * _BYTES_PER_KEY > size:
        cursor.fail(f"{n_tensors} tensors and {n_keys} metadata keys are too many for a file of {size} bytes")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.name(_MAX_KEY, "a metadata key")
        if key in metadata:
            cursor.fail(f"key {key!r} occurs twice")
        metadata[key] = _value(cursor, cursor.number("I", f"the type of key {key!r}"), key)
    return GGUFHeader(version, metadata, _tensors(cursor, n_tensors, _alignment(cursor, metadata)), size)


def _value(cursor: _Cursor, code: int, key: str) -> Any:
    what = f"key {key!r}"
    if code == _STRING:
        return cursor.skip_string(what)
    if code == _ARRAY:
        return _array(cursor, what)
    if code not in _NUMBERS:
        cursor.fail(f"{what} has type {code}, expected 0 to 12")
    value = cursor.number(_NUMBERS[code], what)
    if code == _BOOL and value > 1:
        cursor.fail(f"{what}: a truth value is {value}, expected 0 or 1")
    return bool(value) if code == _BOOL else value


def _array(cursor: _Cursor, what: str) -> GGUFArray:
    code, count = cursor.number("I", what), cursor.number("Q", what)
    if code == _ARRAY:
        cursor.fail(f"{what} is an array of arrays, which is not supported")
    if code not in _NUMBERS and code != _STRING:
        cursor.fail(f"{what} is an array of type {code}, expected 0 to 8 or 10 to 12")
    width = 8 if code == _STRING else struct.calcsize("<" + _NUMBERS[code])
    cursor.need(count * width, f"{what}, an array of {count} elements,")
    start = cursor.at
    if code == _STRING:
        for _ in range(count):
            cursor.skip_string(what)
    else:
        left = count * width
        while left:
            part = cursor.take(min(left, _WINDOW), what)
            if code == _BOOL and part.strip(b"\0\1"):
                cursor.fail(f"{what}: an array of truth values holds something other than 0 and 1")
            left -= len(part)
    return GGUFArray(code, count, start, cursor.at - start)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 8 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        cursor.fail(f"key 'general.alignment': expected a power of two from 8 to {_MAX_ALIGNMENT}, got {value!r}")
    return value


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    expected = 0  # where the next tensor starts, in bytes from the start of the data
    for _ in range(count):
        name = cursor.name(_MAX_NAME, "a tensor's name")
        what = f"tensor {name!r}"
        if name in tensors:
            cursor.fail(f"{what} occurs twice")
        n_dims = cursor.number("I", what)
        if not 1 <= n_dims <= _MAX_DIMS:
            cursor.fail(f"{what} has {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
        shape = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, what))[::-1]
        if 0 in shape:
            cursor.fail(f"{what} has a dimension of 0: {list(shape)}")
        code, offset = cursor.number("I", what), cursor.number("Q", what)
        kind = TYPES.get(code)
        if kind is None:
            cursor.fail(f"{what} has type {code}, which is unknown")
        if shape[-1] % kind.block:
            cursor.fail(f"{what}: rows of {shape[-1]} are no multiple of {kind.name}'s block of {kind.block}")
        nbytes = prod(shape) // kind.block * kind.nbytes  # Python integers do not wrap
        if offset % alignment:
            cursor.fail(f"{what}: offset {offset} is no multiple of the alignment {alignment}")
        if offset != expected:
            problem = "overlaps another tensor" if offset < expected else "leaves a gap"
            cursor.fail(f"{what}: offset {offset} {problem}, expected {expected}")
        if offset + nbytes > cursor.size:
            cursor.fail(f"{what}: {kind.name} {list(shape)} takes {nbytes} bytes, more than the file has")
        tensors[name] = GGUFTensor(kind, shape, offset, nbytes)
        expected = _round_up(offset + nbytes, alignment)
    return _place(cursor, tensors, alignment)


def _place(cursor: _Cursor, tensors: dict[str, GGUFTensor], alignment: int) -> dict[str, GGUFTensor]:
    """Tensors with positions in the file instead of offsets, once it is certain that the file holds them all."""
    data_start, position = _round_up(cursor.at, alignment), cursor.at
    for name, info in tensors.items():
        start = data_start + info.start
        position = start + info.nbytes
        if position > cursor.size:
            raise MinedgeFormatError(
                f"{cursor.where}: tensor {name!r}: ends at byte {position}, the file has {cursor.size}; truncated?"
            )
        tensors[name] = GGUFTensor(info.type, info.shape, start, info.nbytes)
    if cursor.size > _round_up(position, alignment):
        raise MinedgeFormatError(f"{cursor.where}: {cursor.size - position} bytes after the last tensor's end")
    return tensors


def _round_up(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
