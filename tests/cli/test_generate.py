"""generate: several prompts, prompt caches, dtypes of the cache."""

from __future__ import annotations

import json
import signal
import subprocess
from functools import partial

import pytest

from tests.python import PYTHON


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


def test_the_default_dtype_of_the_cache_is_told(cli):
    assert texts(cli("generate", "-p", "a", "--max-tokens", "1", "--json"))["settings"]["kv_dtype"] == "float32"


def test_a_file_of_prompts_with_a_byte_order_mark_and_blank_lines(cli, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffReturn the\r\n\r\n  \nA \u2028 list\n".encode())
    found = texts(cli("generate", "--prompts", str(file), "--max-tokens", "2", "--json"))
    assert found["prompts"] == ["Return the", "A \u2028 list"]  # a line ends at \n, not wherever Unicode breaks one
    file.write_bytes(b"\n \n")
    result = cli("generate", "--prompts", str(file))
    assert result.code == 2 and "every line is blank" in result.err


def test_each_of_several_texts_is_counted(cli):
    found = texts(cli("generate", "-p", "Return the", "-p", "A", "--max-tokens", "5", "--json"))
    for prompt, row in zip(found["prompts"], found["per_text"], strict=True):
        alone = texts(cli("generate", "-p", prompt, "--max-tokens", "5", "--json"))
        assert row == {key: alone[key] for key in ("prompt_tokens", "generated_tokens", "ended")}
    stopped = texts(cli("generate", "-p", "Return the", "-p", "A", "--stop", " ", "--max-tokens", "5", "--json"))
    assert "stop" in {row["ended"] for row in stopped["per_text"]}


def test_a_prompt_cache_in_no_folder_is_refused_before_any_work(cli, tmp_path):
    result = cli("generate", "-p", "a", "--model", "no-such-model", "--prompt-cache", str(tmp_path / "no" / "x"))
    assert result.code == 2 and "--prompt-cache" in result.err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" * 99])
def test_a_file_that_is_no_prompt_cache_is_named_with_its_option_and_kept(cli, tmp_path, content):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    result = cli("generate", "-p", "a", "--max-tokens", "2", "--prompt-cache", str(file))
    assert result.code == 3 and "--prompt-cache: expected" in result.err and "notes.txt" in result.err
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


def test_text_from_a_pipe_goes_on_without_a_newline_of_ours(cli, monkeypatch):
    import io

    plain = cli("generate", "-p", "Return the", "--max-tokens", "4").out
    monkeypatch.setattr("sys.stdin", io.StringIO("Return the"))
    assert cli("generate", "-p", "-", "--max-tokens", "4").out + "\n" == plain


def test_quiet_keeps_warnings(cli, monkeypatch):
    import warnings

    import minedge.cli.generate as verb

    real = verb.load_model

    def warn(args):
        warnings.warn("something is odd", UserWarning, stacklevel=2)
        return real(args)

    monkeypatch.setattr(verb, "load_model", warn)
    result = cli("generate", "-p", "a", "--max-tokens", "1", "--quiet")
    assert result.err == "minedge generate: warning: something is odd\n"


def test_inspect_and_doctor_say_what_the_engine_runs(cli, tmp_path):
    import minedge
    from minedge import quant

    assert texts(cli("inspect", "bundled", "--json"))["engine"] == "yes"
    quant.nf4(minedge.load("bundled"), 64).save(tmp_path / "nf4")
    assert "nf4" in texts(cli("inspect", str(tmp_path / "nf4"), "--json"))["engine"]
    assert "bfloat16" in texts(cli("doctor", "--json"))["engine"]["kinds"]


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_ctrl_c_keeps_the_texts_that_are_finished(cli, monkeypatch, extra):
    """Ten prompts, eight side by side: the first eight are done, the others are not."""
    import minedge.model.generate as module

    words = [word for i in range(10) for word in ("-p", f"Return the {i}")]
    words += ["--max-tokens", "4", "--temp", "1"]
    whole = texts(cli("generate", *words, "--json"))
    calls, real = [], module.next_token

    def stops(*given):
        calls.append(1)
        if len(calls) > 8 * 4 + 2 * 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "next_token", stops)
    result = cli("generate", *words, *extra)
    assert result.code == 130 and "Traceback" not in result.err
    assert result.err.splitlines()[-1] == "minedge generate: interrupted; 8 of 10 texts were finished"
    if extra:
        found = json.loads(result.out)
        assert found["texts"] == [*whole["texts"][:8], None, None] and found["interrupted"]
        assert found["per_text"] == [*whole["per_text"][:8], None, None] and not whole["interrupted"]
    else:
        shown = "".join(f"Return the {i}{text}\n\n" for i, text in enumerate(whole["texts"][:8]))
        assert result.out == shown.replace("\r\n", "\n")


def test_ctrl_c_keeps_a_text_that_ended_before_its_neighbours(cli, monkeypatch):
    import minedge.model.generate as module

    words = ("-p", "Return the", "-p", "A", "--max-tokens", "6", "--json")
    first = texts(cli("generate", *words))["texts"][1]
    assert first not in texts(cli("generate", *words))["texts"][0]
    calls, real = [], module.next_token

    def stops(*given):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "next_token", stops)
    result = cli("generate", *words, "--stop", first[:1])
    found = json.loads(result.out)
    assert result.code == 130 and found["texts"] == [None, ""] and found["per_text"][1]["ended"] == "stop"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_ctrl_c_from_outside(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Return the\n" * 800)
    command = [*PYTHON, "-m", "minedge", "generate", "--prompts", str(file), "--max-tokens", "200"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in a shell's background ignores it
    with subprocess.Popen(command, preexec_fn=heard, **pipes) as process:
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and line.startswith("Return the") and "Traceback" not in out + err, err
    assert "minedge generate: interrupted; " in err.splitlines()[-1]
