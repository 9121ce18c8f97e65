"""The open assignment: what a recipe's process gets and what its answer may do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import minedge
from minedge.course import load
from minedge.course.sandbox import CallError, Student

A8 = load("a8")
LINES = A8.properties and sys.modules["minedge_course_a8_lines"]
SMALL = b"import minedge\ndef build(base, data, seed):\n    return minedge.quant.int4(base, embeddings=True)\n"


class Answers:
    """Stands in for a student whose process answers `files`."""

    def __init__(self, files):
        self.files = files

    def twin(self):
        return None

    def call(self, name, **arguments):
        return {"files": self.files, "seconds": 0.0}


def outcomes(files):
    student = Answers(files)
    return {p.name: p.run(student, np.random.default_rng(0), []) for p in A8.properties}


@pytest.fixture(scope="module")
def small():
    """What a recipe that only quantizes hands over."""
    with Student({"recipe.py": SMALL}, A8.folder / "calls.py", A8.limits) as student:
        labels = list(LINES.LABELS)
        parts = {"train": list(LINES.draw(1, 4)), "valid": list(LINES.draw(2, 4))}
        return student.call("build", template=LINES.TEMPLATE, labels=labels, parts=parts, seed=1)["files"]


def test_bytes_are_those_of_real_buffers_and_files(small):
    found = outcomes(small)
    model = minedge.quant.int4(minedge.load("bundled"), embeddings=True)
    assert found["memory"].note.startswith(f"{model.nbytes()['total']:,} of")
    assert found["size"].note.startswith(f"{sum(f.size for f in small.values()):,} of")
    assert found["valid"].ok and found["repeatable"].ok and found["unseen"].ok
    assert not found["accuracy"].ok and found["accuracy"].misconceptions == ("nothing_learned",)
    assert "leaderboard a8: accuracy" in found["accuracy"].note


@pytest.mark.parametrize("name", ["../escaped.json", "a/b.json", "tokenizer.py", "/tmp/escaped.json"])
def test_a_file_of_another_kind_or_place_is_refused(small, name, tmp_path):
    found = outcomes({**small, name: np.zeros(4, np.uint8)})
    assert not any(o.ok for o in found.values()) and "unexpected file" in found["valid"].detail
    assert not Path("/tmp/escaped.json").exists()


def test_damaged_files_are_a_verdict_and_not_an_error(small):
    for name in small:
        for data in (small[name][:100], np.zeros(0, np.uint8), np.frombuffer(b"{}", np.uint8)):
            found = outcomes({**small, name: data})
            assert not found["valid"].ok and "cannot be read" in found["valid"].detail, name
    assert not outcomes({})["valid"].ok


def test_lines_come_from_their_seed_and_the_canaries_labels_are_wrong():
    assert LINES.draw(5, 50) == LINES.draw(5, 50) != LINES.draw(6, 50)
    texts, wrong = LINES.canaries()
    topics = [set(words.split()) for words in LINES.TOPICS]
    true = [int(np.argmax([sum(w in topic for w in text.split()) for topic in topics])) for text in texts]
    assert len(texts) == LINES.CANARIES and all(a != b for a, b in zip(true, wrong, strict=True))


def test_a_recipe_cannot_open_the_built_in_task():
    text = b"from minedge.data.task import stdlib_task\nfrom minedge.data.loaders import load_data\n"
    text += b"def build(base, data, seed):\n    return load_data('stdlib-task')\n"
    with Student({"recipe.py": text}, A8.folder / "calls.py", A8.limits) as student:
        parts = {"train": list(LINES.draw(1, 4)), "valid": list(LINES.draw(2, 4))}
        with pytest.raises(CallError) as caught:
            student.call("build", template=LINES.TEMPLATE, labels=list(LINES.LABELS), parts=parts, seed=1)
    assert caught.value.type == "OwnDataError"
