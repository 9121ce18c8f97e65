"""What a8 tests: the model that the recipe hands over is read, weighed and examined here, on lines it has not seen.

The recipe's process gets training lines only and hands back files; test lines never go there.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import minedge
from minedge.api import bundled_path
from minedge.course.properties import Check, Outcome
from minedge.course.sandbox import CallError
from minedge.data.task import Example, Task
from minedge.errors import MinedgeError
from minedge.finetune.evaluate import evaluate_task

MEMORY = 1_100_000  # bytes of the model's buffers
SIZE = 1_100_000  # bytes of its files, without the tokenizer
GOAL, START = 0.80, 0.40  # accuracy that has all the points, and none
TRAIN, VALID, TEST = 2000, 200, 600  # lines
TOLERATED = (
    0.5  # of the canaries; guessing gives a quarter of them, knowing the topics far less, mixed-up labels a third
)


def _sibling(name):
    spec = importlib.util.spec_from_file_location(f"minedge_course_a8_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lines = _sibling("lines")


class Built:
    """A recipe's model, weighed; `wrong` says why there is none, by the misconception if it is known.

    `twice`: run it in a second process as well, beside the first where there is a second processor.
    """

    def __init__(self, student, twice):
        self.wrong, self.second = None, None
        arguments = {
            "template": lines.TEMPLATE, "labels": list(lines.LABELS),
            "parts": {"train": list(lines.draw(1, TRAIN)), "valid": list(lines.draw(2, VALID))}, "seed": 3,
        }  # fmt: skip
        try:
            twin = student.twin() if twice else None
            if twin is None:
                told = student.call("build", **arguments)
            else:
                with twin, ThreadPoolExecutor(1) as beside:
                    self.second = beside.submit(twin.call, "build", **arguments)
                    told = student.call("build", **arguments)
        except CallError as error:
            name = "too_much_memory_to_build" if error.kind == "memory" else RAISED.get(error.type, "")
            if error.type == "ValueError" and "read-only" in error.text:
                name = "base_written_to"
            self.wrong = Outcome(False, "", str(error), (name,) if name else (), kind=error.kind)
            return
        self.arguments, self.files, self.seconds = arguments, told["files"], told["seconds"]
        self.again = lambda: (self.second.result() if self.second else student.call("build", **arguments))["files"]
        self.size = sum(np.asarray(data).size for data in self.files.values())
        try:
            self.model = self._read()
        except MinedgeError as error:
            self.wrong = Outcome(False, "", f"the model cannot be read: {error}", kind="answer")
            return
        self.memory = self.model.nbytes()
        bad = next((name for name, array in self.model.params.items() if _not_finite(array)), None)
        if bad:
            self.wrong = Outcome(False, "", f"{bad} holds values that are not finite", ("diverged",))
        elif self.model.config != minedge.load("bundled").config:
            told = f"expected the bundled model's shape, got {self.model.config}"
            self.wrong = Outcome(False, "", told, ("wrong_base",))

    def _read(self):
        """The files as they came, with the base's tokenizer, by readers that expect anything in them."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.files.items():
                if "/" in name or not name.endswith((".json", ".safetensors")):
                    raise MinedgeError(f"unexpected file {name[:40]!r}")
                (Path(folder) / name).write_bytes(np.asarray(data, np.uint8).tobytes())
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (Path(folder) / name).write_bytes((bundled_path() / name).read_bytes())
            model = minedge.load(folder)
            return model.with_params({name: np.array(array) for name, array in model.params.items()})

    def says(self, texts):
        """(n,) int: the label whose word is the likeliest."""
        examples = tuple(Example(text, 0) for text in texts)
        task = Task("lines", lines.LABELS, lines.LABELS, lines.TEMPLATE, {"test": examples})
        return evaluate_task(self.model, task, examples, 48).said

    def canaries(self):
        """The share of the wrong labels that the model gives."""
        if not hasattr(self, "_canaries"):
            texts, labels = lines.canaries()
            self._canaries = float(np.mean(self.says(texts) == np.array(labels)))
        return self._canaries


RAISED = {"OwnDataError": "opens_other_data", "DivergedError": "diverged", "TypeError": "returns_no_model"}


def _not_finite(array):
    return array.dtype.kind == "f" and not np.isfinite(array).all()


def built(student, twice=False):
    """Built once for all properties of one check."""
    if not hasattr(student, "a8"):
        student.a8 = Built(student, twice)
    return student.a8


