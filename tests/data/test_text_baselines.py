"""The n-gram model the bundled checkpoint is measured against is a proper one: its probabilities sum to one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

END, ORDER = 6, 4


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[2] / "benchmarks" / "text_baselines.py"
    spec = importlib.util.spec_from_file_location("text_baselines", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["text_baselines"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["text_baselines"]


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(0, END, rng.integers(1, 30)).tolist() for _ in range(60)]


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_ngram_probabilities_sum_to_one(bench, documents, scale):
    levels = bench.train_ngram(documents, END, ORDER)
    for context in ([], [0, 1, 2], [5, 5, 5, 5, 5, 1], documents[0][:6]):
        continued = [[*context, w] for w in range(END)] + [[*context]]  # the last one continues with the end symbol
        p = [bench.probabilities(levels, [d], END, END + 1, scale)[len(context)] for d in continued]
        assert min(p) > 0
        assert sum(p) == pytest.approx(1.0, abs=1e-9)


def test_highest_order_counts_are_those_of_a_dictionary(bench, documents):
    level = bench.train_ngram(documents, END, ORDER)[-1]
    counts = {}
    for d in documents:
        padded = [END] * (ORDER - 1) + d + [END]
        for i in range(ORDER - 1, len(padded)):
            key = tuple(padded[i - ORDER + 1 : i + 1])
            counts[key] = counts.get(key, 0) + 1
    assert sorted(level.counts.tolist()) == sorted(counts.values())
    assert level.totals.sum() == sum(len(d) + 1 for d in documents)


def test_a_repeated_text_costs_little(bench):
    text = [0, 1, 2, 3, 4, 5] * 5
    levels = bench.train_ngram([text] * 20, END, ORDER)
    assert -np.log2(bench.probabilities(levels, [text], END, END + 1, 1.0)).mean() < 0.5


def test_xz_sees_repetition(bench):
    text = "".join(chr(97 + c) for c in np.random.default_rng(0).integers(0, 26, 2000))
    assert bench.xz_size([text, text]) < 1.1 * bench.xz_size([text])
