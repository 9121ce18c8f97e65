"""What goes where: results, JSON, progress, and nothing that a terminal would obey where there is no terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minedge.cli import main
from minedge.cli.console import Console
from minedge.cli.text import duration, json_value, plain_table, printable, size
from tests.cli.conftest import QUICK_TRAIN

VERBS = {
    "train": (*QUICK_TRAIN, "--iters", "4", "--out", "o"),
    "scratch": ("train", "--data", "labels.tsv", "--init", "tiny", "--vocab-size", "270", "--iters", "2", "--out", "o"),
    "mezo": (*QUICK_TRAIN, "--method", "mezo", "--iters", "2", "--out", "o"),
    "generate": ("generate", "-m", "tiny", "-p", "The", "--max-tokens", "5"),
    "chat": ("chat", "-m", "tiny", "--max-tokens", "3"),
    "eval": ("eval", "-m", "tiny", "--data", "text.txt"),
    "eval-task": ("eval", "-m", "tiny", "--data", "labels.tsv", "--split", "train"),
    "quantize": ("quantize", "-m", "tiny", "--out", "o", "--data", "text.txt"),
    "prune": ("prune", "-m", "tiny", "--out", "o", "--nm", "2:4"),
    "fuse": ("fuse", "-m", "tiny", "--adapter-path", "adapter", "--out", "o", "--verify"),
    "inspect": ("inspect", "tiny"),
    "inspect-adapter": ("inspect", "adapter"),
    "inspect-file": ("inspect", "tiny/model.safetensors"),
    "plan": ("plan", "-m", "tiny"),
    "doctor": ("doctor",),
}
KEYS = {
    "train": {"loss_before", "loss_after", "trainable", "predicted_peak_bytes", "measured_peak_bytes", "saved", "out"},
    "scratch": {"loss_before", "loss_after"},
    "mezo": {"loss_before", "saved"},
    "generate": {"text", "prompt_tokens", "generated_tokens", "tokens_per_s", "ended"},
    "chat": {"turns"},
    "eval": {"loss", "loss_se", "perplexity", "bits_per_byte", "tokens"},
    "eval-task": {"accuracy", "accuracy_se", "label_loss", "label_loss_se", "examples"},
    "quantize": {"disk_bytes_before", "disk_bytes_after", "resident_bytes_after", "loss_before", "loss_after"},
    "prune": {"weights", "kept", "pruned_stored_bytes", "disk_bytes_after"},
    "fuse": {"largest_logit_difference"},
    "inspect": {"architecture", "kinds", "bytes", "tensors"},
    "inspect-adapter": {"rank", "tensors"},
    "inspect-file": {"tensors"},
    "plan": {"methods"},
    "doctor": {"backends", "default", "ops", "advice", "machine"},
}


@pytest.mark.parametrize("name", VERBS)
def test_json_is_alone_on_stdout(home, cli, monkeypatch, name):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    result = cli(*VERBS[name], "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document.keys() >= KEYS[name]
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize("name", VERBS)
def test_without_a_terminal_there_are_no_control_characters(home, cli, monkeypatch, name):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    result = cli(*VERBS[name])
    assert result.code == 0, result.err
    assert result.out.strip() or name == "chat"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.out + result.err)


def test_training_prints_plan_progress_and_result(home, cli):
    result = cli(*QUICK_TRAIN, "--iters", "6", "--eval-every", "3", "--steps-per-report", "2", "--out", "run")
    for line in ("model ", "training ", "method ", "output ", "peak memory ", "validation loss ", "saved ", "try "):
        assert re.search(f"^{line}", result.out, re.M), line
    assert re.search(r"predicted, \S+ \S+ measured", result.out)
    steps = re.findall(r"^step (\d)/6  loss \d+\.\d{4}  [\d,]+ tokens/s", result.err, re.M)
    assert steps == ["1", "2", "4", "6"]
    assert len(re.findall(r"^step [036]/6  validation loss", result.err, re.M)) == 3
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert Path("run/loss.svg").read_text().startswith("<svg")
    assert cli(*QUICK_TRAIN, "--iters", "2", "--out", "hush", "--quiet").err == ""


def test_a_run_is_reachable_by_its_folder(home, cli):
    assert cli(*QUICK_TRAIN, "--method", "full", "--iters", "2", "--out", "run").code == 0
    assert cli("generate", "-m", "run", "-p", "The", "--max-tokens", "2").code == 0
    assert "training run" in cli("inspect", "run").out
    assert cli(*QUICK_TRAIN, "--method", "mezo", "--iters", "2", "--out", "m", "--lora-rank", "2").code == 0
    assert cli("generate", "-m", "tiny", "--adapter-path", "m", "-p", "The", "--max-tokens", "2").code == 0
    assert "MeZO log" in cli("inspect", "m/mezo.log").out


def test_options_of_training_reach_the_run(home, cli):
    Path("run.json").write_text(
        json.dumps({"iters": 9, "batch_size": 3, "lora-target": ["q_proj"], "clip": 0.5, "quiet": True})
    )
    words = ("train", "-m", "tiny", "--data", "text.txt", "--config", "run.json", "--iters", "2", "--out", "run")
    document = json.loads(cli(*words, "--num-layers", "1", "--lora-rank", "3", "--lora-alpha", "6", "--json").out)
    config = document["config"]
    assert (config["iters"], config["batch_size"], config["clip"], config["seq_len"]) == (2, 3, 0.5, 64)
    assert config["lora"] == {"r": 3, "lora_alpha": 6.0, "target": ["model.layers.1.self_attn.q_proj"]}
    assert document["trainable"] == 3 * (64 + 64)
    full = cli(*QUICK_TRAIN, "--method", "full", "--num-layers", "1", "--iters", "1", "--out", "full", "--json")
    assert json.loads(full.out)["trainable"] == 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64


def test_same_seed_same_text(home, cli):
    words = ("generate", "-m", "tiny", "-p", "The fox", "--temp", "1", "--max-tokens", "12")
    first, again, other = (cli(*words, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other
    greedy = json.loads(cli("generate", "-m", "tiny", "-p", "The", "--max-tokens", "9", "--json").out)
    stop = greedy["text"][:1]
    assert json.loads(cli("generate", "-m", "tiny", "-p", "The", "--stop", stop, "--json").out)["text"] == ""
    assert greedy["generated_tokens"] == 9
    assert greedy["ended"] == "length"
    long = json.loads(cli("generate", "-m", "tiny", "-p", "The", "--max-tokens", "500", "--json").out)
    assert long["ended"] == "context"
    assert long["prompt_tokens"] + long["generated_tokens"] == 64


def test_prompt_and_messages_from_stdin(home):
    run = [sys.executable, "-m", "minedge.cli"]
    done = subprocess.run(
        [*run, "generate", "-m", "tiny", "-p", "-", "--max-tokens", "2", "--json"],
        input=b"The fox",
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] > 1
    talk = "hello\n\n/help\n/what\n" + "a very long message " * 30 + "\n/reset\nagain\n/exit\nnever read\n"
    done = subprocess.run(
        [*run, "chat", "-m", "tiny", "--max-tokens", "4", "--json"], input=talk.encode(), capture_output=True
    )
    assert done.returncode == 2, done.stderr  # one message was refused
    assert json.loads(done.stdout)["refused"] == 1
    turns = json.loads(done.stdout)["turns"]
    assert [turn["message"][:5] for turn in turns] == ["hello", "a ver", "again"]
    assert b"shorten it" in done.stderr
    assert b"unknown command '/what'" in done.stderr


def test_a_long_conversation_drops_its_oldest_turns(home, cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The quick brown fox jumps\n" * 8))
    result = cli("chat", "-m", "tiny", "--max-tokens", "6", "--json")
    assert result.code == 0
    assert len(json.loads(result.out)["turns"]) == 8


def test_a_reader_that_leaves_is_no_error(home):
    command = f"{sys.executable} -m minedge.cli inspect tiny --tensors | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] in ("0", "141")
    assert done.stderr == ""


def test_doctor_without_numba_or_compiled_kernels():
    code = (
        "import sys; sys.modules['numba'] = sys.modules['minedge._kernels'] = None;"
        "from minedge.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["backends"]["numba"] and document["backends"]["c"]
    assert document["default"] in ("numba", "numpy")
    assert "install gcc" in document["advice"]


def test_doctor_names_what_is_chosen(cli, monkeypatch):
    from minedge import ops

    document = json.loads(cli("doctor", "--json", "--backend", "numpy").out)
    assert document["default"] == "numpy"
    assert set(document["ops"]) == set(ops.OPS)
    monkeypatch.setenv("MINEDGE_BACKEND", "cuda")
    result = cli("doctor")
    assert result.code == 0
    assert "unset it" in result.out


def test_threads_are_set_for_the_command_alone(home, cli):
    from minedge.ops import c_ops

    before = c_ops.threads()
    if c_ops.available():
        assert json.loads(cli("doctor", "--threads", "1", "--json").out)["kernels"]["threads"] == 1
    assert c_ops.threads() == before
    assert os.environ.get("MINEDGE_THREADS") is None


def test_a_fused_attention_gets_its_adapter_by_its_own_name(home, cli):
    shape = "architecture=gpt2,n_layer=2,n_embd=64,n_head=2,context_length=64"
    for method in ("lora", "all"):
        result = cli("plan", "--init-shape", shape, "--method", method, "--json")
        assert result.code == 0, result.err
    scratch = ("train", "--data", "text.txt", "--init-shape", shape, "--iters", "1", "--batch-size", "1", "--out", "g")
    assert cli(*scratch).code == 0
    tuned = cli("train", "-m", "g", "--data", "text.txt", "--iters", "1", "--out", "a", "--json")
    assert json.loads(tuned.out)["config"]["lora"]["target"] == ["c_attn"]


# --- a terminal ---------------------------------------------------------------


def in_a_terminal(words, **env):
    """What the command writes to a pseudo-terminal on stdout and stderr."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **env}
    environment = {k: v for k, v in environment.items() if v is not None}
    process = subprocess.Popen(
        [sys.executable, "-m", "minedge.cli", *words], stdout=follower, stderr=follower, stdin=follower, env=environment
    )
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    return process.wait(), b"".join(chunks).decode(errors="replace")


