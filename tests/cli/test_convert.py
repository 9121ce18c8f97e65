"""minedge convert: every format into every other, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf")


@pytest.mark.parametrize(
    ("words", "out", "bound"),
    [
        (("--to", "gguf", "--type", "f32"), "o.gguf", 0.0),
        ((), "o.gguf", 0.0),
        (("--type", "f16"), "o.gguf", 1e-2),
        (("--to", "gguf", "--type", "q8_0"), "o", 1e-1),
        (("--to", "hf"), "o", 0.0),
        (("--to", "minedge", "--type", "f16"), "o", 1e-2),
    ],
)
def test_a_model_goes_into_every_format(home, cli, words, out, bound):
    result = cli("convert", "tiny", out, *words, "--verify", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["largest_logit_difference"] <= bound
    assert report["tokenizer"] and report["disk_bytes_after"] > 0
    assert cli("generate", "-m", out, "-p", "The", "--max-tokens", "3").code == 0
    assert cli("inspect", out).code == 0


def test_four_bits_stay_four_bits(home, cli):
    assert cli("quantize", "-m", "tiny", "--out", "q", "--embeddings").code == 0
    for source, out, to in (("q", "q.gguf", "gguf"), ("q.gguf", "back", "minedge"), ("back", "dense", "hf")):
        result = cli("convert", source, out, "--to", to, "--verify", "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["largest_logit_difference"] == 0
    assert "int4" in cli("inspect", "back").out and "int4" not in cli("inspect", "dense").out
    assert "15 of Q4_0" in cli("inspect", "q.gguf").out
    tensors = json.loads(cli("inspect", "q.gguf", "--json").out)["tensors"]
    assert {"name": "token_embd.weight", "dtype": "Q4_0", "shape": [300, 64], "bytes": 10800} in tensors
    again = cli("quantize", "-m", "q.gguf", "--out", "qq")
    assert again.code == 2 and "quantized already" in again.err


def test_inspect_says_why_a_good_file_is_no_model(home, cli):
    from tests.io.gguf_files import good

    Path("odd.gguf").write_bytes(good().set("general.architecture", 8, "mamba").build())
    Path("fine.gguf").write_bytes(good().build())
    report = json.loads(cli("inspect", "odd.gguf", "--json").out)
    assert report["as_a_model"].startswith("cannot be loaded: key 'general.architecture': expected llama")
    assert "1 layers, 32 wide, 2 heads, vocabulary 8" in cli("inspect", "fine.gguf").out
    assert cli("convert", "odd.gguf", "o").code == 3


def test_refusals_name_the_argument(home, cli):
    for words, says in (
        (
            ("tiny", "o", "--to", "hf", "--type", "q4_0"),
            "--type: a folder for transformers (--to hf) takes f32, f16,",
        ),
        (("tiny", "o", "--to", "hf", "--type", "keep"), "--to gguf or minedge takes that"),
        (
            ("tiny", "o", "--type", "q8_0"),
            "a minedge folder (--to minedge) takes keep, f32, f16, got 'q8_0'",
        ),
        (("tiny", "o", "--to", "minedge", "--type", "q8_0"), "minedge quantize"),
        (("tiny", "o", "--to", "guff"), "did you mean 'gguf'"),
        (("tiny", "adapter", "--to", "gguf"), "is a folder, expected a file's name"),
        (("tiny", "text.txt", "--to", "gguf"), "or replace it with --overwrite"),
        (("tinny", "o"), "did you mean 'tiny'"),
        (("tiny",), "required"),
    ):
        result = cli("convert", *words)
        assert (result.code, says in result.err) == (2, True), result.err
    assert Path("text.txt").read_text().startswith("line 0")
    Path("bad.gguf").write_bytes(b"GGUF" + bytes(3))
    for verb in (("convert", "bad.gguf", "o"), ("inspect", "bad.gguf")):
        result = cli(*verb)
        assert result.code == 3 and "bad.gguf" in result.err


def test_a_run_and_an_existing_file_can_be_overwritten(home, cli):
    Path("o.gguf").write_text("old")
    assert cli("convert", "tiny", "o.gguf", "--overwrite").code == 0
    assert Path("o.gguf").read_bytes()[:4] == b"GGUF"


def test_only_a_gguf_file_is_replaced_by_one(home, cli):
    Path("notes.txt").write_text("mine")
    result = cli("convert", "tiny", "notes.txt", "--to", "gguf", "--overwrite")
    assert result.code == 2 and "is no GGUF file" in result.err
    assert Path("notes.txt").read_text() == "mine"
    for _ in range(2):
        assert cli("convert", "tiny", "m.gguf", "--overwrite").code == 0