def valid(student, rng):
    return built(student, twice=True).wrong or Outcome(True)


def repeatable(student, rng):
    model = built(student)
    if model.wrong:
        return model.wrong
    again = model.again()
    odd = sorted(name for name in {*model.files, *again} if not _equal(model.files.get(name), again.get(name)))
    if odd:
        told = f"two runs with one seed give different bytes in {odd[0]}"
        return Outcome(False, "seed 3, twice", told, ("not_repeatable",))
    return Outcome(True)


def _equal(a, b):
    return a is not None and b is not None and np.array_equal(a, b)


def unseen(student, rng):
    """Every test set holds lines with wrong labels. Agreeing with those takes having seen them."""
    model = built(student)
    if model.wrong:
        return model.wrong
    share = model.canaries()
    if share > TOLERATED:
        told = f"gives {share:.0%} of the labels that are wrong on purpose; by chance {TOLERATED:.0%} at most"
        return Outcome(False, "", told, ("test_data_seen",))
    return Outcome(True)


def memory(student, rng):
    model = built(student)
    if model.wrong:
        return model.wrong
    total = model.memory["total"]
    if total <= MEMORY:
        return Outcome(True, note=f"{total:,} of {MEMORY:,} bytes in memory")
    float_embedding = model.memory["embedding"] > 500_000
    names = ("embedding_left_in_floats",) if float_embedding and total < 3_000_000 else ("over_the_memory_budget",)
    if total > 7_000_000:
        names = ("not_compressed",)
    return Outcome(False, "", f"{total:,} bytes in memory, at most {MEMORY:,} are allowed", names)


def size(student, rng):
    model = built(student)
    if model.wrong:
        return model.wrong
    if model.size <= SIZE:
        return Outcome(True, note=f"{model.size:,} of {SIZE:,} bytes in files")
    return Outcome(False, "", f"{model.size:,} bytes in files, at most {SIZE:,} are allowed", ("over_the_size_budget",))


def accuracy(student, rng):
    model = built(student)
    if model.wrong:
        return model.wrong
    texts, labels = lines.draw(int(rng.integers(1, 1 << 31)), TEST)
    said = model.says(texts)
    correct = said == np.array(labels)
    share, se = float(correct.mean()), float(correct.std() / np.sqrt(TEST))
    if model.memory["total"] > MEMORY or model.size > SIZE:
        return Outcome(False, f"{TEST} lines", f"accuracy {share:.1%} does not count over the budget", share=0)
    if model.canaries() > TOLERATED:
        return Outcome(False, f"{TEST} lines", f"accuracy {share:.1%} does not count: test lines were seen", share=0)
    credit = float(np.clip((share - START) / (GOAL - START), 0, 1))
    note = (
        f"leaderboard a8: accuracy {share:.1%} ± {se:.1%}, {model.memory['total']:,} bytes in memory, "
        f"{model.size:,} in files, built in {model.seconds:.1f} s"
    )
    detail = "" if credit == 1 else f"accuracy {share:.1%}; points from {START:.0%} on, all of them from {GOAL:.0%} on"
    return Outcome(credit == 1, f"{TEST} lines", detail, _habits(said, np.array(labels), share), credit, note)


def _habits(said, labels, share):
    """What a low accuracy comes from, where it shows in the answers."""
    if share > START:
        return ()
    if np.bincount(said, minlength=4).max() > 0.95 * len(said):
        return ("one_answer_for_all",)
    agree = np.array([[np.mean(said[labels == b] == a) for b in range(4)] for a in range(4)])  # (said, true)
    if sorted(agree.argmax(0)) == [0, 1, 2, 3] and agree.max(0).mean() > 0.5:
        return ("labels_mixed_up",)
    return ("nothing_learned",)


PROPERTIES = [
    Check("a8.1", "valid", valid, "build returns a model of the base's shape, all of it finite"),
    Check("a8.1", "repeatable", repeatable, "the same seed gives the same bytes"),
    Check("a8.1", "unseen", unseen, "the test lines were not learned by heart"),
    Check("a8.2", "memory", memory, f"at most {MEMORY:,} bytes of buffers"),
    Check("a8.2", "size", size, f"at most {SIZE:,} bytes of files, the tokenizer left out"),
    Check("a8.3", "accuracy", accuracy, f"on lines drawn for this attempt; all points from {GOAL:.0%} on"),
]
