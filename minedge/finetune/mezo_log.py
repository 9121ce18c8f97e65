r"""The record of a MeZO run and its file: hyperparameters, the hash of the starting weights, one float32 per draw.

    save_log(opt.log, "run.mezo");  log = load_log("run.mezo");  tuned = replay(base_model, log)

The file, all numbers little-endian:
    "MEZOLOG\n" · u32 file version · u32 header length · header (JSON) · float32 per draw · u32 CRC-32 of all before
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import asdict, dataclass, field, fields
from json import dumps
from os import PathLike, fspath
from typing import Any

import numpy as np

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.atomic import atomic_write
from minedge.io.jsonfile import open_regular, parse_json
from minedge.ops.numpy_ops.noise import GENERATOR_VERSION

__all__ = ["Log", "Settings", "header_of", "load_log", "log_from", "save_log"]

_MAGIC, _FILE_VERSION = b"MEZOLOG\n", 1
_FIXED = 20  # bytes beside header and numbers
_MAX_FILE, _MAX_HEADER = 1 << 30, 1 << 16


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of a run. schedule "linear": lr falls evenly from step 0 to zero at total_steps."""

    lr: float = 1e-6
    eps: float = 1e-3
    seed: int = 0
    weight_decay: float = 0.0
    n_samples: int = 1
    schedule: str = "constant"
    total_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise UsageError(f"{name}: expected a number, got {value!r}")
            value = float(value)
            if not 0 <= value < 1e30 or (name == "eps" and value < 1e-30):  # float32 holds eps, -eps and eps * z
                raise UsageError(f"{name}: expected a finite number {'> 0' if name == 'eps' else '>= 0'}, got {value}")
            object.__setattr__(self, name, value)
        if self.schedule not in ("constant", "linear"):
            raise UsageError(f'schedule: expected "constant" or "linear", got {self.schedule!r}')
        for name, low, power in (("seed", 0, 64), ("n_samples", 1, 32), ("total_steps", 1, 32)):
            value = getattr(self, name)
            if value is None and name == "total_steps" and self.schedule == "constant":
                continue  # only "linear" needs to know the end
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value < 1 << power:
                raise UsageError(f"{name}: expected an integer in [{low}, 2^{power}), got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.lr * self.weight_decay >= 1:
            product = self.lr * self.weight_decay
            raise UsageError(f"weight_decay: expected lr * weight_decay < 1, got {product:g}; lower one of them")

    def learning_rate(self, step: int) -> float:
        """lr at `step`, counted from 0; plain float64 arithmetic, so the same number everywhere."""
        if self.schedule == "constant" or self.total_steps is None:
            return self.lr
        return self.lr * (max(self.total_steps - step, 0) / self.total_steps)


@dataclass
class Log:
    """Enough to make the weights of a run again from those it started from.

    projected_grads holds one number per draw, each exactly a float32, in the order step, then sample.
    """

    settings: Settings
    base_sha256: str = ""  # of all parameters before the first step; empty until then
    trainable_sha256: str = ""  # of the trainable names and shapes
    projected_grads: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Complete steps on record."""
        return len(self.projected_grads) // self.settings.n_samples


def save_log(log: Log, path: str | PathLike[str]) -> None:
    """Write the record, whole or not at all: 4 bytes per draw and about 400 more."""
    if not log.base_sha256:
        raise UsageError("log: expected the record of at least one step, got an empty one")
    header = dumps(header_of(log), separators=(",", ":")).encode()
    data = _MAGIC + struct.pack("<II", _FILE_VERSION, len(header)) + header
    data += np.array(log.projected_grads, "<f4").tobytes()
    atomic_write(path, data + struct.pack("<I", zlib.crc32(data)))


def load_log(path: str | PathLike[str]) -> Log:
    """Read a record that `save_log` wrote. MinedgeFormatError on anything else: foreign, cut off, longer or changed."""
    where = fspath(path)
    file, size = open_regular(path, _MAX_FILE)
    with file:
        data = file.read(size + 1) or b""
    if len(data) < _FIXED or data[: len(_MAGIC)] != _MAGIC:
        raise MinedgeFormatError(f"{where}: not a MeZO log (it should begin with {_MAGIC!r} and hold {_FIXED} bytes)")
    version, length = struct.unpack_from("<II", data, len(_MAGIC))
    if version != _FILE_VERSION:
        raise MinedgeFormatError(f"{where}: log version {version}, this minedge reads {_FILE_VERSION}")
    body = len(data) - _FIXED - length
    if length > _MAX_HEADER or body < 0 or body % 4:
        raise MinedgeFormatError(f"{where}: {len(data)} bytes do not fit a header of {length}; cut off or changed")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise MinedgeFormatError(f"{where}: the checksum at the end does not fit; the file was cut off or changed")
    header = parse_json(data[16 : 16 + length], f"{where}: header")
    return log_from(header, np.frombuffer(data, "<f4", body // 4, 16 + length), where)


def header_of(log: Log) -> dict[str, Any]:
    """The JSON part of the record."""
    return {
        "generator_version": GENERATOR_VERSION,
        "base_sha256": log.base_sha256,
        "trainable_sha256": log.trainable_sha256,
        **asdict(log.settings),
        "count": len(log.projected_grads),
    }


def log_from(header: dict[str, Any], numbers: np.ndarray, where: str) -> Log:
    """Inverse of `header_of` plus the numbers; MinedgeFormatError naming `where` and the key that does not fit."""
    expected = set(header_of(Log(Settings())))
    if set(header) != expected:
        odd = min(set(header) ^ expected)
        raise MinedgeFormatError(f"{where}: header key {odd!r} is {'unknown' if odd in header else 'missing'}")
    version = header["generator_version"]
    if type(version) is not int or version != GENERATOR_VERSION:
        raise MinedgeFormatError(f"{where}: noise of specification {version!r}, this minedge makes {GENERATOR_VERSION}")
    try:
        settings = Settings(**{key.name: header[key.name] for key in fields(Settings)})
    except (ValueError, TypeError, OverflowError) as error:
        raise MinedgeFormatError(f"{where}: header {error}") from None
    hashes = [header["base_sha256"], header["trainable_sha256"]]
    named = all(isinstance(h, str) and len(h) == 64 and set(h) <= set("0123456789abcdef") for h in hashes)
    if not named and (hashes != ["", ""] or numbers.size):
        raise MinedgeFormatError(f"{where}: header base_sha256, trainable_sha256: expected 64 hexadecimal digits each")
    count = header["count"]
    if type(count) is not int or count != numbers.size or count % settings.n_samples:
        raise MinedgeFormatError(f"{where}: header count {count!r} does not fit {numbers.size} numbers")
    if not all(map(math.isfinite, numbers.tolist())):
        raise MinedgeFormatError(f"{where}: a projected gradient is not finite")
    return Log(settings, hashes[0], hashes[1], numbers.tolist())
