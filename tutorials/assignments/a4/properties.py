"""What is tested in a4: each piece against minedge's own, in float64."""

from __future__ import annotations

import importlib.util
import types

import numpy as np

from minedge.config import Config
from minedge.course.content import root
from minedge.course.properties import Property
from minedge.finetune import mezo
from minedge.model import noise
from minedge.model.linears import Dense
from minedge.model.shapes import linear_shapes, param_shapes

CONFIG = {"vocab_size": 11, "n_layer": 1, "n_embd": 8, "n_head": 2, "n_inner": 6, "context_length": 16}
LIBRARY = types.SimpleNamespace(mezo=mezo, noise=noise)


def _calls():
    """The calls themselves, run on the library's files: what is expected is what they give there."""
    spec = importlib.util.spec_from_file_location("a4_calls_expected", root() / "a4" / "calls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CALLS = _calls()


def expected(call):
    return lambda **case: getattr(CALLS, call)(LIBRARY, **case)


def weights(rng):
    config = Config(**CONFIG)
    shapes = param_shapes(config, dict.fromkeys(linear_shapes(config), Dense()))
    params = {name: 0.4 * rng.standard_normal(shape) for name, (shape, _) in shapes.items()}
    return {name: 1 + w if w.ndim == 1 else w for name, w in params.items()}


def numbers(rng):
    return {"seed": int(rng.integers(1, 1000)), "step": int(rng.integers(1, 50)), "eps": 0.01}


def perturbed_cases(rng):
    for names, sample in ((["b"], 0), (["a", "c"], 0), (["a", "b", "c"], 2)):
        params = {"a": rng.standard_normal((2, 3)), "b": rng.standard_normal(5), "c": rng.standard_normal((4, 2))}
        yield {"params": params, "names": names, **numbers(rng), "sample": sample}


def part_cases(rng):
    for size, start in ((4, 0), (9, 3), (30, 17)):
        yield {"weight": rng.standard_normal(size), "start": start, **numbers(rng), "sample": 1}


def rows_cases(rng):
    for shape, ids in (((4, 3), [0]), ((5, 3), [2, 1, 1]), ((9, 2), [[3, 4, 8], [0, 3, 3]])):
        yield {"weight": rng.standard_normal(shape), "ids": np.array(ids), **numbers(rng)}


def a_batch(rng, rows, length, masked=False):
    mask = rng.integers(0, 2, (rows, length)).astype(float) if masked else None
    if mask is not None:
        mask[0, 1] = 1.0
    return [rng.integers(0, 11, (rows, length)), mask]


def looks_cases(rng):
    for samples, steps, several in ((1, 1, False), (1, 3, False), (3, 2, True)):
        params = weights(rng)
        settings = {"lr": 0.01, "eps": 0.02, "seed": int(rng.integers(1000)), "n_samples": samples}
        batches = [a_batch(rng, 2, 4)] + ([a_batch(rng, 1, 6, True)] if several else [])
        names = [name for name in params if "mlp" in name] if several else list(params)
        yield {
            "config": CONFIG, "params": params, "names": names, "settings": settings, "batches": batches, "steps": steps
        }  # fmt: skip


def restored_cases(rng):
    for case in looks_cases(rng):
        del case["steps"]
        yield case


def loss_cases(rng):
    for batches in ([a_batch(rng, 1, 3)], [a_batch(rng, 1, 3), a_batch(rng, 2, 6)], [a_batch(rng, 2, 5, True)] * 2):
        params = weights(rng)
        yield {"config": CONFIG, "params": params, "names": list(params), "batches": batches}
    yield {"config": CONFIG, "params": params, "names": list(params), "batches": [a_batch(rng, 2, 6, True), *batches]}


def update_cases(rng, decay=0.0):
    for samples, schedule in ((1, {}), (1, {"schedule": "linear", "total_steps": 10}), (3, {})):
        params = weights(rng)
        names = [name for name in params if "norm" in name or "mlp" in name]
        settings = {"lr": 0.03, "eps": 0.02, "seed": int(rng.integers(1000)), "weight_decay": decay}
        yield {
            "config": CONFIG, "params": params, "names": names,
            "settings": {**settings, "n_samples": samples, **schedule},
            "step": 4, "projected_grads": rng.standard_normal(samples).tolist(),
        }  # fmt: skip


def decay_cases(rng):
    return update_cases(rng, 0.5)


def replay_cases(rng):
    for case in update_cases(rng):
        del case["step"]
        count = 3 * case["settings"]["n_samples"]
        yield {**case, "projected_grads": rng.standard_normal(count).astype(np.float32).tolist()}


PROPERTIES = [
    Property("a4.1", "perturbed", perturbed_cases, expected("perturbed"), "w + eps z for the named, w for the others"),
    Property("a4.1", "part", part_cases, expected("part"), "a part of a tensor gets that part's numbers"),
    Property("a4.2", "rows", rows_cases, expected("rows"), "the rows of the perturbed tensor"),
    Property("a4.3", "looks", looks_cases, expected("looks"), "projected gradients and losses of some steps", 1e-5),
    Property("a4.3", "restored", restored_cases, expected("restored"), "looking leaves the weights as they are", 0),
    Property("a4.4", "batch_loss", loss_cases, expected("batch_loss"), "the loss of the batch they were cut from"),
    Property("a4.5", "update", update_cases, expected("update"), "the step along z"),
    Property("a4.5", "update", decay_cases, expected("update"), "with weight decay", label="update with decay"),
    Property("a4.6", "replayed", replay_cases, expected("replayed"), "the run's weights, from base and record"),
]
