"""A model of SmolLM2-135M's shape, random weights, all the way: load, LoRA step, MeZO step, int4, save, reload, the
peak memory of each predicted within a tenth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minedge
from minedge import ledger

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = 0.10


def stage(name: str, folder: Path) -> list[dict]:
    """One process each; glibc gives freed memory back at once (see test_ledger.py)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.ledger.stages_135m", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "[]")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory can be reset on Linux only")
def test_135m_parameters_all_the_way(tmp_path):
    stage("make", tmp_path)
    found = [each for name in ("load", "lora", "mezo", "int4", "reload") for each in stage(name, tmp_path)]
    assert [each["stage"] for each in found] == ["load", "lora step", "mezo step", "int4", "save", "reload"]
    errors = {each["stage"]: each["predicted"] / each["measured"] - 1 for each in found}
    for each in found:
        planned, measured = each["predicted"] / 1e6, each["measured"] / 1e6
        print(f"{each['stage']:<10} predicted {planned:8.1f} MB, measured {measured:8.1f} MB")
    assert max(map(abs, errors.values())) <= ALLOWED, found
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in ("load", "int4", "reload")}
    assert texts["int4"] == texts["reload"] != texts["load"]  # what was saved is what comes back, bit for bit


# --- the plan itself, without measuring ------------------------------------------------------------------------------


def test_plans_of_files_add_up():
    config = minedge.Config(vocab_size=96, n_layer=2, n_embd=64, n_head=2, n_inner=96, context_length=32)
    model = minedge.init(config, backend="c")
    total = model.nbytes()["total"]
    load, save = (ledger.plan_files(model, verb) for verb in ("load", "save"))
    assert total <= load.peak <= total + (4 << 20) and save.peak == total
    assert ledger.plan_files(model, "save", dtype="float16").peak == total * 3 // 2
    packed = minedge.quant.int4(model)
    both = ledger.plan_files(model, "int4")
    new = sum(a.nbytes for name, a in packed.params.items() if name not in model.params)
    assert both.peak == total + new and dict(both.parts) == {"weights": total, "packed": new}
    assert ledger.plan_files(packed, "save").peak == packed.nbytes()["total"]
    assert ledger.plan_files(config, "load", backend="c") == load
    assert "int4, c" in str(both)
    with pytest.raises(minedge.UsageError, match="did you mean 'load'"):
        ledger.plan_files(model, "laod")


def test_a_pruned_model_is_saved_through_copies():
    config = minedge.Config(vocab_size=96, n_layer=2, n_embd=64, n_head=2, n_inner=96, context_length=32)
    pruned = minedge.prune.magnitude(minedge.init(config, backend="c"), sparsity=0.5)
    assert ledger.plan_files(pruned, "save").peak > pruned.nbytes()["total"]
