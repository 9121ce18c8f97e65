"""Stopping and going on: Ctrl-C saves and says how to resume, and a resumed run ends with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK_TRAIN, snapshot

RUN = [sys.executable, "-m", "minedge.cli"]
# One thread, so that other work on the machine changes no bit and little of the time.
SETTINGS = (
    "--iters",
    "60",
    "--eval-every",
    "25",
    "--save-every",
    "20",
    "--steps-per-report",
    "1",
    "--threads",
    "1",
    "--grad-accum",
    "2",
)


def losses(run: Path) -> list[tuple[int, float | None, float | None]]:
    """The numbers of metrics.jsonl that do not depend on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r.get("loss"), r.get("valid_loss")) for r in records]


def stop(words: list[str], number: int) -> str:
    """Start a run in run/, send it a signal after step 7, and return the last line it said."""
    process = subprocess.Popen([*words, "--out", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("step 7/"):
            process.send_signal(number)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert 7 <= losses(Path("run"))[-1][0] < 60
    return rest.strip().splitlines()[-1]


@pytest.mark.parametrize("method", ["lora", "mezo"])
def test_a_stopped_run_goes_on_bit_for_bit(home, method):
    words = [*RUN, *QUICK_TRAIN, *SETTINGS, "--method", method]
    straight = subprocess.run([*words, "--out", "straight"], capture_output=True, text=True)
    assert straight.returncode == 0, straight.stderr
    last = stop(words, signal.SIGINT)
    assert last.startswith("minedge train: stopped by Ctrl-C at step ")
    assert "--resume auto" in last
    again = subprocess.run([*words, "--out", "run", "--resume", "auto"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resumed " in again.stderr
    assert "warning" not in again.stderr
    assert losses(Path("run")) == losses(Path("straight"))
    result = "adapter" if method == "lora" else "model"
    assert snapshot(Path("run") / result) == snapshot(Path("straight") / result)
    if method == "mezo":
        assert Path("run/mezo.log").read_bytes() == Path("straight/mezo.log").read_bytes()


def test_a_run_that_is_told_to_end_saves_too(home, cli):
    words = [*RUN, *QUICK_TRAIN, *SETTINGS]
    assert stop(words, signal.SIGTERM).startswith("minedge train: stopped by SIGTERM at step ")
    assert "step-000000" in cli("inspect", "run").out


def test_resume_auto_starts_where_there_is_nothing_and_ends_where_all_is_done(home, cli):
    words = (*QUICK_TRAIN, "--iters", "3", "--out", "run", "--resume", "auto")
    assert cli(*words).code == 0
    before = snapshot(home / "run" / "adapter")
    began = time.monotonic()
    result = cli(*words)
    assert result.code == 0
    assert "resumed     at step 3" in result.err
    assert snapshot(home / "run" / "adapter") == before
    assert time.monotonic() - began < 30
    longer = cli(*QUICK_TRAIN, "--iters", "5", "--out", "run", "--resume", "auto", "--json")
    assert json.loads(longer.out)["resumed_at"] == 3


def test_resume_from_another_run(home, cli):
    assert cli(*QUICK_TRAIN, "--iters", "3", "--out", "run").code == 0
    result = cli(*QUICK_TRAIN, "--iters", "4", "--out", "other", "--resume", "run", "--json")
    assert result.code == 0
    assert json.loads(result.out)["resumed_at"] == 3


def test_a_new_model_is_resumed_too(home, cli):
    words = (
        "train",
        "--data",
        "text.txt",
        "--init",
        "tiny",
        "--vocab-size",
        "280",
        "--batch-size",
        "2",
        "--max-seq-length",
        "16",
    )
    assert cli(*words, "--iters", "4", "--out", "straight", "--save-every", "2").code == 0
    assert cli(*words, "--iters", "2", "--out", "run").code == 0
    result = cli(*words, "--iters", "4", "--out", "run", "--resume", "auto")
    assert result.code == 0
    assert "resumed     at step 2" in result.err
    assert cli("generate", "-m", "run", "-p", "The", "--max-tokens", "2").code == 0


def test_overwrite_replaces_a_run(home, cli):
    assert cli(*QUICK_TRAIN, "--iters", "2", "--out", "run").code == 0
    assert cli(*QUICK_TRAIN, "--iters", "3", "--out", "run", "--overwrite").code == 0
    assert [step for step, loss, _ in losses(Path("run")) if loss is not None] == [1, 2, 3]
    assert not [p for p in home.iterdir() if p.name.startswith(".")]
