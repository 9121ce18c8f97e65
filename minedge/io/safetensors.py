"""safetensors files: an own strict reader, and writing through the `safetensors` library.

The format: 8 bytes with the header's length (little-endian), a JSON header {name: {"dtype", "shape", "data_offsets":
[begin, end]}}, then the tensors' bytes without holes. The reader checks every claim of the header against the file's
real length before it allocates anything, and reads tensors in chunks straight into their destination, widening bfloat16
and float16 on the way.

It accepts nothing that the library rejects. It is stricter in these cases: spaces or other characters before the first
`{`; anything but spaces after the last `}`; a tensor or metadata key given twice; keys other than dtype, shape and
data_offsets; `__metadata__` that is null; element types NumPy lacks (complex, 8-bit, 6-bit and 4-bit floats); more than
32 dimensions; a shape whose nonzero dimensions multiply to 2^63 or more; BOOL bytes other than 0 and 1; thousands of
names over next to no data (fewer than about 200 bytes of file for each tensor), whose Python objects would take more
than four times the file; a file that is not a regular file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minedge.errors import MinedgeError, MinedgeFormatError, UsageError
from minedge.io.atomic import atomic_write
from minedge.io.jsonfile import open_regular
from minedge.io.safetensors_header import FILE_DTYPES, Header, TensorInfo, load_header, read_header
from minedge.ops.memory import FileMap, Slabs

__all__ = ["Header", "SafetensorsFile", "TensorInfo", "read", "read_header", "write", "writer"]

_CHUNK = 256 << 10  # bytes; small, because a small file in bfloat16 is to cost little more than its float32

# Where the array's type differs from the file's: bfloat16 is the upper half of a float32.
_MEMORY = {"BOOL": np.dtype(bool), "BF16": np.dtype(np.float32)}


# ---------------------------------------------------------------- reading


class SafetensorsFile:
    """An open file with its checked header, for callers that take tensors out of it one after another. A context
    manager.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file, self._size = open_regular(path)
        self._slabs, self._map = Slabs(self._size), np.empty(0, np.uint8)
        try:
            self.header = load_header(self._file, self._size, self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(
        self,
        names: Iterable[str] | None = None,
        dtype: DTypeLike | Mapping[str, DTypeLike] | None = None,
        transpose: Iterable[str] = (),
    ) -> dict[str, np.ndarray]:
        """See `read`."""
        tensors = self.header.tensors
        wanted = list(tensors) if names is None else list(names)
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise MinedgeFormatError(f"{self.path}: no tensor {missing[0]!r} ({len(missing)} missing)")
        turned, result = frozenset(transpose), {}
        for name in sorted(wanted, key=lambda name: tensors[name].begin):  # the disk's order
            info = tensors[name]
            target = _target_dtype(info, name, dtype, self.path)
            where = f"{self.path}: tensor {name!r}"
            result[name] = _read_tensor(self._file, self.header, info, target, name in turned, where, self._slabs)
        return {name: result[name] for name in wanted}

    def view(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file, mapped: nothing is read until it is used, and `memory.give_back` frees what
        was. Read like any other where its type must change or the file has it at an odd place.

        The file must stay as it is while the array lives: replacing it by another, as every writer of minedge does, is
        fine; a program that shortens it in place takes the memory away, and the process with it.
        """
        info = self.header.tensors[name]
        stored, start = np.dtype(FILE_DTYPES[info.dtype]), self.header.data_start + info.begin
        count = prod(info.shape)
        if info.dtype in _MEMORY or not stored.isnative or not count or start % stored.itemsize or os.name != "posix":
            return self.read([name])[name]
        if not self._map.size:
            try:
                self._map = np.frombuffer(FileMap(self._file.fileno(), self._size), np.uint8)
            except (OSError, ValueError):  # a file system that cannot, or a file that became shorter
                return self.read([name])[name]
        return self._map[start : start + count * stored.itemsize].view(stored).reshape(info.shape)

    def rows(
        self, name: str, step: int, widen: Callable[[np.ndarray], np.ndarray]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows of a matrix of floats, `step` at a time and in order: where they stand, and float32 (rows, columns),
        to be done with before the next are asked for. `widen` makes float32 of float16, or of uint16 with bfloat16's
        bits, as a backend's `half_widen`.
        """
        info = self.header.tensors[name]
        where, stored = f"{self.path}: tensor {name!r}", np.dtype(FILE_DTYPES[info.dtype])
        height, width = info.shape
        buffer = np.empty((min(step, height), width), stored)
        for start in range(0, height, step):
            part = slice(start, min(start + step, height))
            raw = buffer[: part.stop - start]
            self._file.seek(self.header.data_start + info.begin + start * width * stored.itemsize)
            if raw.size:
                _read_exactly(self._file, raw.reshape(-1).view(np.uint8).data, where)
            if info.dtype in ("F16", "BF16"):
                yield part, widen(raw.astype(stored.newbyteorder("="), copy=False))
            else:
                out = np.empty(raw.shape, np.float32)
                _convert(out, raw, info.dtype, where)
                yield part, out


def read(
    path: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    dtype: DTypeLike | Mapping[str, DTypeLike] | None = None,
    transpose: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """Read tensors (all, or just `names`) into fresh read-only C-contiguous arrays.

    `dtype` is the element type of the result: one for every floating tensor, or per name; without it tensors keep
    theirs, except that BF16 becomes float32, which holds it exactly. Two-dimensional tensors named in `transpose` come
    out as (columns, rows). Peak memory is the result plus a few chunks of 256 KB. MinedgeFormatError on a bad file, a
    name it lacks, or a value that `dtype` cannot hold.
    """
    with SafetensorsFile(path) as file:
        return file.read(names, dtype, transpose)


def _target_dtype(info: TensorInfo, name: str, dtype: Any, where: str) -> np.dtype:
    stored = _MEMORY.get(info.dtype, np.dtype(FILE_DTYPES[info.dtype]).newbyteorder("="))
    wanted = dtype.get(name) if isinstance(dtype, Mapping) else dtype if stored.kind == "f" else None
    target = stored if wanted is None else np.dtype(wanted)
    if target != stored and not (target.kind == stored.kind == "f"):
        raise MinedgeFormatError(f"{where}: tensor {name!r}: expected elements of type {target}, got {info.dtype}")
    return target


def _read_tensor(
    file: Any, header: Header, info: TensorInfo, target: np.dtype, turned: bool, where: str, slabs: Slabs
) -> np.ndarray:
    stored = np.dtype(FILE_DTYPES[info.dtype])
    if turned:
        out = np.empty(info.shape[::-1], target)
        rows, row_items = out.T, prod(info.shape[1:])  # writing row i of the file fills column i of the result
    else:
        # Weights of one or two bytes are read every token: from huge pages a tenth to a fifth faster (ops/memory.py).
        out = slabs.empty(info.shape, target) if target.itemsize <= 2 else np.empty(info.shape, target)
        rows, row_items = out.reshape(-1), 1
    file.seek(header.data_start + info.begin)
    if not turned and info.dtype not in _MEMORY and stored == target:
        _read_exactly(file, rows.view(np.uint8).data, where)
    elif out.size:
        step = max(1, _CHUNK // (row_items * stored.itemsize))
        buffer = np.empty(min(step, len(rows)) * row_items, stored)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            raw = buffer[: part.size]
            _read_exactly(file, raw.view(np.uint8).data, where)
            _convert(part, raw.reshape(part.shape), info.dtype, where)
    out.flags.writeable = False
    return out


def _convert(out: np.ndarray, raw: np.ndarray, dtype: str, where: str) -> None:
    if dtype == "BF16":
        if out.dtype == np.float32:  # in place, which spares a small file the copies
            bits = out.view(np.uint32)
            bits[...] = raw
            np.left_shift(bits, 16, out=bits)
            return
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "BOOL":
        if raw.max() > 1:
            raise MinedgeFormatError(f"{where}: a BOOL byte is {raw.max()}, expected 0 or 1")
        raw = raw.view(bool)
    with np.errstate(over="raise"):
        try:
            out[...] = raw
        except FloatingPointError:
            raise MinedgeFormatError(f"{where}: a value is too large for {out.dtype}") from None


def _read_exactly(file: Any, view: memoryview, where: str) -> None:
    done = 0
    while done < len(view):
        try:
            count = file.readinto(view[done : done + (1 << 30)])  # Linux reads at most 2 GB at once
        except OSError as error:
            raise MinedgeFormatError(f"{where}: cannot be read: {error.strerror}") from error
        if not count:
            raise MinedgeFormatError(f"{where}: the file became shorter while it was read")
        done += count


# ---------------------------------------------------------------- writing


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file through the `safetensors` library, atomically. MinedgeError on a full disk and the
    like.
    """
    atomic_write(path, writer(tensors, metadata))


def writer(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Callable[[str | os.PathLike[str]], None]:
    """A function that writes `tensors` to the (temporary) path it is given, not atomically; for `atomic_write` and
    `atomic_dir`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    supported = {_MEMORY.get(name, np.dtype(code)) for name, code in FILE_DTYPES.items()}
    for name, array in tensors.items():
        if name == "__metadata__" or array.dtype.newbyteorder("<") not in supported:
            raise UsageError(f"tensor {name!r} of type {array.dtype} cannot be stored in a safetensors file")
    # The library takes the address of each array and trusts it to be contiguous.
    ready = {name: np.asarray(array, order="C") for name, array in tensors.items()}

    def write_to(target: str | os.PathLike[str]) -> None:
        with open(target, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        try:
            save_file(ready, target, metadata=dict(metadata or {}))
            os.chmod(target, mode)  # newer libraries make the file readable by its owner only, whatever the umask
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise MinedgeError(f"cannot write {os.fspath(target)}: {error}") from error
            raise OSError(int(code[1]), os.strerror(int(code[1])), os.fspath(target)) from error

    return write_to
