"""The tokenizer: lossless, deterministic, saved as Hugging Face lays it out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from minedge.data.splits import stdlib_splits
from minedge.data.tokenizer import END_OF_TEXT, Tokenizer
from minedge.errors import MinedgeFormatError
from tests.data.sentencepiece import small


def test_text_survives(tokenizer):
    for text in [
        *stdlib_splits().texts("test")[:200],
        "",
        " ",
        "\n\n    x = 1\t\u00e9\u4e2d\U0001f600",
        "  two  spaces  ",
    ]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_token_is_first_and_never_in_text(tokenizer):
    assert tokenizer.eos_id == tokenizer.bos_id == 0 == tokenizer.token_id(END_OF_TEXT)
    assert tokenizer.vocab_size == 1536
    assert 0 not in tokenizer.encode("Return the end of text.")
    assert tokenizer.decode([0, *tokenizer.encode("hi"), 0]) == "hi"


def test_digits_stand_alone(tokenizer):
    assert len(tokenizer.encode("20231125")) == 8


def test_training_again_gives_the_same_tokenizer():
    texts = stdlib_splits().texts("test")
    one, two = (Tokenizer.train_bpe(texts, 600).backend.to_str() for _ in range(2))
    assert one == two


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new")
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for place in (tmp_path / "new", tmp_path / "new" / "tokenizer.json"):
        loaded = Tokenizer.load(place)
        assert loaded.backend.to_str() == tokenizer.backend.to_str()
        assert (loaded.eos_token, loaded.bos_token) == (END_OF_TEXT, END_OF_TEXT)


def test_wrapped_special_tokens_are_understood(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": END_OF_TEXT}, "bos_token": None})
    )
    assert Tokenizer.load(tmp_path).eos_id == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe"])
def test_a_foreign_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(MinedgeFormatError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_and_bad_settings_are_refused(tokenizer, tmp_path):
    with pytest.raises(MinedgeFormatError, match="no tokenizer there"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    for content in (b"{", b"[1]", b"\xff"):
        (tmp_path / "tokenizer_config.json").write_bytes(content)
        with pytest.raises(MinedgeFormatError, match=r"tokenizer_config\.json"):
            Tokenizer.load(tmp_path)


def test_the_library_loads_only_when_used():
    code = "import sys, minedge.data.tokenizer, minedge.data.loaders; print('tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_bos_before_a_text_is_the_settings_or_the_tokenizers_word(tokenizer):
    assert small().adds_bos and small(False, add_bos_token=True).adds_bos
    assert not small(False).adds_bos and not small(True, add_bos_token=False).adds_bos
    assert not small(False, add_bos_token=True, bos_token=None).adds_bos
    assert not tokenizer.adds_bos


def test_rows_start_with_bos_where_one_is_used(tokenizer):
    assert small().start_id == small(False).start_id == 1
    assert small(False, add_bos_token=False).start_id == small(False, bos_token=None).start_id == 2
    assert tokenizer.start_id == tokenizer.eos_id
    chat = Tokenizer.train_bpe(["a"], 260, ("<|im_end|>", "<|im_start|>"))
    named = Tokenizer(chat.backend, "<|im_end|>", "<|im_start|>")
    assert named.start_id == named.eos_id != named.bos_id  # it starts a turn, not a text


def test_a_continuation_gets_no_space_of_its_own(tokenizer):
    made = small()
    texts = [" the", "the", " cat sat", "\nthe", "", "\u00e9", "<s>the"]
    for text, ids in zip(texts, made.encode_continuation(texts), strict=True):
        assert made.decode([*made.encode("cat"), *ids]) == "cat" + text.removeprefix("<s>")
    assert made.encode_continuation([" the"]) == [made.encode("the")] == [[made.token_id("\u2581the")]]
    assert made.encode_continuation(["the"]) == [[made.token_id("the")]]
    assert tokenizer.encode_continuation(texts) == tokenizer.encode_batch(texts)


def test_a_continuation_where_metaspace_puts_the_space():
    import tokenizers as hf

    backend = hf.Tokenizer.from_str(small().backend.to_str())
    backend.normalizer = None
    backend.pre_tokenizer = hf.pre_tokenizers.Metaspace("\u2581", "always", split=False)
    made = Tokenizer(backend)
    assert made.encode("the") == made.encode_continuation([" the"])[0] == [made.token_id("\u2581the")]
    assert made.encode_continuation(["the"]) == [[made.token_id("the")]]
