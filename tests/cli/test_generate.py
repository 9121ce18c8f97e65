"""generate: several prompts, prompt caches, dtypes of the cache."""

from __future__ import annotations

import json

import pytest


def texts(result) -> dict:
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_prompts_from_options_and_a_file(cli, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Return the\n\nThe os\\nmodule\n", encoding="utf-8")
    found = texts(cli("generate", "-p", "A list", "--prompts", str(file), "--max-tokens", "6", "--json"))
    assert found["prompts"] == ["A list", "Return the", "The os\nmodule"]
    for prompt, text in zip(found["prompts"], found["texts"], strict=True):
        assert texts(cli("generate", "-p", prompt, "--max-tokens", "6", "--json"))["text"] == text
    shown = cli("generate", "--prompts", str(file), "--max-tokens", "6")
    assert "Return the" in shown.out and "2 texts" in shown.err


def test_prompt_cache_is_made_and_used(cli, tmp_path):
    cache = tmp_path / "prompt.cache"
    prompt = "Return the current working directory"
    plain = texts(cli("generate", "-p", prompt, "--max-tokens", "6", "--json"))
    first = texts(cli("generate", "-p", prompt, "--max-tokens", "6", "--prompt-cache", str(cache), "--json"))
    made = cache.read_bytes()
    again = texts(cli("generate", "-p", prompt, "--max-tokens", "6", "--prompt-cache", str(cache), "--json"))
    assert plain["text"] == first["text"] == again["text"]
    assert first["prompt_tokens_read"] == first["prompt_tokens"] > again["prompt_tokens_read"] == 1
    assert cache.read_bytes() == made
    longer = texts(cli("generate", "-p", prompt + " as a", "--max-tokens", "1", "--prompt-cache", str(cache), "--json"))
    assert longer["prompt_tokens_read"] < longer["prompt_tokens"] - 1
    assert cache.read_bytes() != made


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--prompt"),
        (["--prompts", "missing.txt"], 2, "--prompts: 'missing.txt'"),
        (["-p", "a", "-p", "b", "--prompt-cache", "x"], 2, "--prompt-cache: expected one prompt"),
        (["-p", "a", "--kv-dtype", "int9"], 2, "--kv-dtype"),
        (["-p", "a", "--backend", "numpy", "--prompt-cache", "x"], 2, "--prompt-cache: it needs the engine"),
        (["-p", "a", "--draft-model", "bundled", "--kv-dtype", "int8"], 2, "--draft-model: cannot be combined"),
    ],
)
def test_what_is_refused(cli, arguments, code, says):
    result = cli("generate", *arguments)
    assert result.code == code and says in result.err and "Traceback" not in result.err


def test_a_cache_that_is_no_cache_is_refused(cli, tmp_path):
    cache = tmp_path / "prompt.cache"
    cache.write_bytes(b"nonsense")
    result = cli("generate", "-p", "a", "--prompt-cache", str(cache))
    assert result.code == 3 and "prompt.cache" in result.err and cache.read_bytes() == b"nonsense"


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
def test_kv_dtypes(cli, kv_dtype):
    found = texts(cli("generate", "-p", "Return the", "--max-tokens", "6", "--kv-dtype", kv_dtype, "--json"))
    assert found["settings"]["kv_dtype"] == kv_dtype and found["generated_tokens"] == 6
