"""Train, validation and test never share a passage. The checks here use plain sets of strings, not the module's
hashes.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys

import numpy as np
import pytest

from minedge.data import overlap, splits
from minedge.data.corpus import Passage, normalized, passages
from minedge.errors import MinedgeFormatError


@pytest.fixture(scope="module")
def found():
    return splits.stdlib_splits()


def runs(text, n):
    text = normalized(text)
    return {text[i : i + n] for i in range(len(text) - n + 1)} or {text}


def shingles(text, n=5):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


@pytest.mark.parametrize(("part", "against"), [("test", ("train",)), ("valid", ("train", "test"))])
def test_no_evaluation_passage_shares_forty_characters_with_training(found, part, against):
    mine = set().union(*(runs(text, 40) for text in found.texts(part)))
    for other in against:
        for text in found.texts(other):
            form = normalized(text)
            assert not any(form[i : i + 40] in mine for i in range(max(1, len(form) - 39))), text


@pytest.mark.parametrize(("part", "against"), [("test", "train"), ("valid", "train"), ("valid", "test")])
def test_no_evaluation_passage_is_a_near_duplicate(found, part, against):
    theirs = set().union(*(shingles(text) for text in found.texts(against)))
    for text in found.texts(part):
        mine = shingles(text)
        assert len(mine & theirs) <= 0.5 * len(mine) + 1, text  # + 1: repeated shingles count once here


def test_a_module_has_one_part(found):
    where = {}
    for part in splits.PARTS:
        for passage in found.passages(part):
            assert where.setdefault(splits.module_unit(passage.module), part) == part


def test_parts_are_near_85_5_10(found):
    sizes = {part: found.n_bytes(part) for part in splits.PARTS}
    total = sum(sizes.values())
    assert total > 1_500_000 and sizes["test"] > 150_000
    assert 0.82 < sizes["train"] / total < 0.88
    assert 0.035 < sizes["valid"] / total < 0.065
    assert 0.085 < sizes["test"] / total < 0.12


def test_new_modules_move_no_passage(found):
    new = [
        Passage(f"A passage number {i} of a module that a later Python may have brought.", f"new{i}.part", "", "module")
        for i in range(200)
    ]
    grown = splits.split_passages([*passages(), *new])
    for part in splits.PARTS:
        kept = [p for p in grown.passages(part) if not p.module.startswith("new")]
        assert kept == list(found.passages(part)) or part != "train"
        assert set(kept) <= set(found.passages(part))
        assert len(kept) > 0.98 * len(found.passages(part))


def test_part_of_is_fixed_for_ever():
    # Golden values: a change of these breaks every published figure.
    assert [splits.part_of(m) for m in ("tkinter", "argparse", "_pydecimal", "tarfile", "ssl", "random")] == [
        "train",
        "train",
        "train",
        "test",
        "test",
        "test",
    ]
    assert splits.part_of("pathlib._local") == splits.part_of("pathlib")
    assert splits.part_of("_pydatetime") == splits.part_of("datetime")
    assert splits.part_of("re._parser") == splits.part_of("re")


def test_two_processes_make_the_same_corpus(found):
    code = "from minedge.data.splits import stdlib_splits; print(stdlib_splits().sha256)"
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert again.stdout.strip() == found.sha256


def test_a_copy_across_parts_stays_in_training():
    train = next(m for m in (f"m{i}" for i in range(99)) if splits.part_of(m) == "train")
    test = next(m for m in (f"m{i}" for i in range(99)) if splits.part_of(m) == "test")
    copy = "Return the number of frobs that are attached to this widget, or none."
    near = "XX " + copy.upper() + " More words than before."
    own = "Entirely different words about a matter of no relation with the above."
    made = splits.split_passages(
        [
            Passage(copy, test, "a", "function"),
            Passage(copy, train, "b", "function"),
            Passage(near, test, "c", "function"),
            Passage(own, test, "d", "function"),
        ]
    )
    assert [p.qualname for p in made.train] == ["b"]
    assert [p.qualname for p in made.test] == ["d"]
    assert made.dropped == {"copies": 1, "valid": 0, "test": 1}


def test_window_hashes_equal_exactly_where_windows_equal():
    rng = np.random.default_rng(0)
    lengths = [0, 1, 3, 7, 8, 40, 0, 25]
    symbols = rng.integers(0, 2, sum(lengths))
    for k in (1, 4, 8):
        hashes, owners = overlap.window_hashes(symbols, lengths, k)
        expected = []
        at = 0
        for owner, n in enumerate(lengths):
            text = symbols[at : at + n].tolist()
            at += n
            for i in range(max(n - k + 1, min(n, 1))):
                expected.append((owner, tuple(text[i : i + k])))
        assert owners.tolist() == [o for o, _ in expected]
        by_window = {}
        for h, (_, window) in zip(hashes.tolist(), expected, strict=True):
            assert by_window.setdefault(window, h) == h
        assert len(set(by_window.values())) == len(by_window)


def test_seen_filter_finds_copies_and_spares_the_rest(found, tmp_path):
    made = overlap.SeenFilter.of(found.texts("train"))
    made.save(tmp_path / "seen.npy")
    assert (tmp_path / "seen.npy").stat().st_size < 280_000
    loaded = overlap.SeenFilter.load(tmp_path / "seen.npy")
    assert np.array_equal(loaded.hashes, made.hashes)
    assert loaded.seen(found.texts("train")).all()
    assert loaded.seen(found.texts("test")).mean() < 0.03
    # A run of 60 characters, wherever it is cut from, inside other text.
    rng = random.Random(0)
    long = [normalized(t) for t in found.texts("train") if len(normalized(t)) > 200]
    copied = []
    for text in rng.sample(long, 200):
        at = rng.randrange(len(text) - 60)
        copied.append(
            "".join(rng.choices("abcdefgh ijkl", k=70))
            + "q"
            + text[at : at + 60]
            + "q"
            + "".join(rng.choices("abcdefgh", k=70))
        )
    # Cutting may leave a space at the run's edge that normalization removes, so one in many is a character short.
    assert loaded.seen(copied).mean() > 0.97
    foreign = ["".join(rng.choices("abcdefghijklmnop ", k=300)) for _ in range(500)]
    assert loaded.seen(foreign).mean() < 0.01


def test_evaluation_passages_leaves_out_what_was_seen(found):
    half = overlap.SeenFilter.of(found.texts("test")[::2])
    left = splits.evaluation_passages("test", half)
    assert not set(found.passages("test")[::2]) & set(left)
    assert len(left) > 0.4 * len(found.test)
    with pytest.raises(ValueError, match="part"):
        splits.evaluation_passages("train")


def test_nothing_was_seen_by_an_empty_filter(tmp_path):
    overlap.SeenFilter.of([]).save(tmp_path / "none.npy")
    loaded = overlap.SeenFilter.load(tmp_path / "none.npy")
    assert loaded.seen(["Some text that stands here for no reason at all."]).tolist() == [False]
    assert loaded.seen([]).tolist() == []
    assert overlap.overlapping([], ["a"]).tolist() == [] and overlap.overlapping(["a"], []).tolist() == [False]


@pytest.mark.parametrize("content", [b"", b"not a npy", b"\x93NUMPY\x01\x00"])
def test_a_foreign_fingerprint_is_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(MinedgeFormatError, match=r"x\.npy"):
        overlap.SeenFilter.load(tmp_path / "x.npy")


def test_a_contradictory_fingerprint_is_refused(tmp_path):
    for array in (
        np.zeros(5, np.uint16),
        np.zeros(40000, np.float32),
        np.ones(40000, np.uint16),
        np.array([{}], object),
    ):
        np.save(tmp_path / "x.npy", array, allow_pickle=True)
        with pytest.raises(MinedgeFormatError, match=r"x\.npy"):
            overlap.SeenFilter.load(tmp_path / "x.npy")
