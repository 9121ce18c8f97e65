"""Measures one method's peak memory in a process of its own: python -m tests.ledger.measure_peak METHOD SIZE BACKEND.

The baseline is what is resident after the imports and a step of a model too small to matter, so that libraries, thread
pools and BLAS buffers are there. Prints JSON: predicted and measured bytes.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile

import numpy as np

import minedge
from minedge import ledger
from minedge.compress.half import half
from minedge.data.packing import PackedText
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes, param_shapes

SIZES = {
    # name: (config, batch, tokens a row)
    "tiny": (dict(vocab_size=64, n_layer=1, n_embd=32, n_head=2, n_inner=64), 2, 17),
    "small": (dict(vocab_size=2048, n_layer=4, n_embd=320, n_head=5, n_inner=864), 8, 129),
    "50M": (dict(vocab_size=8192, n_layer=10, n_embd=640, n_head=10, n_kv_head=5, n_inner=1792), 4, 129),
    "50M-gpt2": (dict(vocab_size=8192, n_layer=9, n_embd=640, n_head=10, n_inner=2560, architecture="gpt2"), 4, 129),
}


def work(model, method, batch, seq_len):
    """What the plan is about, as a user would run it; two steps, because optimizer state appears in the first."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocab_size, 4 * batch * seq_len)
    if method == "inference":
        for _ in range(2):
            model.loss(tokens[: batch * seq_len].reshape(batch, seq_len))
    else:
        data = PackedText(tokens, 0, seq_len, len(tokens))
        shape = dict(batch_size=batch, seq_len=seq_len)
        minedge.train(model, data, method, iters=2, learning_rate=1e-4, lora=adapter(model, method), **shape)


def adapter(model, method):
    fused = len(model.config.arch.attn_in) == 1
    return {"target": ("c_attn",) if fused else ("q_proj", "v_proj")} if method == "lora" else None


def random_model(config, backend):
    """Like minedge.init, made without temporaries, whose memory the C library may keep for a while."""
    rng, linears = np.random.default_rng(0), {name: Dense() for name in linear_shapes(config)}
    params = {}
    for name, (shape, _) in param_shapes(config, linears).items():
        params[name] = rng.standard_normal(shape, np.float32) if len(shape) > 1 else np.ones(shape, np.float32)
        if len(shape) > 1:
            params[name] *= np.float32(0.02)
    return minedge.Model(config, params, linears, frozenset(params), backend=backend).freeze()


def made(size, kind, backend):
    """A compressed model is packed by another process and loaded here: the C library keeps what packing has used."""
    shape, batch, seq_len = SIZES[size]
    if kind == "dense":
        return random_model(minedge.Config(context_length=256, **shape), backend), batch, seq_len
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.ledger.measure_peak", "pack", size, kind, f"{folder}/model"]
        subprocess.run(command, check=True)
        return minedge.load(f"{folder}/model", backend=backend), batch, seq_len


def pack(size, kind, path):
    model = made(size, "dense", "c")[0]
    ways = {"int4": minedge.quant.int4, "int8": minedge.quant.int8, "masked": lambda m: minedge.prune.magnitude(m, 0.5)}
    ways.update(float16=half, bfloat16=lambda m: half(m, "bfloat16"), nf4=minedge.quant.nf4)
    ways["sparse"] = lambda m: minedge.sparse.pack(minedge.prune.magnitude(m, 0.5))
    ways[kind](model).save(path)


def main(method, size, backend, kind="dense"):
    for each in {method, "full"}:  # warm up: imports, pools, BLAS buffers
        warm, batch, seq_len = made("tiny", "dense", backend)
        work(warm, each, batch, seq_len)
    # A product large enough for BLAS and for the kernels' threads to take the packing buffers that they keep.
    weight, ops = np.ones((2048, 640), np.float32), minedge.ops.get(backend)
    out, cache = ops.linear_forward(np.ones((1024, 640), np.float32), weight)
    ops.linear_backward(out, cache)
    del out, cache, weight
    gc.collect()
    ledger.reset_peak()
    baseline = ledger.resident_bytes()
    model, batch, seq_len = made(size, kind, backend)
    planned = minedge.plan(model, method, batch, seq_len, lora=adapter(model, method))
    gc.collect()
    ledger.reset_peak()  # making the model (float64 random numbers, packing) is not what is planned
    work(model, method, batch, seq_len)
    measured = ledger.peak_bytes() - baseline
    result = {"method": method, "kind": kind, "size": size, "backend": backend, "n_params": model.n_params()}
    found = {"predicted": planned.peak, "measured": measured, "moment": planned.moment, **planned.parts}
    print(json.dumps({**result, **found}))


if __name__ == "__main__":
    pack(*sys.argv[2:]) if sys.argv[1] == "pack" else main(*sys.argv[1:])
