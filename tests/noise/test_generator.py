"""The generator's bits: published Philox vectors, golden vectors on every tier, cuts and offsets, bad input."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minedge.ops
from minedge.ops.numpy_ops import noise

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
IDS = ("seed", "step", "sample", "tensor")

# Random123's published known-answer vectors (kat_vectors, philox4x32 10): counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def patterns(array: np.ndarray) -> list[str]:
    assert array.dtype == np.float32
    return [f"{bits:08x}" for bits in array.view(np.uint32).tolist()]


def weight_of(case: dict) -> np.ndarray:
    return ((np.arange(case["count"]) % 5 - 2) * 0.37).astype(np.float32)


def agrees_with_golden(ops) -> bool:
    """All golden cases of normal, perturb and perturb_."""
    for case in GOLDEN["cases"]:
        ids = [case[k] for k in IDS]
        weight = weight_of(case)
        ok = patterns(ops.normal(*ids, case["start"], case["count"])) == case["normal"]
        ok &= patterns(ops.perturb(weight, 1e-3, *ids, start=case["start"])) == case["perturb"]
        ops.perturb_(weight, 0.999, 1e-3, *ids, start=case["start"])
        if not (ok and patterns(weight) == case["perturb_"]):
            return False
    return True


def agrees_with_long_stream(ops) -> bool:
    case = GOLDEN["long"]  # 100,003 numbers: both tails, and last bits that a few dozen numbers do not show
    z = ops.normal(*[case[k] for k in (*IDS, "start", "count")])
    return hashlib.sha256(z.astype("<f4").tobytes()).hexdigest() == case["sha256"]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, output):
    got = noise.philox4x32_10(np.array(words(counter), np.uint32), tuple(words(key)))
    assert got.dtype == np.uint32
    assert got.tolist() == words(output)


def test_golden_vectors(tier_ops):
    assert agrees_with_golden(tier_ops)


def test_golden_long_stream(tier_ops):
    assert agrees_with_long_stream(tier_ops)


MUTANTS = ["rounds", "key", "split", "coefficient", "last coefficient", "fused", "counter", "cell"]


@pytest.mark.parametrize("name", MUTANTS)
def test_golden_vectors_catch_mutants(name, monkeypatch):
    """Each of these small errors must show in the golden vectors, or they would not protect the other tiers."""
    last_bit = lambda c, k: (*c[:k], np.nextafter(c[k], np.float32(9)), *c[k + 1 :])  # noqa: E731
    if name == "rounds":
        monkeypatch.setattr(noise, "ROUNDS", 9)
    elif name == "key":
        monkeypatch.setattr(noise, "WEYL_1", 0xBB67AE86)
    elif name == "split":
        monkeypatch.setattr(noise, "SQRT_HALF_BITS", np.int32(0x3F3504F3 - (1 << 20)))
    elif name == "coefficient":
        monkeypatch.setattr(noise, "NORMAL_COEFFICIENTS", last_bit(noise.NORMAL_COEFFICIENTS, 0))
    elif name == "last coefficient":
        monkeypatch.setattr(noise, "LOG2_COEFFICIENTS", last_bit(noise.LOG2_COEFFICIENTS, 5))
    elif name == "fused":  # products not rounded before the sum, as a fused multiply-add does
        monkeypatch.setattr(noise, "_horner", lambda c, x: fused_horner(c, x))
    elif name == "counter":  # tensor and step change places
        original = noise._chunk
        monkeypatch.setattr(noise, "_chunk", lambda seed, a, b, c, *rest: original(seed, c, b, a, *rest))
    elif name == "cell":
        monkeypatch.setattr(noise, "HALF_STEP", np.float32(0))
    with np.errstate(all="ignore"):
        assert not (agrees_with_golden(noise) and agrees_with_long_stream(noise))


def fused_horner(coefficients, x):
    total = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = (total.astype(np.float64) * x + np.float64(c)).astype(np.float32)
    return total


def test_any_part_of_a_tensor_alone_has_the_bits_it_has_in_the_whole(tier_ops):
    whole = noise.normal(3, 1, 4, 1, 0, 400)
    for start in range(9):
        for count in range(70):
            part = tier_ops.normal(3, 1, 4, 1, start, count)
            assert part.shape == (count,)
            assert part.tobytes() == whole[start : start + count].tobytes(), (start, count)


def test_perturb_writes_its_array_and_nothing_beside_it(tier_ops):
    for count in (0, 1, 3, 4, 5, 31, 32, 33, 257):
        for offset in range(5):  # every alignment of the first element
            buffer = np.arange(count + 16, dtype=np.float32)
            expected = buffer.copy()
            part = buffer[offset : offset + count]
            z = noise.normal(5, 6, 7, 8, 3, count)
            expected[offset : offset + count] = part * np.float32(0.9) + np.float32(-0.25) * z
            made = tier_ops.perturb(part, -0.25, 5, 6, 7, 8, start=3)
            assert made.tobytes() == (part + np.float32(-0.25) * z).tobytes()
            assert not np.shares_memory(made, buffer)
            tier_ops.perturb_(part, 0.9, -0.25, 5, 6, 7, 8, start=3)
            assert buffer.tobytes() == expected.tobytes()


def test_perturb_keeps_shape_and_accepts_read_only(tier_ops):
    weight = np.ones((3, 5), np.float32)
    weight.flags.writeable = False
    out = tier_ops.perturb(weight, 0.5, 1, 2, 3, 4)
    assert out.shape == (3, 5)
    assert out.flags.writeable
    assert np.array_equal(out.ravel(), 1 + np.float32(0.5) * noise.normal(1, 2, 3, 4, 0, 15))


def test_perturb_passes_infinities_and_nan(tier_ops):
    weight = np.array([np.inf, -np.inf, np.nan, 0.0, 1e-45], np.float32)
    out = tier_ops.perturb(weight, 1e-3, 1, 2, 3, 4)
    reference = noise.perturb(weight, 1e-3, 1, 2, 3, 4)
    assert np.array_equal(out, reference, equal_nan=True)
    assert np.array_equal(out[:3], weight[:3], equal_nan=True)


def test_float64_weights_get_the_same_float32_noise():
    weight = np.linspace(-1, 1, 37)
    z = noise.normal(1, 2, 3, 4, 5, 37)
    assert np.array_equal(noise.perturb(weight, 0.1, 1, 2, 3, 4, start=5), weight + 0.1 * z.astype(np.float64))


def test_results_are_float32_never_float64():
    assert noise.uniform(np.zeros(3, np.uint32)).dtype == np.float32
    assert noise.inverse_normal(np.full(3, 0.25, np.float32)).dtype == np.float32
    assert noise.normal(0, 0, 0, 0, 0, 3).dtype == np.float32


def test_chunks_do_not_show(monkeypatch):
    whole = noise.normal(9, 8, 7, 6, 5, 1000)
    monkeypatch.setattr(noise, "CHUNK", 12)
    assert noise.normal(9, 8, 7, 6, 5, 1000).tobytes() == whole.tobytes()


def test_threads_do_not_change_a_bit(tier_ops):
    expected = noise.perturb(np.zeros(200_001, np.float32), 1.0, 11, 12, 13, 14).tobytes()
    for threads in thread_counts(tier_ops):
        weight = np.zeros(200_001, np.float32)
        with threads:
            tier_ops.perturb_(weight, 1.0, 1.0, 11, 12, 13, 14)
        assert weight.tobytes() == expected


def thread_counts(ops):
    """Context managers that set each number of threads a tier can have; the numpy tier's ufuncs have one."""
    if ops.name == "numba":
        import numba

        tier, counts = SimpleNamespace(threads=numba.get_num_threads, set_threads=numba.set_num_threads), (1, 2)
        counts = tuple(n for n in counts if n <= numba.config.NUMBA_NUM_THREADS)
    elif ops.name == "c":
        from minedge.ops import c_ops as tier

        counts = (1, 2, 3, 4, 7, 8)
    else:
        return [contextlib.nullcontext()]
    return [running_with(tier, n) for n in counts]


