"""The built-in task: real labels, label words of one token, masks on the label word alone."""

from __future__ import annotations

import numpy as np
import pytest

from minedge.data import baselines
from minedge.data.corpus import normalized
from minedge.data.splits import stdlib_splits
from minedge.data.task import FAMILIES, Example, Task, candidates, encode, family_of, label_loss_batch, stdlib_task
from minedge.errors import UsageError
from tests.data.sentencepiece import small


@pytest.fixture(scope="module")
def task():
    return stdlib_task()


def test_sizes_and_balance(task):
    assert len(task.labels) == 8
    counts = {p: np.bincount([e.label for e in task.examples(p)], minlength=8) for p in ("train", "valid", "test")}
    assert counts["train"].sum() > 1200 and counts["test"].sum() >= 400
    assert counts["train"].min() > 150 and counts["test"].min() >= 30
    assert counts["test"].max() < 0.25 * counts["test"].sum()


def test_every_family_word_is_one_token(task, tokenizer):
    words = [tokenizer.encode(word) for word in task.pieces()[2]]
    assert all(len(word) == 1 for word in words) and len({word[0] for word in words}) == 8


def test_no_module_is_in_two_families():
    modules = [m for family in FAMILIES.values() for m in family]
    assert len(modules) == len(set(modules))
    assert family_of("tkinter.ttk") == "window"
    assert family_of("tkinterish") is None
    assert family_of("topics.numbers") is None


def test_parts_follow_the_corpus(task):
    train = {normalized(t) for t in stdlib_splits().texts("train")}
    assert all(normalized(e.text) in train for e in task.examples("train"))
    assert not any(normalized(e.text) in train for p in ("valid", "test") for e in task.examples(p))


def test_examples_are_shuffled_and_fixed(task):
    assert task.examples("train") == stdlib_task().examples("train")
    first = [e.label for e in task.examples("train")[:100]]
    assert len(set(first)) == 8


def test_encode_fits_and_keeps_the_cue(task, tokenizer):
    for example in (Example("Short text about nothing.", 2), Example("A very long text. " * 200, 5)):
        prompt, words = encode(task, tokenizer, example, 96)
        assert len(prompt) + max(map(len, words)) <= 96
        assert prompt[0] == tokenizer.bos_id
        assert tokenizer.decode(prompt).endswith("\nTopic:")
        assert tokenizer.decode(prompt + words[5]).endswith("\nTopic: number")
    assert len(prompt) == 95


def test_label_loss_weighs_the_label_word_alone(task, tokenizer):
    examples = task.examples("test")[:16]
    tokens, mask = label_loss_batch(task, tokenizer, examples, 96)
    assert tokens.dtype == np.int64 and mask.dtype == np.float32 and tokens.shape == mask.shape
    for row, weight, example in zip(tokens, mask, examples, strict=True):
        at = np.flatnonzero(weight)
        assert len(at) == 1 and tokenizer.decode([row[at[0]]]) == " " + task.label_words[example.label]
        assert (row[at[0] + 1 :] == tokenizer.eos_id).all()


def random_logits(tokens, vocab, seed=0):
    return np.random.default_rng(seed).normal(size=(*tokens.shape, vocab))


def test_one_row_suffices_for_words_of_one_token(task, tokenizer):
    examples = task.examples("test")[:5]
    c = candidates(task, tokenizer, examples, 64)
    assert c.tokens.shape[0] == 5 and c.label_ids.shape == (8,)
    assert all(tokenizer.decode([i]) == " " + w for i, w in zip(c.label_ids, task.label_words, strict=True))
    logits = random_logits(c.tokens, tokenizer.vocab_size)
    for b, example in enumerate(examples):
        at = np.flatnonzero(c.loss_mask[b])[0]
        assert c.last[b] == at - 1 and c.tokens[b, at] == c.label_ids[example.label]
        assert np.array_equal(c.scores(logits)[b], logits[b, at - 1, c.label_ids])
    expected = [logits[b, c.last[b], c.label_ids].argmax() == e.label for b, e in enumerate(examples)]
    assert c.correct(logits).tolist() == expected


def test_words_of_several_tokens_are_scored_whole(tokenizer):
    task = Task("odd", ("a", "b"), ("hippopotamus", "yes"), parts={})
    examples = [Example("Some text.", 0), Example("Another, longer text to pad against.", 1)]
    c = candidates(task, tokenizer, examples, 64)
    assert c.label_ids is None and c.tokens.shape[0] == 4
    logits = random_logits(c.tokens, tokenizer.vocab_size)
    for b, example in enumerate(examples):
        prompt, words = encode(task, tokenizer, example, 64)
        for k, word in enumerate(words):
            row, expected = 2 * b + k, 0.0
            for t, token in enumerate(word, len(prompt)):
                before = logits[row, t - 1]
                expected += before[token] - np.log(np.exp(before).sum())
            assert c.scores(logits)[b, k] == pytest.approx(expected, rel=1e-12)


BAD_TEMPLATES = ["{text}", "{label} {text}", "{text} {label}!", "{text}{text} {label}", "x {label}"]


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_bad_templates_are_refused(template):
    with pytest.raises(UsageError, match="template"):
        Task("t", ("a", "b"), ("a", "b"), template)


def test_bad_labels_and_lengths_are_refused(task, tokenizer):
    with pytest.raises(UsageError, match="at least two labels"):
        Task("t", ("a",), ("a",))
    with pytest.raises(UsageError, match="one different word"):
        Task("t", ("a", "b"), ("a", "a"))
    with pytest.raises(UsageError, match="max_len"):
        encode(task, tokenizer, Example("text", 0), 5)


def test_baselines_on_a_task_with_known_answer():
    def example(i):
        return Example(f"{'alpha beta' if i % 4 else 'gamma delta'} filler words number {i}", int(i % 4 > 0))

    parts = {p: tuple(map(example, range(n))) for p, n in {"train": 80, "valid": 20, "test": 40}.items()}
    toy = Task("toy", ("a", "b"), ("a", "b"), parts=parts)
    assert baselines.majority_accuracy(toy) == 0.75
    assert baselines.bag_of_words_accuracy(toy) == 1.0


def test_bag_of_words_beats_the_majority_by_far(task):
    assert 2 * baselines.majority_accuracy(task) < baselines.bag_of_words_accuracy(task, l2=(3e-4,), steps=100) < 0.8


@pytest.mark.parametrize("before", ["", "cat: "])
def test_no_space_is_added_around_cue_and_label_word(before):
    made = small()
    task = Task("small", ("0", "1"), ("cat", "sat"), before + "{text}\nthe: {label}")
    prompt, words = encode(task, made, Example("the cat", 0), 60)
    assert words == [[made.token_id("\u2581cat")], [made.token_id("\u2581sat")]]
    assert made.decode(prompt + words[0]) == before + "the cat\nthe: cat"
