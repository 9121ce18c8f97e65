"""Every step of a plan against the op it stands for, on the engine's own inputs; and the plan as something to read."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import minedge.ops
from minedge.model import plan as plan_module
from minedge.model.engine import Engine
from minedge.model.plan import Step, compile_plan
from minedge.model.rotary import rotary_tables
from minedge.ops import Ops
from minedge.ops.numpy_ops.attention_decode import kv_round
from tests.engine.models import ARCHITECTURES, KINDS, make


def run_step(ops: Ops, step: Step, ins: list[np.ndarray], w: list[np.ndarray], tokens: np.ndarray, past: int) -> Any:
    """What the step means, in the ops of a tier: ins (T, width), weights as in the model, one sequence."""
    T = len(tokens)
    x = ins[0] if ins else None
    match step.op:
        case "rows_dense":
            return ops.embedding_forward(tokens, w[0])[0]
        case "rows_int4":
            return ops.int4_dequantize(w[0][tokens], w[1][tokens], step.group)
        case "rows_half":
            return ops.half_widen(w[0][tokens])
        case "half":
            return ops.half_linear_forward(x, w[0])[0]
        case "sparse":
            return ops.sparse_linear_forward(x, *w)[0]
        case "rows_int8":
            return ops.q8_dequantize(w[0][tokens], w[1][tokens])
        case "positions":
            return x + w[0][past : past + T]
        case "rms_norm":
            return ops.rms_norm_forward(x.reshape(-1, step.n), w[0], step.value)[0]
        case "layer_norm":
            return ops.layer_norm_forward(x, *w, step.value)[0]
        case "quantize":
            return ops.int8_quantize(x)
        case "dense":
            return ops.linear_forward(x, w[0])[0]
        case "bias":
            return ops.bias_forward(x, w[0])[0]
        case "columns":
            return x[:, step.group : step.group + step.m]
        case "rotary":
            cos, sin = (table[past : past + T] for table in w)
            return ops.rotary_forward(x.reshape(1, T, step.m, step.n), cos, sin)[0]
        case "swiglu":
            return ops.swiglu_forward(*ins)[0]
        case "gelu":
            return ops.gelu_forward(x)[0]
        case "scale":
            return x * np.float32(step.value)
        case "add":
            return ins[0] + ins[1]
        case "pick":
            return x
    raise AssertionError(step.op)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_every_step_is_its_op(architecture, kind, kv_dtype):
    """Bit for bit on the C tier. The integer product is rebuilt from the codes it was given."""
    model = make(architecture, kind)
    ops, config = model.ops, model.config
    arrays = dict(model.params)
    if config.uses_rotary:
        arrays["rotary.cos"], arrays["rotary.sin"] = rotary_tables(config)
    engine = Engine(model, 1, 40, kv_dtype)
    tokens = np.random.default_rng(0).integers(0, 37, 25)
    for part in (tokens[:19], tokens[19:]):
        past, now, floats_of = engine.lengths[0], {}, {}
        for step, got in engine.trace(part):
            ins = [now[name][0].reshape(len(part), -1) for name in step.inputs if name != "cache"]
            w = [arrays[name] for name in step.params]
            if step.op == "int4":
                want: Any = ops.int4_int8_linear(floats_of[step.inputs[0]], *w, step.group)
            elif step.op == "int8":
                want = ops.q8_int8_linear(floats_of[step.inputs[0]], *w)
            elif step.op == "store":
                k, v = (kv_round(a.reshape(len(part), step.m, step.n), kv_dtype) for a in ins)
                want = (k, v)
                got_now = tuple(a[past:] for a in got)
                assert all(a.tobytes() == b.tobytes() for a, b in zip(got_now, want, strict=True)), step
                now["cache"] = got
                continue
            elif step.op == "attention":
                q = ins[0].reshape(1, len(part), step.group, step.n)
                if kv_dtype == "int8":
                    kept = engine.caches[step.layer].rows(0, past + len(part))
                    want = ops.cached_attention_int8(q, *(kept[n][None] for n in ("k", "k_scales", "v", "v_scales")))
                else:
                    want = ops.cached_attention(q, *(np.ascontiguousarray(a)[None] for a in now["cache"]))
            else:
                want = run_step(ops, step, ins, w, part, past)
            if step.op == "quantize":
                floats_of[step.out] = np.ascontiguousarray(ins[0])
            wanted = want if isinstance(want, tuple) else (want,)
            for a, b in zip(got, wanted, strict=False):  # a codes buffer also holds the sums of its blocks
                assert a.tobytes() == np.ascontiguousarray(b).tobytes(), f"{step}"
            now[step.out] = got


def test_a_plan_can_be_read():
    model = make(kind="int4, embedding too", n_layer=1)
    lines = str(compile_plan(model.config, model.linears)).splitlines()
    assert lines[0].startswith("buffers (numbers a token): x 64, n 64, q 64, n.int8 64 int8, k 32")
    ops = [line.split()[2] for line in lines[1:]]
    attention = "rms_norm quantize int4 int4 int4 rotary rotary store attention quantize int4 add"
    mlp = "rms_norm quantize int4 int4 swiglu quantize int4 add"  # one rounding for gate and up, as for q, k and v
    assert " ".join(ops) == f"rows_int4 {attention} {mlp} pick rms_norm quantize int4"
    assert "model.layers.0.self_attn.q_proj.qweight" in lines[4]


def test_docstrings():
    assert doctest.testmod(plan_module).failed == 0


def test_every_step_of_a_plan_is_known_to_the_interpreter():
    from minedge.ops.c_ops.native import lib

    found = {step.op for kind in KINDS for a in ARCHITECTURES for step in _plan(a, kind).steps}
    assert all(hasattr(lib, f"ME_OP_{op.upper()}") for op in found | {"half", "rows_half"})
    assert minedge.ops.get("c").name == "c"


def _plan(architecture: str, kind: str):
    model = make(architecture, kind)
    return compile_plan(model.config, model.linears)
