"""Batches: every token once when measuring, pure functions of (seed, step) when training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedge.data.packing import PackedRows, PackedText, Pairs, Texts, pack, shuffled
from minedge.errors import UsageError
from tests.data.sentencepiece import small

END = 0


def stream(n):
    """A stream whose token at i is i + 1, so that a token tells where it came from."""
    return PackedText(np.arange(1, n + 1), END, 8, n)


@given(n=st.integers(2, 60), seq_len=st.integers(3, 12), batch_size=st.integers(1, 5), data=st.data())
def test_measuring_scores_every_token_exactly_once(n, seq_len, batch_size, data):
    overlap = data.draw(st.integers(0, seq_len - 2))
    packed = PackedText(np.arange(1, n + 1), END, seq_len, n)
    scored = []
    for tokens, mask in packed.eval_batches(batch_size, overlap):
        assert tokens.dtype == np.int64 and mask.dtype == np.float32 and tokens.shape == mask.shape
        assert len(tokens) <= batch_size and tokens.shape[1] <= seq_len
        assert (tokens[:, 0] == END).all() and (mask[:, 0] == 0).all()
        for row, weight in zip(tokens, mask, strict=True):
            scored += row[weight > 0].tolist()
            real = row[1:][row[1:] > 0]
            assert (np.diff(real) == 1).all()  # the context is the text that precedes
    assert scored == list(range(1, n + 1))
    assert packed.n_tokens == n


def test_overlap_gives_context():
    packed = PackedText(np.arange(1, 100), END, 17, 99)
    for i, (_, mask) in enumerate(packed.eval_batches(1, overlap=8)):
        assert i == 0 or mask[0, :9].sum() == 0


@given(n=st.integers(2, 200), batch_size=st.integers(1, 7), seed=st.integers(0, 2**64 - 1), step=st.integers(0, 50))
def test_a_batch_depends_on_seed_and_step_alone(n, batch_size, seed, step):
    one, two = stream(n), stream(n)
    for earlier in range(0, step, 7):
        two.batch(earlier, batch_size, seed)
    a, mask = one.batch(step, batch_size, seed)
    b, _ = two.batch(step, batch_size, seed)
    assert mask is None and a.dtype == np.int64
    assert np.array_equal(a, b)
    assert a.shape[0] == batch_size and 2 <= a.shape[1] <= 8
    assert (np.diff(a, axis=1) == 1).all()  # rows are runs of the stream (END, 0, stands before token 1)


def test_an_epoch_covers_the_stream_and_epochs_differ():
    n, seq_len = 1000, 11
    packed = PackedText(np.arange(1, n + 1), END, seq_len, n)
    rows = (n - 9) // 10
    epochs = []
    for epoch in range(3):
        batches = [packed.batch(epoch * rows + i, 1, seed=5)[0] for i in range(rows)]
        predicted = np.concatenate([b[0, 1:] for b in batches])
        assert len(set(predicted.tolist())) == len(predicted) >= n - 2 * seq_len
        epochs.append(predicted)
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(epochs[0][::10].tolist()) != set(epochs[1][::10].tolist())  # cut elsewhere
    assert not np.array_equal(packed.batch(0, 4, 5)[0], packed.batch(0, 4, 6)[0])


def test_shuffles_are_permutations_with_golden_values():
    for n in (1, 2, 100):
        assert sorted(shuffled(n, 3, 1).tolist()) == list(range(n))
    # The same on every machine and NumPy version: checkpoints resume across them.
    assert shuffled(8, 0, 0).tolist() == GOLDEN


GOLDEN = [2, 5, 4, 7, 1, 6, 0, 3]


def test_first_positions_of_shuffles_are_uniform():
    first = np.bincount([shuffled(10, seed, 0)[0] for seed in range(5000)], minlength=10)
    assert abs(first - 500).max() < 5 * np.sqrt(500)  # five standard deviations of a Poisson count


def test_texts_end_with_the_end_token(tokenizer):
    packed = pack(Texts(("Return the first.", "Set it \u00e9.")), tokenizer, 16)
    expected = [
        *tokenizer.encode("Return the first."),
        tokenizer.eos_id,
        *tokenizer.encode("Set it \u00e9."),
        tokenizer.eos_id,
    ]
    assert packed.stream.tolist() == expected
    assert packed.n_bytes == len("Return the first.") + len("Set it ") + 2 + 1
    assert packed.n_tokens == len(expected)


def test_pairs_weigh_the_completion_only(tokenizer):
    prompt, completion = "Question: what is a list?\n", "A mutable sequence."
    packed = pack(Pairs(((prompt, completion),)), tokenizer, 64)
    ((tokens, mask),) = packed.eval_batches(4)
    weighed = tokens[mask > 0].tolist()
    assert weighed == [*tokenizer.encode(completion), tokenizer.eos_id]
    assert tokens[0, : -len(weighed)].tolist() == [tokenizer.eos_id, *tokenizer.encode(prompt)]
    assert packed.n_bytes == len(completion) and packed.n_tokens == len(weighed)


def test_a_long_prompt_loses_its_beginning(tokenizer):
    packed = pack(Pairs((("word " * 100 + "end", " yes"),)), tokenizer, 12)
    ((tokens, mask),) = packed.eval_batches(1)
    assert tokens.shape == (1, 12)
    assert tokenizer.decode(tokens[0]).endswith("end yes")
    assert mask.sum() == len(tokenizer.encode(" yes")) + 1
    ((tokens, mask),) = pack(Pairs((("short", "word " * 100),)), tokenizer, 12).eval_batches(1)
    assert tokens.shape == (1, 12) and mask.sum() == 11


def test_rows_are_padded_on_the_right_and_all_used():
    packed = PackedRows([[1, 2], [3, 4, 5], [6, 7]], [[0, 1], [0, 0, 1], [0, 1]], 9, 3)
    tokens, mask = next(packed.eval_batches(3))
    assert tokens.tolist() == [[1, 2, 9], [3, 4, 5], [6, 7, 9]]
    assert mask.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    firsts = [packed.batch(s, 1, 0)[0][0, 0] for s in range(3)]
    assert sorted(firsts) == [1, 3, 6]


def test_unusable_requests_are_refused(tokenizer):
    with pytest.raises(UsageError, match="seq_len"):
        pack(Texts(("some text",)), tokenizer, 1)
    with pytest.raises(UsageError, match="expected examples"):
        PackedRows([], [], 0, 0)
    with pytest.raises(UsageError, match="expected text"):
        pack(Texts(()), tokenizer, 8)
    with pytest.raises(UsageError, match="overlap"):
        next(stream(20).eval_batches(1, overlap=7))
    with pytest.raises(UsageError, match="batch_size"):
        stream(20).batch(0, 0, 0)


def test_rows_start_with_bos_and_documents_end_with_eos():
    made = small()
    packed = Texts(("the cat", "the")).pack(made, 5)
    stream = [*made.encode("the cat"), 2, *made.encode("the"), 2]
    assert packed.stream.tolist() == stream and packed._full.tolist() == [1, *stream]
    assert all(tokens[:, 0].tolist() == [1] for tokens, _ in packed.eval_batches(1))
    tokens, _ = next(Pairs((("the", " cat"),)).pack(made, 8).eval_batches(1))
    assert tokens[0, 0] == 1 and tokens[0, -1] == 2


def test_completions_do_not_get_a_space_of_the_tokenizers():
    made = small()
    pairs = (("the", " cat"), ("the", "cat"), ("the", "\ncat"), ("", "cat"))
    for pair, row in zip(pairs, Pairs(pairs).pack(made, 30).rows, strict=True):
        assert made.decode(row) == "".join(pair)
    (row,) = Pairs((("the", " cat"),)).pack(made, 30).rows
    assert row == [1, made.token_id("\u2581the"), made.token_id("\u2581cat"), 2]
