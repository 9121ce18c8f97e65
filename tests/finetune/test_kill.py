"""Test class 19: kill -9 at random moments, half of them inside saves; what is resumed ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minedge.finetune import metrics
from minedge.io.checkpoint import latest_checkpoint, load_checkpoint, verify_checkpoint
from minedge.model.hashes import weights_hash
from tests.finetune import tiny

ITERS = 24
# Every point inside a save where a process may die (minedge/io), and how often one run passes it at most.
POINTS = [
    "write:part", "write:flush", "write:rename", "write:renamed", "checkpoint:arrays", "checkpoint:state",
    "checkpoint:manifest", "dir:flush", "dir:rename", "dir:exchanged", "dir:renamed", "prune:renamed",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def start(out, method, crash=None, pause=0.0):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    env.pop("MINEDGE_CRASH_AT", None)
    if crash:
        env["MINEDGE_CRASH_AT"] = crash
    command = [sys.executable, "-m", "tests.finetune.tiny", str(out), method, str(ITERS), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err


def killed_once(rng, out, method, inside_save):
    """Run until a kill; True if it came before the run ended by itself."""
    if inside_save:
        process = start(out, method, crash=f"{rng.choice(POINTS)}:{rng.randint(1, 8)}")
    else:
        process = start(out, method, pause=0.02)  # long enough for a random moment to fall into the loop
        begun = time.monotonic()
        while not (out / "run.json").exists() and time.monotonic() - begun < 60 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code in (0, -signal.SIGKILL), err
    return code != 0


def check_campaign(tmp_path, kills, seed):
    rng, done, runs = random.Random(seed), 0, 0
    reference = {}
    while done < kills:
        method = ("full", "lora", "mezo")[runs % 3]
        if method not in reference:
            code, value, err = finish(start(tmp_path / f"whole-{method}", method))
            assert code == 0, err
            reference[method] = value
        out = tmp_path / f"run-{runs}"
        for _ in range(4):  # several deaths of one run
            done += killed_once(rng, out, method, inside_save=done % 2 == 1)
            newest = latest_checkpoint(out) if out.exists() else None
            if newest is not None:
                verify_checkpoint(newest)
        code, value, err = finish(start(out, method))
        assert code == 0, err
        assert value == reference[method], (method, runs)
        same_record(tmp_path / f"whole-{method}", out)
        runs += 1
    return done


def same_record(one, other):
    """The same losses step by step, the same arrays in the last checkpoint, and nothing left lying about."""
    clock = {"tokens_per_s", "seconds"}
    records = [metrics.read(run / "metrics.jsonl") for run in (one, other)]
    a, b = ([{k: v for k, v in r.items() if k not in clock} for r in found] for found in records)
    assert a == b
    arrays = [weights_hash(load_checkpoint(latest_checkpoint(p))[0]) for p in (one, other)]
    assert arrays[0] == arrays[1]
    left = [p.name for p in other.iterdir() if ".tmp-" in p.name or ".old-" in p.name]
    assert not left


def test_twenty_kills_resume_bit_identical(tmp_path):
    assert check_campaign(tmp_path, 20, seed=1) >= 20


@pytest.mark.campaign
def test_two_hundred_kills_resume_bit_identical(tmp_path):
    assert check_campaign(tmp_path, 200, seed=int(time.time())) >= 200


def test_a_different_run_is_noticed(tmp_path):
    """The comparison itself can fail: another seed gives another hash."""
    a = tiny.run(tmp_path / "a", "full", 4)
    b = tiny.run(tmp_path / "b", "full", 4, seed=4)
    assert weights_hash(a.params) != weights_hash(b.params)