@contextlib.contextmanager
def running_with(tier, n):
    before = tier.threads()
    tier.set_threads(n)
    try:
        yield
    finally:
        tier.set_threads(before)


BAD = [
    ("seed", -1), ("seed", 2**64), ("step", 2**32), ("step", -1), ("sample", 2**32), ("tensor", 2**32), ("start", -1),
    ("start", 2**34),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_numbers_that_do_not_fit_the_counter_are_refused(tier_ops, name, value):
    arguments = {"seed": 1, "step": 1, "sample": 1, "tensor": 1, "start": 0, name: value}
    with pytest.raises(ValueError, match=name):
        tier_ops.normal(**arguments, count=4)
    with pytest.raises(ValueError, match=name):
        tier_ops.perturb(np.zeros(4, np.float32), 1.0, **arguments)


def test_arrays_that_cannot_be_perturbed_in_place_are_refused(tier_ops):
    strided, fixed = np.zeros(8, np.float32)[::2], np.zeros(4, np.float32)
    fixed.flags.writeable = False
    for bad in (strided, fixed):
        with pytest.raises(ValueError, match="weight"):
            tier_ops.perturb_(bad, 1.0, 1.0, 1, 2, 3, 4)
    with pytest.raises(TypeError, match="weight"):
        tier_ops.perturb_(np.zeros(4, np.float16), 1.0, 1.0, 1, 2, 3, 4)
    assert not strided.any()
    assert not fixed.any()


def test_the_default_backend_is_one_of_these():
    assert agrees_with_golden(minedge.ops.get())