def test_a_terminal_gets_a_bar_and_no_color_takes_its_colors(home):
    settings = {"plain": {"NO_COLOR": None}, "colorless": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}}
    with ThreadPoolExecutor() as pool:  # most of the time is Python starting up
        runs = {
            name: pool.submit(in_a_terminal, [*QUICK_TRAIN, "--iters", "5", "--out", name], **env)
            for name, env in settings.items()
        }
    code, text = runs["plain"].result()
    assert code == 0
    assert "\x1b[" in text
    assert "step 5/5" in text
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
    assert colour.search(text)
    code, text = runs["colorless"].result()
    assert code == 0
    assert not colour.search(text)
    code, text = runs["dumb"].result()
    assert code == 0
    assert "\x1b" not in text


# --- helpers ------------------------------------------------------------------


def test_text_helpers():
    assert [size(n) for n in (0, 999, 1000, 1234567, 45_600_000, 999_999)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "1.23 MB",
        "45.6 MB",
        "1.00 MB",
    ]
    assert [duration(s) for s in (0, 59.6, 3600, 3725, float("nan"))] == ["0:00", "1:00", "1:00:00", "1:02:05", "?"]
    assert printable("a\x1b[31mb\r\n\tc\x9b") == "a\ufffd[31mb\n\tc\ufffd"
    assert json_value({"a": float("nan"), "b": (1, {2}), "c": Path("x")}) == {"a": None, "b": [1, [2]], "c": "x"}
    assert plain_table(["a", "n"], [["x", "10"], ["yy", "9"]], frozenset({1})) == "a    n\n--  --\nx   10\nyy   9"


