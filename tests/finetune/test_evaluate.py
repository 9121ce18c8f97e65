"""Evaluation against the plain formulas: what a token costs, which label wins, what pairing takes away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minedge.data.packing import Texts, pack
from minedge.data.task import Example, Task, encode
from minedge.data.tokenizer import Tokenizer
from minedge.errors import UsageError
from minedge.finetune.evaluate import evaluate_task, evaluate_text, paired
from tests.model.test_transformer import random_model, tiny

WORDS = ("red", "green", "blue")
TEXTS = [f"the {a} {b} is {c}" for a in WORDS for b in ("cat", "dog", "bird and bee") for c in ("old", "new")]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_bpe([*TEXTS, *(f"{t}\nColour: {w}" for t in TEXTS for w in WORDS)], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = tiny("llama", vocab_size=tokenizer.vocab_size, context_length=48)
    return replace(random_model(config, np.float32), tokenizer=tokenizer)


def task(words=WORDS):
    examples = tuple(Example(text, i % 3) for i, text in enumerate(TEXTS))
    return Task("colours", WORDS, words, "{text}\nColour: {label}", {"test": examples})


def test_loss_is_the_mean_over_every_token_once(model, tokenizer):
    packed = pack(Texts(tuple(TEXTS)), tokenizer, 16)
    found = evaluate_text(model, packed, batch_size=2)
    total = count = 0.0
    for tokens, mask in packed.eval_batches(1):
        losses = model.token_losses(tokens)
        weights = np.ones_like(losses) if mask is None else mask[:, 1:]
        total, count = total + float((losses * weights).sum()), count + float(weights.sum())
    assert found.n_tokens == count
    # float32 forward passes of other batch shapes: 1e-5 relative is some hundred roundings of 2^-24
    assert found.loss == pytest.approx(total / count, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(found.loss * count / np.log(2) / packed.n_bytes, rel=1e-12)


def test_standard_error_of_a_loss_is_over_rows_and_no_batch_size_changes_it(model, tokenizer):
    packed = pack(Texts(tuple(TEXTS)), tokenizer, 16)
    found = [evaluate_text(model, packed, batch_size=n) for n in (1, 3, 1000)]
    sums, counts = [], []
    for tokens, mask in packed.eval_batches(1):
        losses = model.token_losses(tokens)
        weights = np.ones_like(losses) if mask is None else mask[:, 1:]
        sums.append(float((losses * weights).sum()))
        counts.append(float(weights.sum()))
    s, w = np.array(sums), np.array(counts)
    n, loss = len(s), s.sum() / w.sum()
    expected = np.sqrt(n / (n - 1) * ((s - loss * w) ** 2).sum()) / w.sum()
    assert n > 3 and expected > 0
    for one in found:
        assert one.loss == pytest.approx(loss, rel=1e-5)
        assert one.loss_se == pytest.approx(expected, rel=1e-3)


def test_one_row_has_no_standard_error(model, tokenizer):
    found = evaluate_text(model, pack(Texts(("the red cat",)), tokenizer, 40))
    assert np.isfinite(found.loss) and np.isnan(found.loss_se)


@pytest.mark.parametrize("words", [WORDS, ("red", "a longer label", "blue")])
def test_label_loss_is_the_likelihood_of_the_word(model, tokenizer, words):
    """One forward for a batch of single-token words, and rows per word otherwise, give what scoring one text at a
    time gives.
    """
    found = evaluate_task(model, task(words), task(words).examples("test"), 40, batch_size=4)
    for i, example in enumerate(task(words).examples("test")):
        prompt, labels = encode(task(words), tokenizer, example, 40)
        losses = [float(model.token_losses(np.array([prompt + label]))[0, len(prompt) - 1 :].sum()) for label in labels]
        assert found.label_losses[i] == pytest.approx(losses[example.label], rel=1e-4, abs=1e-5)
        assert found.correct[i] == (int(np.argmin(losses)) == example.label)


def test_batch_size_changes_nothing(model):
    small, large = (evaluate_task(model, task(), task().examples("test"), 40, batch_size=n) for n in (1, 7))
    np.testing.assert_allclose(small.label_losses, large.label_losses, rtol=1e-4)


def test_pairing_removes_what_examples_share():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(0, 10, 1000), 0.1 + rng.normal(0, 0.1, 1000)
    found = paired(hard + gain, hard)
    assert found.difference == pytest.approx(gain.mean())
    assert found.se == pytest.approx(gain.std(ddof=1) / np.sqrt(1000), rel=1e-9)
    assert found.in_se > 20  # unpaired, the standard error would be 0.4 and the gain invisible


def test_standard_error_of_a_share():
    found = evaluate_like([True] * 30 + [False] * 70)
    assert found.accuracy == 0.3
    assert found.accuracy_se == pytest.approx(np.sqrt(0.3 * 0.7 / 99))


def evaluate_like(correct):
    from minedge.finetune.evaluate import TaskResult

    return TaskResult(np.array(correct), np.zeros(len(correct)))


def test_nothing_to_evaluate_is_said(model):
    with pytest.raises(UsageError, match="no examples"):
        evaluate_task(model, task(), (), 40)
    with pytest.raises(UsageError, match="tokenizer"):
        evaluate_task(replace(model, tokenizer=None), task(), task().examples("test"), 40)
    with pytest.raises(UsageError, match="1-D"):
        paired([1.0], [2.0])
