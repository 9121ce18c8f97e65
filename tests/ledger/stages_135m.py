"""One stage of a 135M-parameter model's way, in a process of its own: python -m tests.ledger.stages_135m STAGE DIR.

Prints a JSON list of {"stage", "predicted", "measured"} in bytes. The baseline is what is resident after the imports
and the same stage with a model too small to matter.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import minedge
from minedge import ledger
from minedge.data.packing import PackedText
from tests.ledger.measure_peak import adapter, random_model, work

SHAPES = {
    "135M": dict(
        vocab_size=49_152, n_layer=30, n_embd=576, n_head=9, n_kv_head=3, n_inner=1536, context_length=2048,
        tie_embeddings=True,
    ),
    "tiny": dict(vocab_size=64, n_layer=1, n_embd=64, n_head=2, n_inner=64, context_length=64),
}  # fmt: skip
BATCH, ROW = 2, 65


def make(folder: Path, shape: str) -> None:
    random_model(minedge.Config(**SHAPES[shape]), "c").save(folder / "given")


class Meter:
    """Memory above the baseline, stage by stage."""

    def __init__(self) -> None:
        gc.collect()
        ledger.reset_peak()
        self.baseline = ledger.resident_bytes()
        self.found: list[dict[str, object]] = []

    def start(self) -> None:
        gc.collect()
        ledger.reset_peak()

    def note(self, stage: str, planned: ledger.Plan) -> None:
        measured = ledger.peak_bytes() - self.baseline
        self.found.append({"stage": stage, "predicted": planned.peak, "measured": measured, **planned.parts})


def run(stage: str, folder: Path, meter: Meter) -> None:
    meter.start()
    source = "int4" if stage == "reload" else "tuned" if stage == "int4" else "given"
    model = minedge.load(folder / source, backend="c")
    if stage in ("load", "reload"):
        meter.note(stage, ledger.plan_files(model, "load"))
        (folder / f"{stage}.txt").write_text(fingerprint(model))
        return
    meter.start()
    if stage == "int4":
        planned = ledger.plan_files(model, "int4")
        packed = minedge.quant.int4(model, group_size=32)
        meter.note("int4", planned)
        del model
        meter.start()
        packed.save(folder / "int4")
        meter.note("save", ledger.plan_files(packed, "save"))
        (folder / "int4.txt").write_text(fingerprint(packed))
        return
    planned = ledger.plan(model, stage, BATCH, ROW, lora=adapter(model, stage))
    work(model, stage, BATCH, ROW)
    meter.note(f"{stage} step", planned)
    if stage == "mezo":
        rng = np.random.default_rng(0)
        tokens = PackedText(rng.integers(0, model.config.vocab_size, 500), 0, ROW, 500)
        minedge.train(model, tokens, "mezo", iters=1, batch_size=BATCH, seq_len=ROW).save(folder / "tuned")


def fingerprint(model: minedge.Model) -> str:
    """Bits of the logits of a short text."""
    return hashlib.sha256(model.logits(np.arange(24)[None] % model.config.vocab_size).tobytes()).hexdigest()


def main(stage: str, folder: str) -> None:
    if stage == "make":
        make(Path(folder), "135M")
        return
    with tempfile.TemporaryDirectory() as small:  # warm up: imports, pools, the buffers that libraries keep
        make(Path(small), "tiny")
        for each in ("load", "mezo", "lora", "int4", "reload"):
            run(each, Path(small), Meter())
    meter = Meter()
    run(stage, Path(folder), meter)
    print(json.dumps(meter.found))


if __name__ == "__main__":
    main(*sys.argv[1:])
