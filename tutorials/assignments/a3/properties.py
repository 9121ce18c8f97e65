"""What is tested in a3: each method against minedge's own, the backward against measured slopes, the merged model."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

from minedge.config import Config
from minedge.course.properties import Gradient, Property
from minedge.finetune import lora
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes, param_shapes
from minedge.ops import get

OPS = get("numpy")
A_NAME, B_NAME = "q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"
CONFIG = {
    "vocab_size": 11, "n_layer": 2, "n_embd": 8, "n_head": 2, "n_inner": 6, "context_length": 16,
}  # fmt: skip


def _calls():
    """The calls themselves, run on the library's file: what is expected is what they give there."""
    import minedge.course.content as content

    spec = importlib.util.spec_from_file_location("a3_calls_expected", Path(content.root()) / "a3" / "calls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CALLS, LIBRARY = _calls(), types.SimpleNamespace(lora=lora)


def expected(call):
    return lambda **case: getattr(CALLS, call)(LIBRARY, **case)


def matrices(rng, r, out_features, in_features, rows):
    return {
        "weight": rng.standard_normal((out_features, in_features)),
        "a": rng.standard_normal((r, in_features)),
        "b": rng.standard_normal((out_features, r)),
        "x": rng.standard_normal((*rows, in_features)),
    }


def scaling_cases(rng):
    for r, alpha, root in ((4, 8.0, False), (3, 16.0, False), (4, 8.0, True), (9, 2.0, True)):
        yield {"r": r, "lora_alpha": alpha, "use_rslora": root}


def shape_cases(rng):
    for base, r, wide, narrow in (("dense", 2, 3, 5), ("dense", 4, 8, 8), ("int4", 3, 4, 32)):
        yield {"base": base, "r": r, "out_features": wide, "in_features": narrow}


def trainable_cases(rng):
    yield from ({"active": True}, {"active": False})


def start_cases(rng):
    for r, wide, narrow in ((1, 2, 3), (4, 6, 9), (8, 5, 64)):
        yield {"out_features": wide, "in_features": narrow, "r": r, "seed": int(rng.integers(1000))}


def forward_cases(rng, **options):
    sizes = ((2, 3, 4, (2,)), (3, 5, 6, (2, 3)), (1, 4, 32, (3,)))
    for r, wide, narrow, rows in sizes:
        case = {"base": "int4" if narrow == 32 else "dense", **matrices(rng, r, wide, narrow, rows), "r": r}
        yield {**case, "lora_alpha": 5.0, "use_rslora": False, "active": True, **options}


def inactive_cases(rng):
    return forward_cases(rng, active=False)


def backward_cases(rng):
    for case in forward_cases(rng):
        del case["use_rslora"]
        case["dout"] = rng.standard_normal((*case["x"].shape[:-1], case["weight"].shape[0]))
        for active, wanted in ((True, [A_NAME, B_NAME]), (True, [B_NAME]), (True, []), (False, [A_NAME, B_NAME])):
            yield {**case, "active": active, "wanted": wanted}
        if case["base"] == "dense":
            yield {**case, "wanted": [A_NAME, B_NAME, "q_proj.weight"]}


def gradient_cases(rng):
    for r, wide, narrow, rows in ((2, 3, 4, (2,)), (3, 5, 6, (2, 3)), (1, 4, 7, ())):
        found = matrices(rng, r, wide, narrow, rows)
        yield {name: found[name] for name in ("x", "a", "b", "weight")} | {"r": r, "lora_alpha": 5.0}


def lora_forward(x, a, b, weight, r, lora_alpha):
    layer, params = lora.LoRA(Dense(), r, lora_alpha), {"q_proj.weight": weight, A_NAME: a, B_NAME: b}
    return layer.forward(x, params, "q_proj", OPS)[0], [x, a, b, weight, r, lora_alpha]


def dense_cases(rng):
    for active in (True, False):
        for case in forward_cases(rng, active=active):
            names = ("base", "weight", "a", "b", "r", "lora_alpha", "active")
            yield {name: case[name] for name in names}
    square = matrices(rng, 2, 5, 5, (1,))
    yield {"base": "dense", **{n: square[n] for n in ("weight", "a", "b")}, "r": 2, "lora_alpha": 1.0, "active": True}


def merge_cases(rng):
    config = Config(**CONFIG)
    shapes = param_shapes(config, dict.fromkeys(linear_shapes(config), Dense()))
    for count, weights in ((1, {}), (2, {}), (2, {"task0": 0.7, "task1": -0.5}), (2, {"task1": 1.5})):
        params = {name: 0.5 * rng.standard_normal(shape) for name, (shape, _) in shapes.items()}
        tokens = rng.integers(0, 11, (2, 4))
        seed = int(rng.integers(1000))
        yield {
            "config": CONFIG, "params": params, "seed": seed, "count": count, "weights": weights, "tokens": tokens
        }  # fmt: skip


PROPERTIES = [
    Property("a3.1", "scaling", scaling_cases, expected("scaling"), "how the change is scaled"),
    Property("a3.1", "shapes", shape_cases, expected("shapes"), "the base's parameters and the two factors"),
    Property("a3.1", "trainable", trainable_cases, expected("trainable"), "the factors of an active adapter"),
    Property("a3.2", "start", start_cases, expected("start"), "A random, and the model is the base", 1e-6),
    Property("a3.3", "forward", forward_cases, expected("forward"), "base(x) plus the scaled change"),
    Property(
        "a3.3", "forward", inactive_cases, expected("forward"), "an inactive adapter adds nothing",
        label="forward, not active",
    ),
    Gradient(
        "a3.4", "vjp", gradient_cases, lora_forward, expected("vjp"), ("x", "a", "b"),
        "the gradients match the measured slopes",
    ),
    Property("a3.4", "backward", backward_cases, expected("backward"), "any base; wanted gradients and no others"),
    Property("a3.5", "dense", dense_cases, expected("dense"), "the weight that does the same"),
    Property("a3.6", "merge", merge_cases, expected("merge"), "the merged model is the adapted one", 1e-6),
]  # fmt: skip
