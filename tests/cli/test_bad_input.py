"""Every kind of bad input: one line that says what to do, the right exit code, nothing written over, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import minedge
from minedge.errors import MinedgeError
from tests.cli.conftest import QUICK_TRAIN, snapshot


def expect(home, result, code, *words, verb=None):
    """One error line, the exit code, these words in it; `home` as it was before."""
    assert result.code == code, result.err
    lines = [line for line in result.err.splitlines() if ": error: " in line]
    assert len(lines) == 1, result.err
    assert lines[0] == result.err.splitlines()[-1]
    assert lines[0].startswith(f"minedge {verb}: error: " if verb else "minedge")
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in result.err
    assert len(lines[0]) < 400


@pytest.fixture
def refuse(home, cli):
    """Run a command that must fail and leave every file as it was."""

    def run(*words, code, says=()):
        before = snapshot(home)
        result = cli(*words)
        expect(home, result, code, *((says,) if isinstance(says, str) else says), verb=words[0])
        assert result.out == "" or words[0] == "train"  # train may have printed its plan
        assert snapshot(home) == before
        return result

    return run


# --- models -------------------------------------------------------------------


def test_unknown_model_names_the_nearest(refuse):
    for verb in ("generate", "eval", "quantize", "chat"):
        more = {"generate": ["-p", "x"], "eval": ["--data", "text.txt"], "quantize": ["--out", "q"], "chat": []}[verb]
        refuse(verb, "--model", "tinny", *more, code=2, says=["'tinny'", "does not exist", "did you mean 'tiny'"])
    refuse("generate", "--model", "bundeld", "-p", "x", code=2, says="did you mean 'bundled'")
    refuse("inspect", "tinny", code=2, says="did you mean 'tiny'")


def test_missing_files(refuse, home):
    (home / "tiny" / "model.safetensors").unlink()
    refuse("generate", "-m", "tiny", "-p", "x", code=3, says="model.safetensors")
    (home / "tiny" / "config.json").unlink()
    refuse("eval", "-m", "tiny", "--data", "text.txt", code=3, says="config.json")


def test_missing_tokenizer(refuse, home):
    (home / "tiny" / "tokenizer.json").unlink()
    for words in (
        ("generate", "-p", "x"),
        ("eval", "--data", "text.txt"),
        ("train", "--data", "text.txt", "--out", "o"),
    ):
        refuse(words[0], "-m", "tiny", *words[1:], code=3, says="tokenizer.json")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(refuse, home, keep):
    file = home / "tiny" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuse("generate", "-m", "tiny", "-p", "x", code=3, says="model.safetensors")
    refuse("inspect", "tiny", code=3, says="model.safetensors")
    refuse("inspect", "tiny/model.safetensors", code=3, says="model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.gguf", b"GGUF\x03\x00\x00\x00" + b"\0" * 40, "model.gguf"),
        ("model.bin", b"PK\x03\x04" + b"\0" * 40, "zip"),
        ("short.bin", b"\0" * 12, "llama2.c"),
        ("model.pkl", b"\x80\x04\x95" + b"\0" * 40, "expected"),
        ("notes.txt", b"just some text, no model at all", "expected"),
        ("empty", b"", "expected"),
    ],
)
def test_foreign_files(refuse, home, name, content, says):
    (home / name).write_bytes(content)
    refuse("inspect", name, code=3, says=says)
    refuse("generate", "-m", name, "-p", "x", code=3, says=name)


def test_foreign_architecture_and_broken_json(refuse, home):
    file = home / "tiny" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_type": "bert"}))
    refuse("generate", "-m", "tiny", "-p", "x", code=3, says=["model_type", "'bert'"])
    file.write_text(json.dumps({**config, "hidden_size": 72}))
    refuse("generate", "-m", "tiny", "-p", "x", code=3, says="shape")
    file.write_text("{not json")
    refuse("generate", "-m", "tiny", "-p", "x", code=3, says="config.json")


def test_tokenizer_that_does_not_fit_the_vocabulary(refuse, home):
    from minedge.data.tokenizer import Tokenizer

    Tokenizer.train_bpe([(home / "text.txt").read_text()], 310).save(home / "tiny")
    refuse("generate", "-m", "tiny", "-p", "x", code=3, says=["tokenizer", "vocab_size", "300"])


def test_tokens_out_of_range_and_too_long_are_one_line(home):
    model = minedge.load("tiny")
    for tokens, says in (([[0, 300]], "300"), ([[-1, 2]], "-1"), ([[0] * 70], "context"), ([[]], "non-empty")):
        with pytest.raises(MinedgeError, match=says) as caught:
            model.loss(np.array(tokens, np.int64))
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_sequences_longer_than_the_context(refuse):
    refuse("generate", "-m", "tiny", "-p", "fox " * 200, code=2, says=["context", "64"])
    refuse("eval", "-m", "tiny", "--data", "text.txt", "--max-seq-length", 65, code=2, says=["--max-seq-length", "64"])
    refuse("train", "-m", "tiny", "--data", "text.txt", "--out", "o", "--max-seq-length", 999, code=2, says="999")


# --- data ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("empty.txt", b"", 2, "empty"),
        ("blank.jsonl", b" \n\n", 2, "empty"),
        ("latin.txt", "caf\xe9".encode("latin-1"), 3, "UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', 3, "line 2"),
        ("keys.jsonl", b'{"txt": "a"}\n', 3, "text"),
        ("one.tsv", b"good a\ngood b\ngood c\n", 2, "at least two labels"),
        ("nolabel.tsv", b"good a\nbad\n", 3, "line 2"),
    ],
)
def test_bad_data(refuse, home, name, content, code, says):
    (home / name).write_bytes(content)
    refuse("train", "-m", "tiny", "--data", name, "--out", "o", code=code, says=says)
    refuse("eval", "-m", "tiny", "--data", name, code=code, says=says)


def test_data_that_is_not_there(refuse, home):
    refuse("train", "-m", "tiny", "--data", "nowhere.txt", "--out", "o", code=2, says="nowhere.txt")
    (home / "hollow").mkdir()
    refuse("eval", "-m", "tiny", "--data", "hollow", code=2, says="train")
    refuse("eval", "-m", "tiny", "--data", "text.txt", "--task", code=2, says="--task")


# --- settings -----------------------------------------------------------------


def test_group_sizes_that_do_not_divide(refuse):
    for size in (48, 0, 31):
        refuse("quantize", "-m", "tiny", "--out", "q", "--group-size", size, code=2, says="group")
    refuse("quantize", "-m", "tiny", "--out", "q", "--group-size", 64, "--strict", code=2, says=["64", "96"])
    refuse("quantize", "-m", "tiny", "--out", "q", "--bits", 3, code=2, says="--bits")
    for option in (("--group-size", 32), ("--scale", "mse"), ("--no-double-quant",), ("--bits", 8)):
        refuse("quantize", "-m", "tiny", "--out", "q", "--type", "float16", *option, code=2, says=option[0])
    refuse("chat", "-m", "tiny", "--draft-model", "tiny", "--kv-dtype", "int8", code=2, says="--kv-dtype")


def test_a_group_size_that_divides_some_is_a_warning(home, cli):
    result = cli("quantize", "-m", "tiny", "--out", "q", "--group-size", 64, "--json")
    assert result.code == 0
    assert result.err.count("minedge quantize: warning: ") == 1
    assert "unexpected" not in result.err
    assert "model.layers.0.mlp.down_proj" in json.loads(result.out)["dense_linears"]


@pytest.mark.parametrize("sparsity", ["1", "1.5", "-0.1", "nan", "half"])
def test_sparsity_outside_its_interval(refuse, sparsity):
    refuse("prune", "-m", "tiny", "--out", "p", f"--sparsity={sparsity}", code=2, says=["--sparsity", "[0, 1)"])


def test_bad_patterns(refuse):
    for pattern in ("4:2", "2", "0:4", "2:4:8"):
        refuse("prune", "-m", "tiny", "--out", "p", "--nm", pattern, code=2, says=["--nm", "2:4"])
    refuse("prune", "-m", "tiny", "--out", "p", "--nm", "2:4", "--sparsity", "0.3", code=2, says="--nm")
    refuse("prune", "-m", "tiny", "--out", "p", "--target", "q_prj", code=2, says="did you mean 'q_proj'")


def test_rank_zero_and_other_settings(refuse):
    start = (*QUICK_TRAIN, "--out", "o")
    refuse(*start, "--lora-rank", 0, code=2, says=["rank", "0"])
    refuse(*start, "--lora-rank", 65, code=2, says=["--lora-rank: expected at most 64", "65"])
    refuse("plan", "-m", "tiny", "--method", "lora", "--lora-rank", 65, code=2, says="--lora-rank: expected at most 64")
    refuse("generate", "-m", "tiny", "-p", "The fox " * 40, code=2, says=["prompt:", "context holds 64; shorten"])
    refuse(*start, "--lora-target", "q_prj", code=2, says="did you mean 'q_proj'")
    refuse(*start, "--method", "full", "--lora-rank", 4, code=2, says="--method")
    refuse(*start, "--iters", 0, code=2, says=["--iters", "1 or more"])
    refuse(*start, "--iters", 5, "--warmup", 6, code=2, says="warmup")
    refuse(*start, "--learning-rate", "fast", code=2, says=["--learning-rate", "'fast'"])
    refuse(*start, "--vocab-size", 300, code=2, says="--init")
    start = (start[0], *start[3:])  # without --model
    refuse(*start, "--init", "smal", code=2, says="did you mean 'small'")
    refuse(*start, "--init-shape", "n_layers=2", code=2, says="did you mean 'n_layer'")
    refuse(*start, "--init", "tiny", "--init-shape", "n_head=5", code=2, says="n_head")
    refuse("generate", "-m", "tiny", "-p", "x", "--top-p", "0", code=2, says=["--top-p", "(0, 1]"])
    refuse("generate", "-m", "tiny", "-p", "x", "--temp", "-1", code=2, says="--temp")
    refuse("generate", "-m", "tiny", "-p", "x", "--threads", "0", code=2, says="--threads")
    refuse("chat", "-m", "tiny", "--template", "hello", code=2, says="{message}")
    refuse("generate", "-m", "tiny", "-p", "x", "--backend", "c:neon:x", code=2, says="backend")


def test_config_files(refuse, home):
    def config(text, name="run.json"):
        (home / name).write_text(text)
        return ("train", "--config", name, "--data", "text.txt", "-m", "tiny", "--out", "o")

    refuse(*config('{"itters": 3}'), code=2, says=["'itters'", "did you mean 'iters'"])
    refuse(*config('{"iters": "many"}'), code=2, says=["--iters", "'many'"])
    refuse(*config('{"json": 3}'), code=2, says="true or false")
    refuse(*config("{broken"), code=3, says="run.json")
    refuse("train", "--config", "gone.json", code=3, says="gone.json")
    if sys.version_info >= (3, 11):
        refuse(*config("iters = = 3", "run.toml"), code=3, says="TOML")


# --- adapters and runs --------------------------------------------------------


def test_bad_adapters(refuse, home, cli):
    refuse("generate", "-m", "tiny", "--adapter-path", "adaptor", "-p", "x", code=2, says="adaptor")
    refuse("fuse", "-m", "tiny", "--out", "f", code=2, says="adapter")
    file = home / "adapter" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    refuse("generate", "-m", "tiny", "--adapter-path", "adapter", "-p", "x", code=3, says="adapter_model.safetensors")
    refuse("inspect", "adapter", code=3, says="adapter_model.safetensors")
    file.write_bytes(whole)
    assert cli("quantize", "-m", "tiny", "--out", "other").code == 0
    refuse("fuse", "-m", "other", "--adapter-path", "adapter", "--out", "f", code=2, says="other weights")


def test_an_output_folder_that_exists(refuse, home, cli):
    (home / "mine").mkdir()
    (home / "mine" / "thesis.tex").write_text("years of work")
    (home / "file").write_text("also work")
    for words in (
        ("quantize", "-m", "tiny"),
        ("prune", "-m", "tiny"),
        ("fuse", "-m", "tiny", "--adapter-path", "adapter"),
        QUICK_TRAIN,
    ):
        for out in ("mine", "tiny", "file"):
            refuse(*words, "--out", out, code=2, says=["--out", "exists already", "--overwrite"])
        refuse(*words, "--out", "mine", "--overwrite", code=2, says="does not replace")
        refuse(*words, "--out", "file", "--overwrite", code=2, says="not a folder")
    assert cli("quantize", "-m", "tiny", "--out", "q").code == 0
    assert cli("prune", "-m", "tiny", "--out", "q", "--overwrite").code == 0
    assert "masked" in cli("inspect", "q").out


def test_runs_that_cannot_be_resumed(refuse, home, cli):
    refuse(*QUICK_TRAIN, "--out", "o", "--resume", "nowhere", code=2, says="--resume: expected auto, never")
    result = cli(*QUICK_TRAIN, "--out", "o", "--resume", "nowhere")
    assert "output" not in result.out and "predicted" not in result.out + result.err  # no plan before the refusal
    refuse(*QUICK_TRAIN, "--out", "o", "--resume", "auto", "--overwrite", code=2, says="--overwrite")
    assert cli(*QUICK_TRAIN, "--out", "run", "--iters", 4).code == 0
    refuse(*QUICK_TRAIN, "--out", "run", code=2, says="exists already")
    refuse(*QUICK_TRAIN, "--out", "run", "--iters", 6, "--resume", "auto", "--lora-rank", 4, code=2, says="lora")
    refuse("generate", "--model", "run", "-p", "x", code=2, says="--adapter-path run/adapter")
    (home / "run" / "step-00000004" / "state.json").write_text("{}")
    refuse(*QUICK_TRAIN, "--out", "new", "--resume", "run/step-00000004", code=3, says="state.json")
    refuse("inspect", "run", code=3, says="state.json")


# --- the machine --------------------------------------------------------------

LIMITED = """
import resource, sys
from minedge.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the next file of more than 20 kB fails as on a full disk
for command in sys.argv[1:]:
    print(main(command.split()))
