"""The safetensors reader: right on every file the library writes, and never accepting what the library rejects."""

from __future__ import annotations

import json
import os
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import load, load_file, save

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import safetensors
from tests.io.badfiles import BAD, GOOD, STRICTER, entry, library_accepts, pack

DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
]


def _sample(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (2, 3, 4)]
    return {
        f"{dtype}.{len(shape)}.{i}": (rng.normal(size=shape) * 50).astype(dtype)
        for dtype in DTYPES
        for i, shape in enumerate(shapes)
    }


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


# ---------------------------------------------------------------- right on good files


def test_round_trip_of_every_type_and_shape(tmp_path: Path) -> None:
    tensors = _sample(np.random.default_rng(0))
    path = tmp_path / "a.safetensors"
    safetensors.write(path, tensors, {"format": "pt"})
    _same(safetensors.read(path), load_file(path))
    read = safetensors.read(path)
    _same({name: read[name] for name in tensors}, tensors)
    assert not any(array.flags.writeable for array in read.values())
    assert all(array.flags.c_contiguous and array.flags.aligned for array in read.values())
    assert safetensors.read_header(path).metadata == {"format": "pt"}


def test_strided_and_transposed_arrays_are_written_as_they_read(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"transposed": base.T, "every second": base[:, ::2], "big-endian": base.astype(">f4")}
    safetensors.write(tmp_path / "a", tensors)
    read = safetensors.read(tmp_path / "a")
    for name, array in tensors.items():
        assert np.array_equal(read[name], array)


def test_chunks_join_seamlessly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "_CHUNK", 64)
    rng = np.random.default_rng(1)
    tensors = {"a": rng.normal(size=(37, 5)).astype(np.float16), "b": rng.normal(size=101).astype(np.float16)}
    tensors["c"] = rng.normal(size=(3, 100)).astype(np.float32)  # one row is more than a chunk
    safetensors.write(tmp_path / "a", tensors)
    wide = safetensors.read(tmp_path / "a", dtype=np.float32, transpose=["a", "c"])
    assert np.array_equal(wide["a"], tensors["a"].T.astype(np.float32)) and wide["a"].flags.c_contiguous
    assert np.array_equal(wide["b"], tensors["b"].astype(np.float32))
    assert np.array_equal(wide["c"], tensors["c"].T)


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype="<u2")  # all of them: NaN, infinities and denormal numbers included
    (tmp_path / "a").write_bytes(pack({"a": entry("BF16", (1 << 16,), (0, 1 << 17))}, codes.tobytes()))
    read = safetensors.read(tmp_path / "a")["a"]
    independent = np.array([struct.unpack("<f", bytes(2) + struct.pack("<H", code))[0] for code in range(1 << 16)])
    assert read.dtype == np.float32
    assert np.array_equal(read, independent.astype(np.float32), equal_nan=True)
    assert np.array_equal(read.view(np.uint32) >> 16, codes)


def test_types_are_per_name_and_never_cross_kinds(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "a", {"f": np.ones(3, np.float16), "i": np.ones(3, np.int64)})
    read = safetensors.read(tmp_path / "a", dtype={"f": np.float64})
    assert read["f"].dtype == np.float64 and read["i"].dtype == np.int64
    with pytest.raises(MinedgeFormatError, match=r"'i'.*float32.*I64"):
        safetensors.read(tmp_path / "a", dtype={"i": np.float32})


def test_a_value_too_large_for_its_type_is_an_error(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "a", {"big": np.array([1e300]), "inf": np.array([np.inf])})
    with pytest.raises(MinedgeFormatError, match=r"'big'.*too large for float32"):
        safetensors.read(tmp_path / "a", dtype=np.float32)
    assert np.isinf(safetensors.read(tmp_path / "a", ["inf"], np.float32)["inf"]).all()


def test_reading_some_names_and_a_missing_one(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "a", {"x": np.ones(3), "y": np.zeros(3)})
    assert list(safetensors.read(tmp_path / "a", ["y"])) == ["y"]
    with pytest.raises(MinedgeFormatError, match="no tensor 'z'"):
        safetensors.read(tmp_path / "a", ["x", "z"])


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for tensors in ({"c": np.ones(2, complex)}, {"o": np.array([None])}, {"__metadata__": np.ones(2)}):
        with pytest.raises(UsageError):
            safetensors.write(tmp_path / "a", tensors)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- strict on bad ones


@pytest.mark.parametrize("name", GOOD)
def test_good_files(name: str, tmp_path: Path) -> None:
    assert library_accepts(GOOD[name])
    (tmp_path / "f").write_bytes(GOOD[name])
    _same(safetensors.read(tmp_path / "f"), load(GOOD[name]))


