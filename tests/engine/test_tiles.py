"""Tiles live as long as the arrays they were made from, are made once, and let a loaded model stand in memory once."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import minedge
from minedge import lora, quant
from minedge.model import tiles as module
from minedge.model.engine import Engine
from minedge.model.model import read_only
from minedge.model.tiles import tiles
from minedge.ops.memory import FileMap, Slabs, give_back
from tests.engine.models import make

KIND = "int4, embedding too"


def int4(rows: int, width: int, group: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scales = rng.normal(size=(rows, width // group)).astype(np.float16)
    return read_only(rng.integers(0, 256, (rows, width // 2), np.uint8)), read_only(scales)


@pytest.mark.parametrize(
    "rows, width, group", [(1, 32, 32), (16, 64, 32), (16, 64, 64), (37, 96, 32), (300, 128, 32), (300, 128, 64)]
)
def test_tiles_are_the_ops(rows, width, group):
    pair = int4(rows, width, group)
    (got,) = tiles([pair])
    want = minedge.ops.get("numpy").int4_tile(*pair)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    assert got.nbytes == sum(a.nbytes for a in want)


def test_rows_that_do_not_lie_side_by_side_are_copied_first():
    qweight, scales = int4(20, 64)
    apart = np.asfortranarray(qweight), np.concatenate([scales, scales])[::2]
    for got, want in zip(tiles([apart])[0], tiles([tuple(np.ascontiguousarray(a) for a in apart)])[0], strict=True):
        assert got.tobytes() == want.tobytes()


def test_engines_of_a_model_and_of_its_relatives_share_tiles():
    model = make(kind=KIND)
    one, two = Engine(model, 1, 10), Engine(model, 3, 20)
    adapted = Engine(lora.add(model, r=2, target="all"), 1, 10)
    assert len(one.tiles) == 15  # two layers of seven, and the head
    for name, found in one.tiles.items():
        assert two.tiles[name] is found and adapted.tiles[name] is found
    assert one.nbytes == Engine(model, 1, 10).nbytes > sum(t.nbytes for t in one.tiles.values())


def test_another_array_in_its_place_has_other_tiles():
    model = make(kind=KIND)
    name = "model.layers.1.mlp.up_proj"
    before = Engine(model, 1, 10)
    for part in ("qweight", "scales"):
        other = model.with_params({**model.params, f"{name}.{part}": model.params[f"{name}.{part}"][::-1].copy()})
        engine = Engine(other, 1, 10)
        same = {key for key, found in engine.tiles.items() if found is before.tiles[key]}
        assert set(before.tiles) - same == {(f"{name}.qweight", f"{name}.scales")}
        fresh = make(kind=KIND).with_params(dict(other.params))
        assert engine.step([[1, 2]]).tobytes() == Engine(fresh, 1, 10).step([[1, 2]]).tobytes()
        assert engine.step([[1]]).tobytes() != before.step([[1]]).tobytes()


def test_arrays_that_are_written_to_are_read_anew():
    """Training changes arrays in place: between two engines, what they are made of may be something else."""
    name = "model.layers.0.mlp.up_proj.scales"
    model = make(kind=KIND).trainable(frozenset([name]))
    before = Engine(model, 1, 10).step([[1, 2]])
    model.params[name][...] *= 2
    after = Engine(model, 1, 10).step([[1, 2]])
    frozen = model.with_params({**model.params, name: model.params[name].copy()})
    assert after.tobytes() == Engine(frozen, 1, 10).step([[1, 2]]).tobytes() != before.tobytes()


def test_tiles_go_with_either_array():
    gc.collect()
    known = len(module._made)
    first, second = int4(16, 64), int4(16, 64, seed=1)
    mixed = (first[0], second[1])
    tiles([first, second, mixed])
    assert len(module._made) == known + 3
    found = tiles([second])[0]
    del first, mixed
    gc.collect()
    assert len(module._made) == known + 1 and tiles([second])[0] is found
    del second
    gc.collect()
    assert len(module._made) == known
    assert found.codes.any()  # who holds them still has them


def test_an_engine_outlives_its_model():
    model = make(kind=KIND)
    want = Engine(make(kind=KIND), 1, 10).step([[3, 4]])
    engine = Engine(model, 1, 10)
    del model
    gc.collect()
    assert engine.step([[3, 4]]).tobytes() == want.tobytes()


def test_a_loaded_model_gives_back_what_became_tiles(tmp_path, monkeypatch):
    made = make(kind=KIND)
    made.save(tmp_path / "m")
    model = minedge.load(tmp_path / "m", backend="c")
    given = []
    monkeypatch.setattr(module, "give_back", lambda array: given.append(give_back(array)))
    engine = Engine(model, 1, 10)
    assert given == [True] * 30
    assert engine.step([[5, 6]]).tobytes() == Engine(made, 1, 10).step([[5, 6]]).tobytes()
    assert given == [True] * 30 + [False] * 30  # what was made here has no file to come from again
    for name, array in made.params.items():  # the rows come again, also those that share a page with others
        assert model.params[name].tobytes() == array.tobytes(), name
        assert not model.params[name].flags.writeable


def test_only_pages_of_files_are_given_back(tmp_path):
    for array in (np.ones(10_000, np.uint8), Slabs(1 << 22).empty((5000,), np.dtype(np.uint8)), np.ones((4, 5))[::2]):
        kept = array.copy()
        assert not give_back(array) and (array == kept).all()
    (tmp_path / "f").write_bytes(bytes(range(256)) * 100)
    with open(tmp_path / "f", "rb") as file:
        memory = np.frombuffer(FileMap(file.fileno(), 25_600), np.uint8)
    part = memory[5000:20_000].view(np.float16).reshape(-1, 4)
    kept = part.tobytes()
    assert give_back(part) and part.tobytes() == kept and not part.flags.writeable
    assert give_back(part[:, :2]) and give_back(part[:0])  # nothing to do, no harm done


_PEAK = """
import sys, numpy, minedge
from minedge.model.generate import Sampling, generate_ids
def now(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) * 1024
small = minedge.load(sys.argv[1] + "/small", backend="c")
next(generate_ids(small, [1, 2], 1, Sampling()))
del small
before = now("VmHWM")
model = minedge.load(sys.argv[1] + "/large", backend="c")
for _ in range(3):
    next(generate_ids(model, [1, 2], 1, Sampling()))
print(model.nbytes()["total"], now("VmHWM") - before, now("VmRSS") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_loaded_model_stands_in_memory_once(tmp_path):
    for name, width in (("small", 64), ("large", 1536)):
        model = make(n_embd=width, n_inner=4 * width, n_layer=6, vocab_size=8192)
        replace(quant.int4(model, embeddings=True), name=name).save(tmp_path / name)
    done = subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    size, peak, held = map(int, done.stdout.split())
    assert size > 80e6
    print(f"peak {peak / size:.3f}, held {held / size:.3f} of {size:,} bytes")
    # Beside the tiles: the rows of one matrix, 6 MB, the embedding's looked up, and caches and buffers, 8 MB.
    assert peak < 1.25 * size and held < 1.2 * size