"""


def test_a_disk_that_takes_no_more(home):
    (home / "kept").mkdir()
    (home / "kept" / "config.json").write_text('{"model_type": "llama"}')
    before = snapshot(home)
    commands = [
        "quantize -m tiny --out q --group-size 32",
        "prune -m tiny --out kept --overwrite",
        "fuse -m tiny --adapter-path adapter --out f",
    ]
    done = subprocess.run([sys.executable, "-c", LIMITED, *commands], capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * len(commands), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    for line in lines:
        assert ": error: cannot write " in line
        assert "unchanged" in line
    assert snapshot(home) == before


def test_a_full_disk_during_training_keeps_what_was_there(home, cli, monkeypatch):
    import errno

    from minedge.io import checkpoint

    assert cli(*QUICK_TRAIN, "--out", "run", "--iters", 2).code == 0

    def full(name):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_crash_point", full)
    result = cli(*QUICK_TRAIN, "--out", "run", "--iters", 4, "--resume", "auto")
    expect(home, result, 2, "disk is full", verb="train")
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert cli("inspect", "run").code == 0
    assert cli(*QUICK_TRAIN, "--out", "run", "--iters", 4, "--resume", "auto").code == 0
    before = snapshot(home / "run")
    monkeypatch.setattr(checkpoint, "_crash_point", full)
    assert cli(*QUICK_TRAIN, "--out", "run", "--iters", 2, "--overwrite").code == 2
    assert snapshot(home / "run") == before  # the run that was to be replaced is back


def test_divergence_has_its_exit_code(home, cli):
    result = cli(*QUICK_TRAIN, "--method", "full", "--learning-rate", "1e30", "--out", "o", "--iters", 9)
    expect(home, result, 4, "step", "model.", verb="train")


def test_debug_shows_the_traceback(home, cli):
    result = cli("generate", "-m", "tinny", "-p", "x", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err


def test_options_that_would_be_ignored(refuse, home):
    refuse(*QUICK_TRAIN, "--init", "tiny", "--out", "o", code=2, says=["--init", "--model tiny"])
    (home / "sst.txt").write_text((home / "labels.tsv").read_text())
    for option in (("--task",), ("--label-words", "good=yes,bad=no")):
        refuse("eval", "-m", "tiny", "--data", "sst.txt", *option, code=2, says=[".txt", "--format labels"])
    for name in ("x.bin", "x.safetensors"):
        refuse("convert", "tiny", name, code=2, says=["is a folder", name])
    refuse("convert", "tiny", "x.gguf", "--to", "hf", code=2, says=["is a folder", "--to gguf"])
