"""`Noise` and `Perturbed`: a view that shows w + eps z and changes nothing."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

import minedge.model.noise as model_noise
from minedge.errors import UsageError
from minedge.model.noise import Noise, Perturbed, tensor_id
from minedge.ops.numpy_ops import noise as numpy_noise


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (11, 7), "norm.weight": (5,), "other": (3, 3)}
    out = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for array in out.values():
        array.flags.writeable = False
    return out


def view(ops, eps: float = 0.25) -> tuple[dict[str, np.ndarray], Perturbed]:
    p, names = params(), frozenset({"embed.weight", "norm.weight"})
    return p, Perturbed(p, Noise(seed=3, step=2, eps=eps, names=names, sample=1), ops)


def test_named_tensors_are_perturbed_and_others_are_the_same_object(tier_ops):
    p, seen = view(tier_ops)
    z = numpy_noise.normal(3, 2, 1, zlib.crc32(b"norm.weight"), 0, 5)
    assert np.array_equal(seen["norm.weight"], p["norm.weight"] + np.float32(0.25) * z)
    assert seen["other"] is p["other"]
    assert list(seen) == list(p)
    assert len(seen) == 3
    assert "other" in seen
    assert "nowhere" not in seen


def test_reading_changes_nothing_and_repeats(tier_ops):
    p, seen = view(tier_ops)
    before = {name: array.tobytes() for name, array in p.items()}
    assert seen["embed.weight"].tobytes() == seen["embed.weight"].tobytes()
    assert {name: array.tobytes() for name, array in p.items()} == before
    with pytest.raises(TypeError):
        seen["other"] = p["other"]


def test_both_sides_use_one_z(tier_ops):
    p, plus = view(tier_ops, 0.25)
    _, minus = view(tier_ops, -0.25)
    z = numpy_noise.normal(3, 2, 1, tensor_id("norm.weight"), 0, 5)
    assert np.array_equal(minus["norm.weight"], p["norm.weight"] - np.float32(0.25) * z)
    assert not np.array_equal(plus["norm.weight"], minus["norm.weight"])


@pytest.mark.parametrize(
    "ids", [[0], [10, 0, 10], [[1, 2, 3], [9, 3, 2]], list(range(11)), [5, 6, 7, 2], np.zeros((2, 0), np.int64), 4]
)
def test_rows_equal_indexing_the_whole_perturbed_tensor(tier_ops, ids):
    _, seen = view(tier_ops)  # rows of 7: their noise starts at no multiple of 4
    ids = np.asarray(ids)
    rows = seen.rows("embed.weight", ids)
    assert rows.shape == (*ids.shape, 7)
    assert rows.tobytes() == seen["embed.weight"][ids].tobytes()


def test_rows_of_a_tensor_without_noise_are_its_rows(tier_ops):
    p, seen = view(tier_ops)
    assert np.array_equal(seen.rows("other", np.array([2, 0])), p["other"][[2, 0]])


def test_rows_make_only_what_is_read(tier_ops):
    _, seen = view(tier_ops)
    made = []
    original = seen._perturb
    seen._perturb = lambda name, weight, start: made.append((start, weight.size)) or original(name, weight, start)
    seen.rows("embed.weight", np.array([[8, 2], [3, 8]]))
    assert made == [(14, 14), (56, 7)]


def test_rows_outside_the_tensor_are_refused(tier_ops):
    _, seen = view(tier_ops)
    for ids in ([-1], [11]):
        with pytest.raises(IndexError):
            seen.rows("embed.weight", np.array(ids))


def test_names_the_model_does_not_have_are_refused(tier_ops):
    with pytest.raises(UsageError, match="'gone'"):
        Perturbed(params(), Noise(0, 0, 0.1, frozenset({"gone"})), tier_ops)


def test_two_names_with_one_id_are_refused(monkeypatch):
    assert tensor_id("plumless") == tensor_id("buckeroo") == 1306201125  # a well-known CRC-32 collision
    with pytest.raises(ValueError, match="buckeroo"):
        Noise(0, 0, 0.1, frozenset({"plumless", "buckeroo", "other"}))
    monkeypatch.setattr(model_noise, "tensor_id", lambda name: len(name))
    with pytest.raises(ValueError, match="CRC-32"):
        Noise(0, 0, 0.1, frozenset({"one name", "two name"}))


def test_noise_is_a_value():
    a, b = (Noise(1, 2, 0.5, frozenset({"x"})) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    with pytest.raises(AttributeError):
        a.eps = 1.0  # type: ignore[misc]
