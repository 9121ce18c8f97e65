"""GGUF files in: tensors, metadata, and whole models.

F32, F16 and BF16 are read as float32. A matrix in Q4_0 or Q8_0 stays packed: its blocks are taken apart into the
codes and scales of `Int4(32)` or `Int8()`, the same bits in two arrays. Q4_1, Q5_0, Q5_1 and the K types become
float32, with a warning that says so. Tensors are read in chunks into their destination, so loading needs the result's
memory and a few megabytes. `minedge.io.gguf_header` describes the format and what is refused.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.gguf_header import GGUFArray, GGUFHeader, GGUFString, GGUFTensor, load_header
from minedge.io.gguf_names import ROPE_FREQS, config_from_metadata, gguf_name, rotary_rows
from minedge.io.gguf_tokenizer import read_tokenizer
from minedge.io.jsonfile import open_regular
from minedge.model.linears import LinearKind, dense_kind, kind_from_dict
from minedge.model.shapes import linear_shapes, param_shapes
from minedge.ops.memory import Slabs

__all__ = ["GGUFFile", "read_config", "read_model"]

_CHUNK = 4 << 20  # bytes
# Types whose matrices stay packed: the kind, and the dtype of its codes. A block is a float16 scale and the codes.
_PACKED: dict[str, tuple[dict[str, Any], type]] = {
    "Q4_0": ({"kind": "int4", "group_size": 32}, np.uint8),
    "Q8_0": ({"kind": "int8"}, np.int8),
}
Rows = NDArray[np.int64]


class GGUFFile:
    """An open GGUF file with its checked header. A context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file, size = open_regular(path)
        self._slabs = Slabs(size)
        try:
            self.header: GGUFHeader = load_header(self._file, size, self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, key: str, kind: type) -> Any:
        """A metadata value, or None where there is none; MinedgeFormatError if it is not a `kind` (int, float, bool,
        str; object for anything).
        """
        value = self.header.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, GGUFString) and kind in (str, object):
            return self._bytes(value.start, value.nbytes).decode("utf-8")
        if kind is float and type(value) is int:
            value = float(value)
        if kind is not object and type(value) is not kind:
            got = {GGUFString: "a string", GGUFArray: "an array"}.get(type(value), repr(value))
            raise MinedgeFormatError(f"{self.path}: key {key!r}: expected {kind.__name__}, got {got}")
        return value

    def array(self, key: str, kind: type) -> list[Any] | None:
        """An array of the metadata as a list of `kind` (int, float or str), or None where there is none."""
        value = self.header.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, GGUFArray):
            found: type = str if value.of_strings else float if value.format in "fd" else int
            if found is kind:
                data = self._bytes(value.start, value.nbytes)
                if kind is str:
                    return _strings(data, value.count)
                return list(struct.unpack(f"<{value.count}{value.format}", data))
        raise MinedgeFormatError(f"{self.path}: key {key!r}: expected an array of {kind.__name__}")

    def read(self, name: str, rows: Rows | None = None) -> NDArray[np.float32]:
        """A tensor as float32. With `rows`, row i of the file becomes row rows[i] of the result."""
        info = self._tensor(name)
        if info.type.dequantize is None:
            raise MinedgeFormatError(f"{self.path}: tensor {name!r} has type {info.type.name}, which cannot be read")
        out = np.empty((int(np.prod(info.shape[:-1], dtype=object)), info.shape[-1]), np.float32)
        for first, count, raw in self._chunks(info):
            values = info.type.dequantize(raw.reshape(-1, info.type.nbytes)).reshape(count, -1)
            out[slice(first, first + count) if rows is None else rows[first : first + count]] = values
        shaped: Any = out.reshape(info.shape)
        shaped.flags.writeable = False
        return shaped

    def read_packed(self, name: str, rows: Rows | None = None) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """A Q4_0 or Q8_0 matrix (out, in) as codes, uint8 (out, in/2) or int8 (out, in), and scales (out, in/32), the
        same bits; MinedgeFormatError for any other tensor, and for a scale that is not finite.
        """
        info = self._tensor(name)
        if info.type.name not in _PACKED or len(info.shape) != 2:
            types = " or ".join(_PACKED)
            raise MinedgeFormatError(f"{self.path}: tensor {name!r}: expected a {types} matrix, got {info.type.name}")
        out_features, in_features = info.shape
        codes = self._slabs.empty((out_features, in_features // 32, info.type.nbytes - 2), np.dtype(np.uint8))
        scales = self._slabs.empty((out_features, in_features // 32), np.dtype(np.float16))
        for first, count, raw in self._chunks(info):
            where = slice(first, first + count) if rows is None else rows[first : first + count]
            blocks = raw.reshape(count, -1, info.type.nbytes)
            codes[where] = blocks[..., 2:]
            scales[where] = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
        if not np.isfinite(scales).all():
            raise MinedgeFormatError(f"{self.path}: tensor {name!r} has a scale that is not finite")
        qweight: Any = codes.reshape(out_features, -1).view(_PACKED[info.type.name][1])
        qweight.flags.writeable = scales.flags.writeable = False
        return qweight, scales

    def _tensor(self, name: str) -> GGUFTensor:
        try:
            return self.header.tensors[name]
        except KeyError:
            raise MinedgeFormatError(f"{self.path}: tensor {name!r} is missing") from None

    def _chunks(self, info: GGUFTensor) -> Any:
        """(first row, number of rows, their bytes) until the tensor is read."""
        row_bytes = info.shape[-1] // info.type.block * info.type.nbytes
        n_rows, step = info.nbytes // row_bytes, max(1, _CHUNK // row_bytes)
        for first in range(0, n_rows, step):
            count = min(step, n_rows - first)
            data = self._bytes(info.start + first * row_bytes, count * row_bytes)
            yield first, count, np.frombuffer(data, np.uint8)

    def _bytes(self, start: int, count: int) -> bytes:
        try:
            self._file.seek(start)
            parts, left = [], count
            while left:
                part = self._file.read(min(left, 1 << 30))  # Linux reads at most 2 GB at once
                if not part:
                    raise MinedgeFormatError(f"{self.path}: the file became shorter while it was read")
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise MinedgeFormatError(f"{self.path}: cannot be read: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _strings(data: bytes, count: int) -> list[str]:
    out, at = [], 0
    for _ in range(count):
        end = at + 8 + int.from_bytes(data[at : at + 8], "little")
        out.append(data[at + 8 : end].decode("utf-8"))
        at = end
    return out


def read_model(
    path: str | os.PathLike[str], with_tokenizer: bool = True
) -> tuple[Config, dict[str, np.ndarray], dict[str, LinearKind], Any]:
    """Read a whole model: config, read-only params, linears, tokenizer or None.

    Raises MinedgeFormatError, naming file and key or tensor, for anything that is missing, unknown or contradictory;
    warns once where quantized tensors become float32.
    """
    with GGUFFile(path) as file:
        config = read_config(file)
        kinds = {name: kind_from_dict(kind) for name, (kind, _) in _PACKED.items()}
        linears: dict[str, LinearKind] = {}
        params: dict[str, np.ndarray] = {}
        for module in linear_shapes(config):
            name = gguf_name(config, f"{module}.weight")
            packed, rows = kinds.get(file.header.tensors[name].type.name), rotary_rows(config, module)
            linears[module] = packed or dense_kind()
            if packed:
                params[f"{module}.qweight"], params[f"{module}.scales"] = file.read_packed(name, rows)
            else:
                params[f"{module}.weight"] = file.read(name, rows)
        for key in param_shapes(config, linears):
            if key not in params:
                params[key] = file.read(gguf_name(config, key))
        _warn_of_widened(
            file, {gguf_name(config, f"{m}.weight") for m, kind in linears.items() if kind in kinds.values()}
        )
        tokenizer = read_tokenizer(file, config.vocab_size) if with_tokenizer else None
    return config, {key: params[key] for key in param_shapes(config, linears)}, linears, tokenizer


def read_config(file: GGUFFile) -> Config:
    """The Config of an open file, once it is certain that it holds this model's tensors and minedge can read them."""
    shapes = {name: info.shape for name, info in file.header.tensors.items()}
    rope = file.read(ROPE_FREQS) if len(shapes.get(ROPE_FREQS, ())) == 1 else None
    config = config_from_metadata(file.get, shapes, rope, file.path)
    _check_tensors(file, config)
    return config


def _check_tensors(file: GGUFFile, config: Config) -> None:
    """Exactly the tensors of this architecture, of the right shapes and of types that can be read."""
    dense = dict.fromkeys(linear_shapes(config), dense_kind())
    try:
        wanted = {gguf_name(config, key): shape for key, (shape, _) in param_shapes(config, dense).items()}
    except UsageError as error:
        raise MinedgeFormatError(f"{file.path}: metadata: {error}") from None
    if ROPE_FREQS in file.header.tensors:
        wanted[ROPE_FREQS] = (config.head_dim // 2,)
    found = file.header.tensors
    for odd, what in ((wanted.keys() - found.keys(), "missing"), (found.keys() - wanted.keys(), "unknown")):
        if odd:
            also = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise MinedgeFormatError(
                f"{file.path}: tensor {min(odd)!r}{also} {what}: its metadata describe a "
                f"{config.architecture} model of {config.n_layer} layers"
            )
    for name, shape in wanted.items():
        if found[name].shape != tuple(shape):
            raise MinedgeFormatError(
                f"{file.path}: tensor {name!r}: expected shape {list(shape)}, got {list(found[name].shape)}"
            )
        if found[name].type.dequantize is None:
            raise MinedgeFormatError(
                f"{file.path}: tensor {name!r} has type {found[name].type.name}, which minedge cannot read; expected "
                "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K"
            )


def _warn_of_widened(file: GGUFFile, kept: set[str]) -> None:
    widened = [info for name, info in file.header.tensors.items() if info.type.packed and name not in kept]
    if widened:
        names = ", ".join(f"{n} of {name}" for name, n in sorted(Counter(info.type.name for info in widened).items()))
        disk = sum(info.nbytes for info in widened)
        memory = sum(4 * int(np.prod(info.shape, dtype=object)) for info in widened)
        warnings.warn(
            f"{file.path}: quantized tensors ({names}) become float32: {memory:,} bytes instead of {disk:,}",
            UserWarning,
            stacklevel=5,
        )
