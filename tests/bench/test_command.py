"""`minedge bench` as a user calls it: mistakes, help, and a tiny shape from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minedge.bench import peers
from minedge.bench.measure import Run
from minedge.bench.parts import PART_NAMES, part
from minedge.bench.shapes import SHAPES, find_shape
from minedge.cli import main
from minedge.config import Config
from minedge.errors import UsageError

ROOT = Path(__file__).parents[2]
TINY = Config(vocab_size=97, n_layer=2, n_embd=64, n_head=2, n_inner=96, context_length=64)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A config.json."""
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf()))
    return tmp_path


def bench(capfd, *words: object) -> tuple[int, str, str]:
    code = main(["bench", *map(str, words)])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--shape", "smolm2-135m"], "did you mean 'smollm2-135m'"),
        (["--only", "decod"], "did you mean 'decode'"),
        (["--only", ","], "got nothing"),
        (["--vs", "lama.cpp"], "did you mean 'llama.cpp'"),
        (["--vs", "torch", "--peer-python", "/no/such/python"], "--peer-python: expected a Python interpreter"),
        (["--backend", "cc"], "did you mean 'c'"),
        (["--threads", "1,x"], "expected a whole number from 1 to 256, got 'x'"),
        (["--threads", "200"], "expected at most"),
        (["--max-seq-length", "9000"], "expected at most 8192"),
        (["--rounds", "0"], "expected a whole number"),
        (["--svg", "/no/such/folder/x.svg"], "does not exist"),
        (["--markdown", "/no/such/folder/x.md"], "does not exist"),
        (["--onyl", "decode"], "did you mean '--only'"),
    ],
)
def test_mistakes_are_one_line_and_code_2(capfd, words, said):
    code, out, err = bench(capfd, *words)
    assert code == 2 and out == ""
    assert said in err and len(err.strip().splitlines()) == 1


def test_a_peer_asked_for_by_name_must_be_there(capfd, monkeypatch):
    monkeypatch.setattr(peers, "missing", lambda names, python: dict.fromkeys(names, "not installed: pip install x"))
    code, _, err = bench(capfd, "--vs", "torch,onnxruntime")
    assert code == 2 and "torch is not installed: pip install x" in err


def test_missing_peers_are_named_with_their_packages(tmp_path):
    """An interpreter that finds nothing but the standard library."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    python.chmod(0o755)
    found = peers.missing(tuple(peers.PEERS), str(python))
    assert found["torch"] == "not installed: pip install torch transformers"
    assert found["llama.cpp"] == "not installed: pip install llama-cpp-python"
    peers.require(tuple(peers.PEERS), found, all_of_them=True)
    with pytest.raises(UsageError, match="not installed"):
        peers.require(("torch",), found, all_of_them=False)


def test_peers_are_known_by_other_names_too():
    assert peers.parse_peers("llama-cpp-python, PyTorch") == ("torch", "llama.cpp")
    assert peers.parse_peers("all") == tuple(peers.PEERS)


def test_help_has_examples_shapes_and_parts(capfd):
    with pytest.raises(SystemExit):
        from minedge.cli import bench as verb
        from minedge.cli.parser import Parser

        parser = Parser("bench", verb.DESCRIPTION, verb.EXAMPLES)
        verb.add_options(parser)
        parser.parse_args(["--help"])
    out = capfd.readouterr().out
    assert "examples:" in out and all(name in out for name in (*PART_NAMES, *SHAPES, *peers.PEERS))


def test_every_part_says_what_it_measures_and_finds_its_makers():
    import importlib

    for name in PART_NAMES:
        found = part(name)
        assert found.name == name and found.what and "\n" not in found.what
        for entry in found.entries:
            module, _, maker = entry.maker.partition(":")
            home = importlib.import_module(module)
            assert callable(getattr(home, maker)) and callable(home.imports)
            assert entry.who == "minedge" or entry.who in peers.PEERS


def test_published_sizes():
    """Parameters as the models' cards state them: 134.5M, 1.10B, 124.4M, 494M, 10.6M (its README: 10.65M)."""
    from minedge.ledger import _without_memory

    counts = {name: _without_memory(SHAPES[name].config).n_params() for name in SHAPES}
    assert counts["smollm2-135m"] == 134_515_008
    assert counts["tinyllama-1.1b"] == 1_100_048_384
    assert counts["gpt2-124m"] == 124_439_808
    assert counts["qwen2.5-0.5b"] == 494_032_768
    assert counts["llama-3.2-1b"] == 1_235_814_400
    assert counts["stories15m"] == 15_191_712


def test_a_file_is_a_shape(tiny):
    for name in (tiny, tiny / "config.json"):
        shape = find_shape(str(name), batch_size=3)
        assert shape.config.n_embd == 64 and shape.batch_size == 3 and shape.seq_len == 64


