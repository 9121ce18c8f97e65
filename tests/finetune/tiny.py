"""A model and data so small that a training step takes a millisecond, and the run that is killed and resumed.

As a program: python tiny.py OUT METHOD STEPS [PAUSE] trains in OUT with resume="auto" and prints a hash of the result.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import minedge
from minedge.data.packing import PackedText
from minedge.model.hashes import weights_hash

VOCAB = 37
CONFIG = minedge.Config(
    vocab_size=VOCAB, n_layer=2, n_embd=16, n_head=4, n_kv_head=2, n_inner=24, context_length=32, eos_token_id=0
)


def model(seed=0, backend="numpy", **changes):
    import dataclasses

    return minedge.init(dataclasses.replace(CONFIG, **changes), seed=seed, backend=backend)


def stream(n=2000, seed=0):
    """Tokens with something to learn: each is mostly the one before plus one."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(n) < 0.8, 1, rng.integers(0, VOCAB, n))
    return PackedText(np.cumsum(steps) % VOCAB, 0, 17, n)


def data():
    return stream(), stream(200, seed=1)


def options(method, iters):
    common = dict(
        iters=iters, batch_size=4, seq_len=17, grad_accum=2, eval_every=4, save_every=3, seed=3, keep=2, warmup=3
    )
    special = {
        "full": dict(learning_rate=1e-2),
        "lora": dict(learning_rate=1e-2, lora={"r": 2, "target": ("q_proj", "down_proj")}),
        "mezo": dict(learning_rate=1e-3, warmup=0, n_samples=2, weight_decay=0.1),
    }
    return {**common, **special[method]}


def run(out, method, iters, pause=0.0, **more):
    def slower(event):
        if event.kind == "step":
            time.sleep(pause)

    return minedge.train(
        model(), data(), method, out=out, resume="auto", on_event=slower, **{**options(method, iters), **more}
    )


if __name__ == "__main__":
    out, method, iters = sys.argv[1], sys.argv[2], int(sys.argv[3])
    result = run(out, method, iters, float(sys.argv[4]) if len(sys.argv) > 4 else 0.0)
    print(weights_hash(result.params))
