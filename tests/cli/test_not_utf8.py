"""Bytes that are not UTF-8: one error line that names where they came from."""

from __future__ import annotations

import io
import json
import sys

import pytest

BAD = b"caf\xe9\n"


@pytest.fixture
def stdin(monkeypatch):
    """Give stdin these bytes, under the error handler of a C locale (surrogateescape) or of others (strict)."""

    def give(data: bytes, errors: str = "surrogateescape") -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors=errors))

    return give


@pytest.mark.parametrize("errors", ["surrogateescape", "strict"])
def test_a_prompt_from_stdin(errors, stdin, home, cli):
    stdin(BAD, errors)
    result = cli("generate", "-m", "tiny", "--prompt", "-")
    assert result.code == 2 and "--prompt: stdin: expected text in UTF-8" in result.err and result.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "-p", "caf\udce9"),
        ("generate", "-p", "x", "--stop", "caf\udce9"),
        ("chat", "--system-prompt", "caf\udce9"),
        ("chat", "--template", "caf\udce9 {message}"),
        ("chat", "--stop", "caf\udce9"),
    ],
)
def test_an_argument(words, stdin, home, cli):
    stdin(b"hello\n")
    result = cli(*words, "-m", "tiny")
    name = "--prompt" if words[-2] == "-p" else words[-2]
    assert result.code == 2 and f"error: {name}: expected text in UTF-8" in result.err, result.err


@pytest.mark.parametrize("errors", ["surrogateescape", "strict"])
@pytest.mark.parametrize("json_mode", [False, True])
def test_chat_refuses_that_message_and_answers_the_next(errors, json_mode, stdin, home, cli):
    stdin(BAD + b"The quick\n", errors)
    result = cli("chat", "-m", "tiny", "--max-tokens", "3", *(["--json"] if json_mode else []))
    assert result.code == 2 and "error: message: expected text in UTF-8" in result.err
    assert "Traceback" not in result.err
    if json_mode:
        report = json.loads(result.out)
        assert report["refused"] == 1
        assert [turn["message"] for turn in report["turns"]] == ["caf?", "The quick"]
        assert report["turns"][0]["answer"] == ""
    else:
        assert result.out.strip()