def test_a_tiny_shape_from_end_to_end(capfd, tiny):
    """Every part but the machine's; JSON alone on stdout; every figure checked."""
    parts = "decode,context,prefill,start,train,lora,mezo,mezo-lora,quantize"
    options = ("--rounds", 2, "--turn", 0.01, "--threads", 1, "--max-seq-length", 16, "--backend", "c,numpy")
    code, out, err = bench(capfd, "--shape", tiny, "--only", parts, "--json", "--svg", tiny / "roof.svg",
                           "--report", tiny / "report.json", "--markdown", tiny / "table.md", *options)  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert json.loads((tiny / "report.json").read_text()) == report
    assert [result["part"] for result in report["results"]] == parts.split(",")
    for result in report["results"]:
        assert len(result["runs"]) >= 2, result
        for run in result["runs"]:
            assert run["counts"] and run["right"] and run["check"], run
            assert len(run["seconds"]) == 2 and run["peak_bytes"] > run["imports_bytes"]
    assert "round 2/2" in err and "\x1b" not in err
    assert (tiny / "roof.svg").read_text().startswith("<svg")
    assert (tiny / "table.md").read_text().count("\n| ") >= len(report["results"])


@pytest.mark.parametrize("option", ["--svg", "--markdown", "--report"])
def test_files_are_replaced_only_when_asked_and_only_its_own(capfd, tiny, option, monkeypatch):
    monkeypatch.setattr("minedge.bench.run.race", lambda jobs, *_: [Run(job, error="not today") for job in jobs])
    file, words = tiny / "file", ("--shape", tiny, "--only", "decode", "--threads", 1, option, tiny / "file")
    assert bench(capfd, *words)[0] == 1 and file.exists()
    first = file.read_bytes()
    code, out, err = bench(capfd, *words)
    assert (code, out) == (2, "") and f"{option}: {str(file)!r} exists already; choose another name" in err
    assert file.read_bytes() == first
    assert bench(capfd, *words, "--overwrite")[0] == 1
    file.write_text("my notes")
    code, out, err = bench(capfd, *words, "--overwrite")
    assert (code, out) == (2, "") and "was not written by minedge bench" in err
    assert file.read_text() == "my notes"
    code, _, err = bench(capfd, *words[:-1], tiny, "--overwrite")
    assert code == 2 and "is a folder, expected a file's name" in err


def test_ctrl_c_leaves_what_was_finished(capfd, tiny, monkeypatch):
    from minedge.bench import run

    real, calls = run.race, []

    def race(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr("minedge.bench.run.race", race)
    options = ("--rounds", 1, "--turn", 0.01, "--threads", 1, "--report", tiny / "r.json")
    code, out, _ = bench(capfd, "--shape", tiny, "--only", "decode,prefill,start", *options)
    assert code == 130
    assert "tokens/s" in out and "interrupted: the parts above were finished, others are missing" in out
    report = json.loads((tiny / "r.json").read_text())
    assert report["interrupted"] and [part["part"] for part in report["results"]] == ["decode"]


def test_a_busy_machine_is_named_before_and_after(capfd, tiny, monkeypatch):
    from minedge.bench.busy import Load

    monkeypatch.setattr("minedge.bench.run.look", lambda: Load(0.5, 0.0, 3.0))
    monkeypatch.setattr("minedge.bench.run.race", lambda jobs, *_: [Run(job, error="not today") for job in jobs])
    _, out, err = bench(capfd, "--shape", tiny, "--only", "decode", "--threads", 1)
    said = "warning: the machine is busy: others use 50% of its processors (load 3.0)"
    assert err.startswith(said) and said in out


def test_a_wrong_output_does_not_count_and_ends_with_code_1(capfd, tiny, monkeypatch):
    """The reference says another token: what was measured is shown as wrong."""
    from minedge.bench import tasks_text

    wrong = tasks_text.PARTS["decode"]
    broken = type(wrong)(**{**wrong.__dict__, "check": lambda who, outputs, other: (False, "another token")})
    monkeypatch.setitem(tasks_text.PARTS, "decode", broken)
    options = ("--rounds", 1, "--turn", 0.01, "--threads", 1)
    code, out, _ = bench(capfd, "--shape", tiny, "--only", "decode", *options)
    assert code == 1
    assert "outputs are wrong" in out and "does not count: another token" in out and "tokens/s" not in out


def test_a_result_of_ours_that_failed_ends_with_code_1(capfd, tiny, monkeypatch):
    monkeypatch.setattr("minedge.bench.run.race", lambda jobs, *_: [Run(job, error="no memory") for job in jobs])
    options = ("--rounds", 1, "--turn", 0.01, "--threads", 1)
    code, out, _ = bench(capfd, "--shape", tiny, "--only", "decode", "--json", *options)
    run, *_ = json.loads(out)["results"][0]["runs"]
    assert (code, run["error"], run["right"], run["counts"]) == (1, "no memory", False, False)


def test_weights_are_kept_where_asked(capfd, tiny):
    options = ("--shape", tiny, "--only", "decode", "--rounds", 1, "--turn", 0.01, "--threads", 1)
    assert bench(capfd, *options, "--weights", tiny / "kept")[0] == 0
    (made,) = (tiny / "kept").iterdir()
    before = made.stat().st_mtime_ns
    assert bench(capfd, *options, "--weights", tiny / "kept")[0] == 0
    assert made.stat().st_mtime_ns == before


def test_without_a_terminal_there_are_plain_lines(tiny):
    command = [sys.executable, "-m", "minedge", "bench", "--shape", str(tiny), "--only", "decode", "--rounds", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--turn", "0.01"], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "checked: " in done.stdout
