"""Sampling: each cut against its definition, the loop against the full forward, streaming against the whole text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedge.data.tokenizer import Tokenizer
from minedge.errors import UsageError
from minedge.model.generate import Sampling, generate_ids, generate_text, next_token, probabilities, prompt_ids
from tests.data.sentencepiece import small
from tests.model.test_transformer import random_model, tiny

logit_lists = st.lists(st.floats(-20, 20), min_size=2, max_size=30)


class Letters:
    """A tokenizer of 37 two-byte characters, so that a token alone may be half a character."""

    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789é"

    def encode(self, text):
        return [self.alphabet.index(c) for c in text]

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids)


@pytest.fixture
def model():
    from dataclasses import replace

    return replace(random_model(tiny("llama"), np.float32), tokenizer=Letters())


@given(logit_lists, st.floats(0.1, 5))
def test_temperature_is_softmax_of_scaled_logits(logits, temperature):
    logits = np.array(logits)
    expected = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
    np.testing.assert_allclose(probabilities(logits, [], Sampling(temperature)), expected, rtol=1e-9, atol=1e-300)


@given(logit_lists, st.integers(1, 30))
def test_top_k_keeps_the_k_likeliest(logits, k):
    p = probabilities(np.array(logits), [], Sampling(1.0, top_k=k))
    full, kept = probabilities(np.array(logits), [], Sampling(1.0)), p > 0
    assert kept.sum() == min(k, len(logits))
    assert full[kept].min() >= full[~kept].max(initial=0.0)


@given(logit_lists, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p(logits, top_p):
    full = probabilities(np.array(logits), [], Sampling(1.0))
    kept = probabilities(np.array(logits), [], Sampling(1.0, top_p=top_p)) > 0
    mass = np.sort(full[kept])[::-1]
    assert mass.sum() >= top_p - 1e-9
    assert mass[:-1].sum() < top_p + 1e-9


@given(logit_lists, st.floats(0.0, 0.99))
def test_min_p_keeps_what_reaches_its_share_of_the_top(logits, min_p):
    full = probabilities(np.array(logits), [], Sampling(1.0))
    kept = probabilities(np.array(logits), [], Sampling(1.0, min_p=min_p)) > 0
    margin = np.abs(full - min_p * full.max()) > 1e-12  # where rounding cannot decide
    np.testing.assert_array_equal(kept[margin], (full >= min_p * full.max())[margin])


def test_repetition_penalty_lowers_what_was_seen():
    logits = np.array([2.0, -2.0, 1.0])
    p = probabilities(logits, np.array([0, 1, 1]), Sampling(1.0, repetition_penalty=2.0))
    expected = np.exp([1.0, -4.0, 1.0])
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-12)


def test_draws_follow_the_distribution():
    logits, s = np.array([0.0, 1.0, 2.0]), Sampling(1.0)
    rng = np.random.default_rng(0)
    n = 20_000
    counts = np.bincount([next_token(logits, [], s, rng) for _ in range(n)], minlength=3)
    p = probabilities(logits, [], s)
    # five standard errors of a binomial share
    assert (np.abs(counts / n - p) < 5 * np.sqrt(p * (1 - p) / n)).all()


def test_greedy_text_is_the_argmax_of_the_full_forward(model):
    prompt = [3, 1, 4]
    made = list(generate_ids(model, prompt, 9, Sampling()))
    ids = list(prompt)
    for token in made:
        assert token == int(model.logits(np.array([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(made) == 9  # 3 + 9 fill the context of 12


def test_a_full_context_ends_the_text(model):
    assert len(list(generate_ids(model, [1] * 5, 100, Sampling()))) == 7


def test_eos_ends_the_text_and_is_not_part_of_it(model):
    from dataclasses import replace

    made = list(generate_ids(model, [3, 1, 4], 9, Sampling()))
    stopped = replace(model, config=replace(model.config, eos_token_id=made[4]))
    assert list(generate_ids(stopped, [3, 1, 4], 9, Sampling())) == made[: made.index(made[4])]


def test_one_seed_one_text(model):
    texts = [model.generate("abc", 9, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_pieces_join_to_the_text(model):
    for stop in (None, ["zz"], ["e"], [model.generate("abc", 9, temperature=2.0)[3:5]]):
        whole = model.generate("abc", 9, temperature=2.0, stop=stop)
        assert "".join(model.generate("abc", 9, temperature=2.0, stop=stop, stream=True)) == whole


def test_stop_string_ends_the_text_before_it(model):
    text = model.generate("abc", 9, temperature=2.0)
    stop = text[3:5]
    assert model.generate("abc", 9, temperature=2.0, stop=stop) == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 1.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": ""}, "stop"),
    ],
)
def test_settings_out_of_range_are_named(model, setting, name):
    with pytest.raises(UsageError, match=name):
        model.generate("abc", **setting)


def test_no_tokenizer_is_named():
    with pytest.raises(UsageError, match="tokenizer"):
        random_model(tiny("llama")).generate("abc")


def spoken(**settings):
    """A model whose tokenizer puts a space before every text and `<s>`, id 1, before a prompt."""
    from dataclasses import replace

    tokenizer = small(False, **{"add_bos_token": True, **settings})
    config = replace(tiny("llama"), vocab_size=tokenizer.vocab_size, bos_token_id=1, eos_token_id=2)
    return replace(random_model(config, np.float32), tokenizer=tokenizer)


def test_prompts_start_with_bos_once():
    model = spoken()
    plain = model.tokenizer.encode("the cat")
    assert prompt_ids(model, "the cat") == [1, *plain]
    assert prompt_ids(model, "<s>the cat") == [1, *plain]
    assert prompt_ids(model, "") == [1]
    assert prompt_ids(spoken(add_bos_token=False), "the cat") == plain


def test_a_chat_template_gets_no_second_bos():
    model = spoken(bos_token="<s>", chat_template="{{ bos_token }}{{ messages[0]['content'] }}")
    text = model.tokenizer.chat.render([{"role": "user", "content": "the cat"}])
    assert prompt_ids(model, text) == [1, *model.tokenizer.encode("the cat")]


@pytest.mark.parametrize("prompt", ["the cat", "the ", "", "caf\u00e9", "<s>the", "the\n"])
def test_the_space_before_a_continuation_stays(prompt):
    model, text = spoken(), "the cat sat" if prompt in ("", "the ") else " the cat sat \u00e9"
    ids = prompt_ids(model, prompt)
    more = model.tokenizer.encode(text.removeprefix(" "))
    if prompt == "the ":
        more = model.tokenizer.encode("x" + text)[2:]
    assert prompt + "".join(generate_text(model, prompt, 99, Sampling(), None, lambda _: iter(more))) == prompt + text
    assert model.tokenizer.decode([*ids, *more]) == (prompt + text).removeprefix("<s>")
    if text[0] == " ":
        assert "".join(generate_text(model, prompt, 99, Sampling(), " the", lambda _: iter(more))) == ""


def test_byte_level_text_after_a_prompt_is_the_text_alone():
    made = Tokenizer.train_bpe(["the cat caf\u00e9"], 270)
    for before in ("the cat", "caf\u00e9", "the\n ", "\u6f22", ""):
        for text in (" the cat", "caf\u00e9", "\u00e9", "\n", ""):
            ids = made.encode(text)
            for n in range(len(ids) + 1):
                assert made.decode_after(made.encode(before), ids[:n]) == made.decode(ids[:n])


@pytest.mark.parametrize("prompt", [3, None, b"abc", [1, 2], ["a", 3], {"a": "b"}, np.zeros(100)])
def test_a_prompt_that_is_no_text_is_named(model, prompt):
    for more in ({}, {"stream": True}):
        with pytest.raises(UsageError, match=r"^prompt: expected .*text.*, got ") as caught:
            model.generate(prompt, **more)
        assert len(str(caught.value)) < 140


def test_prompts_in_a_tuple_or_none_at_all(model):
    assert model.generate(("abc", "d"), 5) == [model.generate("abc", 5), model.generate("d", 5)]
    assert model.generate([]) == []
