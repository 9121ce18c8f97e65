"""Text that comes token by token joins to the text of all tokens, and no token costs more the later it comes."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minedge
from minedge.model.pieces import Pieces
from tests.data.sentencepiece import small
from tests.model.test_generate import Letters


@functools.cache
def tokenizer(name):
    """Bytes in merges, a SentencePiece vocabulary with bytes for the rest, and one that has no `decode_after`."""
    return {"bpe": lambda: minedge.load("bundled").tokenizer, "sentencepiece": small, "letters": Letters}[name]()


def whole(tok, prompt, ids):
    """The text of `ids` after `prompt`, decoded at once."""
    return tok.decode_after(prompt, ids) if hasattr(tok, "decode_after") else tok.decode(ids)


def pieces_of(made, ids):
    """What is given with each token, until a stop text came; then the rest."""
    out = []
    for token in ids:
        goes_on = made.add(token)
        out.append("".join(made.sure()))
        if not goes_on:
            break
    return [*out, "".join(made.rest())]


ALPHABETS = {"bpe": "ab \n<é漢😀", "sentencepiece": "thecats é漢😀", "letters": Letters.alphabet}
texts = st.sampled_from(sorted(ALPHABETS)).flatmap(lambda name: st.tuples(st.just(name), st.text(ALPHABETS[name])))


@given(texts, st.data())
def test_pieces_join_to_the_text_decoded_at_once(case, data):
    name, text = case
    tok = tokenizer(name)
    ids = tok.encode(text)
    at = data.draw(st.integers(0, len(ids)), label="tokens of the prompt")
    prompt, new = ids[:at], ids[at:]
    expected = whole(tok, prompt, new)
    if "\ufffd" not in expected:  # else the prompt ends within a character, of which the rest is not text
        assert "".join(pieces_of(Pieces(tok, [], prompt), new)) == expected
        assert "\ufffd" not in "".join(pieces_of(Pieces(tok, [], prompt), new)[:-1])


@given(texts, st.data())
def test_the_text_ends_before_the_first_stop_text(case, data):
    name, text = case
    tok = tokenizer(name)
    new = tok.encode(text)
    expected = whole(tok, [], new)
    if not expected:
        return
    start = data.draw(st.integers(0, len(expected) - 1), label="where the stop text is taken from")
    stop = expected[start : start + data.draw(st.integers(1, 3))]
    made = Pieces(tok, [stop], [])
    assert "".join(pieces_of(made, new)) == expected[: expected.find(stop)] and made.ended


@pytest.mark.parametrize("name", sorted(ALPHABETS))
def test_a_token_costs_the_same_however_long_the_text_is(name, monkeypatch):
    tok, lengths = tokenizer(name), []
    decode = type(tok).decode
    monkeypatch.setattr(type(tok), "decode", lambda self, ids: (lengths.append(len(list(ids))), decode(self, ids))[1])
    made = Pieces(tok, [], [])
    for token in tok.encode("cat" * 300):
        made.add(token)
        list(made.sure())
    assert made.count >= 100 and max(lengths) <= 4