def test_escape_codes_in_names_are_not_obeyed(home, cli):
    os.rename("tiny", "ti\x1b[31mny")
    result = cli("inspect", "ti\x1b[31mny")
    assert result.code == 0
    assert "\x1b" not in result.out


def test_quiet_console_keeps_results(capsys):
    console = Console(quiet=True)
    console.note("plan")
    console.status("status")
    console.out("result")
    assert capsys.readouterr() == ("result\n", "")


def test_a_fault_of_minedge_is_one_line_too(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("minedge.cli.doctor.run", fail)
    assert main(["doctor"]) == 1
    assert (
        capsys.readouterr().err == "minedge doctor: error: unexpected RuntimeError: two lines (--debug shows where)\n"
    )


def test_interrupt_outside_training(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("minedge.cli.doctor.run", stop)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "minedge doctor: interrupted\n"


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("embeddings", [(), ("--embeddings",)])
def test_quantize_to_halves(kind, embeddings, home, cli):
    report = json.loads(cli("quantize", "-m", "tiny", "--type", kind, "--out", "q", "--json", *embeddings).out)
    assert (report["type"], report["bits"], report["group_size"]) == (kind, 16, None)
    assert report["linear_bytes_after"] * 2 == report["linear_bytes_before"]
    assert report["embedding_bytes_after"] * (2 if embeddings else 1) == report["embedding_bytes_before"]
    assert cli("generate", "-m", "q", "-p", "The", "--max-tokens", "2").code == 0


def test_chat_keeps_the_past_in_what_was_asked_for(home, cli, monkeypatch):
    from minedge.model import session

    seen, opened = [], session.open_reader
    monkeypatch.setattr("sys.stdin", io.StringIO("the\nfox\n"))
    monkeypatch.setattr(session, "open_reader", lambda *a: seen.append(a[3]) or opened(*a))
    assert cli("chat", "-m", "tiny", "--kv-dtype", "int8", "--max-tokens", "2").code == 0
    assert seen == ["int8"]


@pytest.mark.parametrize("again", [(), ("--sparsity", "0.3"), ("--pack", "--scope", "global"), ("--nm", "2:4")])
def test_a_pruned_model_never_gets_zeros_counted_as_kept(again, home, cli):
    assert cli("prune", "-m", "tiny", "--sparsity", "0.75", "--out", "pruned").code == 0
    result = cli("prune", "-m", "pruned", *again, "--out", "x")
    assert result.code == 2 and "pruned further already" in result.err, result.err
    assert not Path("x").exists()
    report = json.loads(cli("prune", "-m", "pruned", "--sparsity", "0.9", "--out", "y", "--json").out)
    assert report["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_training_says_what_stays_as_it_is(home, cli):
    """All weights of a packed model are its norms and what is dense."""
    assert cli("quantize", "-m", "tiny", "--out", "packed").code == 0
    train = (*QUICK_TRAIN, "--iters", "1")
    train = tuple("packed" if word == "tiny" else word for word in train)
    full = cli(*train, "--method", "full", "--out", "f", "--quiet")
    assert full.code == 0 and "matrices are int4 and stay as they are" in full.err
    lora = cli(*train, "--method", "lora", "--out", "l")
    assert lora.code == 0 and "stay as they are" not in lora.err


def test_prune_packs(home, cli):
    """Half the weights and a mask stay, in memory as on disk; what was pruned before is packed as it is."""
    assert cli("prune", "-m", "tiny", "--nm", "2:4", "--out", "pruned").code == 0
    report = json.loads(cli("prune", "-m", "pruned", "--pack", "float16", "--out", "packed", "--json").out)
    assert report["sparsity"] == 0.5 and report["linear_bytes_after"] < 0.33 * report["linear_bytes_before"]
    assert report["pruned_stored_bytes"] * 32 == report["pruned_dense_bytes"] * 9  # (16 / 2 + 1) / 32 of float32
    assert "sparse(dtype=float16, pattern=2:4)" in cli("inspect", "packed").out
    assert cli("generate", "-m", "packed", "-p", "The", "--max-tokens", "2").code == 0
    both = json.loads(cli("prune", "-m", "tiny", "--sparsity", "0.75", "--pack", "--out", "more", "--json").out)
    assert both["sparsity"] == 0.75
    assert cli("prune", "-m", "packed", "--sparsity", "0.6", "--out", "x").code == 2
