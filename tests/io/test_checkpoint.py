"""Checkpoints: exact, verified, never lost; one run per folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minedge.errors import MinedgeError, MinedgeFormatError, UsageError
from minedge.io import atomic, checkpoint
from minedge.io.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    lock_run,
    prune_checkpoints,
    save_checkpoint,
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _save(run: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(run, step, {"w": np.full(5, step, np.float32)}, {"step": step})


def _steps(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run)]


def test_arrays_and_state_come_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(3, 4)).astype(np.float32), "n": np.int64(7)[None], "bits": rng.random(9) < 0.5}
    arrays["nan"] = np.array([np.nan, -0.0, np.inf], np.float64)
    state = {"step": 3, "generator": rng.bit_generator.state, "best": float("inf"), "lr": 0.1 + 0.2, "text": "é\u2028"}
    state["none"], state["list"] = None, [1, [2.5, True]]
    path = save_checkpoint(tmp_path / "run", 3, arrays, state)
    assert path.name == "step-00000003" and path == latest_checkpoint(tmp_path / "run")
    got, got_state = load_checkpoint(path)
    assert got_state == state
    assert got.keys() == arrays.keys()
    assert all(got[k].tobytes() == arrays[k].tobytes() and got[k].dtype == arrays[k].dtype for k in arrays)
    got["w"][0, 0] = 1  # they belong to the caller


@pytest.mark.parametrize("bad", [{"a": {1: 2}}, {"a": np.float32(1)}, {"a": {1, 2}}, {"a": b"x"}, {"a": [object()]}])
def test_state_that_json_would_change_is_refused(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(UsageError, match=r"state\['a'\]"):
        save_checkpoint(tmp_path, 1, {}, bad)
    assert list(tmp_path.iterdir()) == []


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"w": np.zeros(1)}, {"again": True})
    assert load_checkpoint(tmp_path / "step-00000005")[1] == {"again": True}


def test_no_run_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "file").write_text("")
    assert latest_checkpoint(tmp_path / "file") is None


# ---------------------------------------------------------------- damage


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "arrays changed": lambda p: _flip(p / "arrays.safetensors"),
    "state changed": lambda p: _flip(p / "state.json"),
    "arrays truncated": lambda p: os.truncate(p / "arrays.safetensors", 50),
    "arrays missing": lambda p: (p / "arrays.safetensors").unlink(),
    "state missing": lambda p: (p / "state.json").unlink(),
    "manifest missing": lambda p: (p / "manifest.json").unlink(),
    "manifest empty": lambda p: (p / "manifest.json").write_text(""),
    "manifest half": lambda p: os.truncate(p / "manifest.json", 60),
    "manifest a list": lambda p: (p / "manifest.json").write_text("[]"),
    "manifest of nothing": lambda p: (p / "manifest.json").write_text('{"format_version": 1, "step": 2, "files": {}}'),
    "manifest of another step": lambda p: shutil.copy(p.parent / "step-00000001" / "manifest.json", p),
    "manifest newer": lambda p: (p / "manifest.json").write_text('{"format_version": 2}'),
    "arrays a folder": lambda p: ((p / "arrays.safetensors").unlink(), (p / "arrays.safetensors").mkdir()),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str) -> None:
    _save(tmp_path, 1, 2)
    DAMAGE[name](tmp_path / "step-00000002")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    with pytest.raises(MinedgeFormatError, match="step-00000002"):
        load_checkpoint(tmp_path / "step-00000002")
    _save(tmp_path, 2)  # and can be written again
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"


_SAVE = """
import sys, numpy as np; from minedge.io.checkpoint import save_checkpoint
save_checkpoint(sys.argv[1], int(sys.argv[2]), {"w": np.full(5, 9, np.float32)}, {"killed": True})
"""
POINTS = ["checkpoint:arrays", "checkpoint:state", "checkpoint:manifest", "dir:flush", "dir:rename", "dir:renamed"]


@pytest.mark.parametrize("step", [2, 1])  # a new step, and one that is there already
@pytest.mark.parametrize("point", [*POINTS, "dir:exchanged"])
def test_a_kill_inside_a_save_keeps_the_old_or_the_new(tmp_path: Path, run_python: Run, point: str, step: int) -> None:
    _save(tmp_path, 1)
    result = run_python(_SAVE, str(tmp_path), str(step), MINEDGE_CRASH_AT=point)
    if (point, step) == ("dir:exchanged", 2):
        assert result.returncode == 0  # nothing to exchange with
    else:
        assert result.returncode == -signal.SIGKILL, result.stderr
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    finished = point in ("dir:renamed", "dir:exchanged")
    assert load_checkpoint(newest)[1] == ({"killed": True} if finished else {"step": 1})
    _save(tmp_path, 3)
    assert [entry for entry in os.listdir(tmp_path) if entry.startswith(".")] == []


@pytest.mark.parametrize("point", POINTS[:-1])
def test_a_full_disk_inside_a_save_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    _save(tmp_path, 1)

    def fail(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_crash_point", fail)
    monkeypatch.setattr(checkpoint, "_crash_point", fail)
    with pytest.raises(MinedgeError, match="disk is full"):
        _save(tmp_path, 2)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"


# ---------------------------------------------------------------- pruning


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, 4, 5)
    assert prune_checkpoints(tmp_path, keep=2, protect=2) == [1, 3]
    assert _steps(tmp_path) == [2, 4, 5]
    assert prune_checkpoints(tmp_path, keep=1, protect=[2, 99]) == [4]
    assert prune_checkpoints(tmp_path, keep=1, protect=None) == [2]
    with pytest.raises(UsageError):
        prune_checkpoints(tmp_path, keep=0)


def test_pruning_never_deletes_the_newest_that_verifies(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, 4)
    _flip(tmp_path / "step-00000004" / "arrays.safetensors")  # same size: only the hash shows it
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    prune_checkpoints(tmp_path, keep=1)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    assert _steps(tmp_path) == [2, 3, 4]  # the damaged ones are left for their owner


def test_a_kill_while_pruning_loses_only_the_doomed(tmp_path: Path, run_python: Run) -> None:
    _save(tmp_path, 1, 2, 3)
    code = "import sys; from minedge.io.checkpoint import prune_checkpoints; prune_checkpoints(sys.argv[1], 1)"
    result = run_python(code, str(tmp_path), MINEDGE_CRASH_AT="prune:renamed")
    assert result.returncode == -signal.SIGKILL
    assert _steps(tmp_path) == [2, 3]
    assert prune_checkpoints(tmp_path, 1) == [2]
    assert os.listdir(tmp_path) == ["step-00000003"]


# ---------------------------------------------------------------- the lock

_HOLD = """
import sys, time; from minedge.io.checkpoint import lock_run
with lock_run(sys.argv[1]):
    print("held", flush=True); time.sleep(60)
"""


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with lock_run(run):
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()} "), lock_run(run):
            pass
        with lock_run(tmp_path / "other"):
            pass
    with lock_run(run):  # free again
        pass


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"process {holder.pid} "), lock_run(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with lock_run(tmp_path):
        assert json.dumps(str(os.getpid())).strip('"') in (tmp_path / ".lock").read_text()
