"""The safetensors reader: right on every file the library writes, and never accepting what the library rejects."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
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


# ---------------------------------------------------------------- memory of what is accepted


def _many(count: int, each: int) -> bytes:
    header = {f"{i:x}": entry("U8", (each,), (i * each, (i + 1) * each)) for i in range(count)}
    return pack(header, bytes(count * each))


@pytest.mark.parametrize("each", [0, 60, 180, 240])
def test_many_small_tensors_stay_below_four_times_the_file(tmp_path: Path, each: int) -> None:
    """As small as they may be and smaller: Python's objects for a tensor are larger than its entry in the header."""
    data, path = _many(5_000, each), tmp_path / "f"
    path.write_bytes(data)
    for read in (safetensors.read_header, safetensors.read):
        tracemalloc.start()
        try:
            with contextlib.suppress(MinedgeFormatError):
                assert read(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(data), (read, peak / len(data))


def test_small_models_of_many_tensors_are_no_attack(tmp_path: Path) -> None:
    """A toy of 24 layers, 8 wide: 218 tensors, most of them vectors, in a file of 60 KB."""
    tensors = {"model.embed_tokens.weight": np.ones((32, 8), np.float16), "model.norm.weight": np.ones(8, np.float16)}
    for i in range(24):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm", "mlp.down_proj"):
            tensors[f"model.layers.{i}.{name}.weight"] = np.ones((8, 8) if "proj" in name else 8, np.float16)
            tensors[f"model.layers.{i}.{name}.bias"] = np.ones(8, np.float16)
    safetensors.write(tmp_path / "f", tensors, {"format": "pt"})
    assert (tmp_path / "f").stat().st_size < 60_000
    _same(safetensors.read(tmp_path / "f"), tensors)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_widening_costs_the_result_and_little_more(tmp_path: Path, dtype: str) -> None:
    width, n = (4 if dtype == "F32" else 2), 200_000
    (tmp_path / "f").write_bytes(pack({"a": entry(dtype, (n,), (0, n * width))}, bytes(n * width)))
    tracemalloc.start()
    try:
        safetensors.read(tmp_path / "f", dtype=np.float32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * n + (300 << 10)  # the result, and one chunk of 256 KB