def _refused(data: bytes, path: Path) -> None:
    """Only MinedgeFormatError, naming the file, in memory below 4 times the file (and 64 KB around it)."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(MinedgeFormatError) as caught:
            safetensors.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value) and len(str(caught.value)) < 2000
    assert peak < 4 * len(data) + 65536


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str, tmp_path: Path) -> None:
    assert not library_accepts(BAD[name])
    _refused(BAD[name], tmp_path / "f")


@pytest.mark.parametrize("name", STRICTER)
def test_files_that_the_library_accepts_and_we_do_not(name: str, tmp_path: Path) -> None:
    assert library_accepts(STRICTER[name])
    _refused(STRICTER[name], tmp_path / "f")


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    whole = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3)}, {"format": "pt"})
    path = tmp_path / "f"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(MinedgeFormatError, match=str(path)):
            safetensors.read(path)
    path.write_bytes(whole)
    assert len(safetensors.read(path)) == 2


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for path in (
        tmp_path,
        tmp_path / "missing",
        tmp_path / "pipe",
        tmp_path / "link",
        tmp_path / "x" / "y",
        "/dev/zero",
        "a\0b",
    ):
        with pytest.raises(MinedgeFormatError):
            safetensors.read(path)


# ---------------------------------------------------------------- mutation against the library

_SEED = {"a": entry(shape=(2, 1), offsets=(0, 8)), "b": entry("F16", (3,), (8, 14)), "c": entry("BOOL", (2,), (14, 16))}
_NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    4,
    6,
    8,
    14,
    16,
    17,
    1 << 31,
    1 << 32,
    1 << 61,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    1 << 64,
    0.5,
    True,
]
_TEXTS = [
    b"NaN",
    b"-0",
    b"1e2",
    b"null",
    b"{}",
    b"[]",
    b'"F32"',
    b'"\\ud800"',
    b'"\\u0061"',
    b"/**/",
    b"\xff",
    b" ",
    b"\n",
    b",",
]


def _agrees(data: bytes, path: Path) -> bool:
    """Whether the reader accepts `data`; fails if the library rejects that, reads other values, or on another error."""
    path.write_bytes(data)
    try:
        ours = safetensors.read(path)
    except MinedgeFormatError:
        return False
    theirs = dict(deserialize(data))  # raises if the library rejects it
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert list(array.shape) == theirs[name]["shape"]
        if theirs[name]["dtype"] != "BF16":
            assert array.tobytes() == bytes(theirs[name]["data"])
    return True


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_structured_mutations_never_accepted_against_the_library(tmp_path: Path, data: st.DataObject) -> None:
    header = json.loads(json.dumps(_SEED))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "drop", "rename", "extra"]))
        if field == "drop":
            header[name].pop(data.draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)
        elif field == "rename":
            header[data.draw(st.sampled_from(["", "a", "z", "__metadata__", "é"]))] = header.pop(name)
        elif field == "extra":
            header[name]["extra"] = 1
        elif field == "dtype":
            header[name][field] = data.draw(st.sampled_from(["F16", "BF16", "U8", "I64", "F8_E5M2", "C64", "", 1]))
        else:
            header[name][field] = data.draw(st.lists(st.sampled_from(_NUMBERS), max_size=4))
        if not header:
            break
    text = json.dumps(header).encode()
    if data.draw(st.booleans()):
        at, junk = data.draw(st.integers(0, len(text))), data.draw(st.sampled_from(_TEXTS))
        text = text[:at] + junk + text[at + data.draw(st.integers(0, 3)) :]
    length = data.draw(st.sampled_from([None, None, None, len(text) - 1, len(text) + 1, 0]))
    _agrees(pack(text, bytes(data.draw(st.sampled_from([16, 16, 16, 15, 17, 0]))), length), tmp_path / "f")


def _fuzz(path: Path, count: int, seed: int) -> int:
    rng, seeds = random.Random(seed), [*GOOD.values(), pack(_SEED, bytes(16))]
    accepted = 0
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[at : at + rng.randint(1, 4)]
                case 2:
                    data[at : at + rng.randint(0, 2)] = rng.choice(_TEXTS)
                case 3:
                    data[at : at + 1] = rng.choice(b'0123456789,:[]{}" ').to_bytes(1, "little")
        if rng.random() < 0.7 and len(data) > 8:  # make the length fit again, so that mutations reach the parser
            data[:8] = max(0, min(len(data) - 8, data.rfind(b"}") + 1 - 8)).to_bytes(8, "little")
        accepted += _agrees(bytes(data), path)
    return accepted


def test_byte_mutations_never_accepted_against_the_library(tmp_path: Path) -> None:
    assert (
        _fuzz(tmp_path / "f", 4000, seed=0) > 50
    )  # some must be accepted, or the mutations are too wild to show anything


@pytest.mark.campaign
def test_byte_mutations_campaign(tmp_path: Path) -> None:
    assert _fuzz(tmp_path / "f", int(os.environ.get("MINEDGE_FUZZ", "100000")), seed=1) > 1000
