"""What the checks of a3 may ask of a student's file. Each task runs with the library's code in the other blanks."""

from __future__ import annotations

import contextlib

import numpy as np

from minedge.compress.int4 import Int4
from minedge.config import Config
from minedge.finetune import lora as library
from minedge.model.linears import Dense
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes
from minedge.ops import get

OPS = get("numpy")
METHODS = ("scaling", "shapes", "start", "forward", "backward", "dense", "change", "trainable")
NAME = "q_proj"
A_NAME, B_NAME = f"{NAME}.lora_A.default.weight", f"{NAME}.lora_B.default.weight"


@contextlib.contextmanager
def only(student, *names):
    """The student's LoRA class with the library's methods in place of all blanks but `names`."""
    cls = student.lora.LoRA
    saved = {name: vars(cls)[name] for name in METHODS if name in vars(cls)}
    try:
        for name in set(METHODS) - set(names):
            setattr(cls, name, vars(library.LoRA)[name])
        yield cls
    finally:
        for name, value in saved.items():
            setattr(cls, name, value)


def parameters(base, weight, a=None, b=None):
    """-> the base kind, and the matrix's parameters with the factors beside it."""
    kind = Int4(32) if base == "int4" else Dense()
    own = {} if a is None else {A_NAME: a, B_NAME: b}
    return kind, {**kind.pack(NAME, weight, OPS), **own}


def scaling(student, r, lora_alpha, use_rslora):
    with only(student, "scaling") as cls:
        return {"scaling": float(cls(Dense(), r, lora_alpha, use_rslora=use_rslora).scaling)}


def shapes(student, base, r, out_features, in_features):
    with only(student, "shapes") as cls:
        found = cls(Int4(32) if base == "int4" else Dense(), r).shapes(NAME, out_features, in_features)
        return {"shapes": {name: [list(shape), dtype] for name, (shape, dtype) in found.items()}}


def trainable(student, active):
    with only(student, "trainable") as cls:
        return {"names": list(cls(Dense(), 2, active=active).trainable(NAME))}


def start(student, out_features, in_features, r, seed):
    with only(student, "start") as cls:
        found = cls(Dense(), r).start({}, NAME, (out_features, in_features), seed, OPS)
        return {"A": found[A_NAME], "B": found[B_NAME]}


def forward(student, base, weight, a, b, x, r, lora_alpha, use_rslora, active):
    kind, params = parameters(base, weight, a, b)
    with only(student, "forward") as cls:
        layer = cls(kind, r, lora_alpha, active=active, use_rslora=use_rslora)
        return {"out": layer.forward(x, params, NAME, OPS)[0]}


def backward(student, base, weight, a, b, x, dout, r, lora_alpha, active, wanted):
    kind, params = parameters(base, weight, a, b)
    cache = library.LoRA(kind, r, lora_alpha, active=active).forward(x, params, NAME, OPS)[1]
    with only(student, "backward") as cls:
        dx, grads = cls(kind, r, lora_alpha, active=active).backward(dout, cache, params, NAME, OPS, frozenset(wanted))
    return {"dx": dx, "grads": dict(grads)}


def vjp(student, dout, cache):
    x, a, b, weight, r, lora_alpha = cache
    found = backward(student, "dense", weight, a, b, x, dout, r, lora_alpha, True, [A_NAME, B_NAME])
    return {"dx": found["dx"], "da": found["grads"][A_NAME], "db": found["grads"][B_NAME]}


def dense(student, base, weight, a, b, r, lora_alpha, active):
    kind, params = parameters(base, weight, a, b)
    with only(student, "dense", "change") as cls:
        layer = cls(kind, r, lora_alpha, active=active)
        return {"dense": layer.dense(params, NAME, OPS), "change": layer.change(params, NAME, OPS)}


def adapted(config, params, seed, count):
    """A model with `count` adapters on q and v, their factors drawn so that they change something; float64."""
    config, rng = Config(**config), np.random.default_rng(seed)
    names = frozenset(params)
    model = Model(config, params, dict.fromkeys(linear_shapes(config), Dense()), names, backend="numpy")
    for number in range(count):
        model = library.add(model, r=2 + number, lora_alpha=3.0, adapter=f"task{number}")
    arrays = {n: 0.5 * rng.standard_normal(p.shape) if ".lora_" in n else p for n, p in model.params.items()}
    return model.with_params(arrays, model.linears, model.trainable_names)


def merge(student, config, params, seed, count, weights, tokens):
    model = adapted(config, params, seed, count)
    before = {name: array.copy() for name, array in model.params.items()}
    with only(student):
        merged = student.lora.merge(model, weights or None)
    untouched = all(np.array_equal(model.params[name], before[name]) for name in before)
    return {
        "params": {name: np.array(array) for name, array in sorted(merged.params.items())},
        "logits": np.asarray(merged.logits(tokens), np.float64),
        "trainable": sorted(merged.trainable_names),
        "untouched": untouched,
    }
