"""What the checks of a4 may ask of a student's files. Each task runs with the library's code in the other blanks."""

from __future__ import annotations

import contextlib

import numpy as np

from minedge.config import Config
from minedge.finetune import mezo as library
from minedge.model import noise as library_noise
from minedge.model.linears import Dense
from minedge.model.model import Model
from minedge.model.shapes import linear_shapes
from minedge.ops import get

OPS = get("numpy")
SHA = "0" * 64


@contextlib.contextmanager
def given(owner, source, *names):
    """Names of a module or class with the library's in their place."""
    owner = getattr(owner, "_module", owner)
    saved = {name: vars(owner)[name] for name in names if name in vars(owner)}
    try:
        for name in names:
            setattr(owner, name, vars(source)[name])
        yield
    finally:
        for name, value in saved.items():
            setattr(owner, name, value)


def model_of(config, params, names):
    config = Config(**config)
    linears = dict.fromkeys(linear_shapes(config), Dense())
    copies = {name: np.array(array) for name, array in params.items()}
    return Model(config, copies, linears, frozenset(names), backend="numpy")


def batches_of(batches):
    """[[tokens, mask or None], ...] -> what `step` takes: one pair, or a list of pairs."""
    pairs = [(tokens, mask) for tokens, mask in batches]
    return pairs[0] if len(pairs) == 1 else (pairs, None)


def perturbed(student, params, names, seed, step, eps, sample):
    noise = library_noise.Noise(seed, step, eps, frozenset(names), sample)
    seen = student.noise.Perturbed(params, noise, OPS)
    found = {name: seen[name] for name in params}
    fresh = all(found[name] is not params[name] for name in names)
    shared = all(found[name] is params[name] for name in params if name not in names)
    again = all(np.array_equal(seen[name], found[name]) for name in params)
    return {"seen": found, "fresh": fresh, "shared": shared, "the same again": again}


def part(student, weight, start, seed, step, eps, sample):
    noise = library_noise.Noise(seed, step, eps, frozenset({"w"}), sample)
    seen = student.noise.Perturbed({"w": weight}, noise, OPS)
    return {"part": seen._perturb("w", weight.ravel()[start:], start)}


def rows(student, weight, ids, seed, step, eps):
    noise = library_noise.Noise(seed, step, eps, frozenset({"w"}))
    with given(student.noise.Perturbed, library_noise.Perturbed, "__getitem__", "_perturb"):
        return {"rows": student.noise.Perturbed({"w": weight}, noise, OPS).rows("w", ids)}


def looks(student, config, params, names, settings, batches, steps):
    """The record of some steps, and the loss that each returned."""
    model = model_of(config, params, names).trainable()
    with given(student.mezo, library, "_loss", "_update_"):
        opt = student.mezo.MeZO(**settings)
        losses = [opt.step(model, *batches_of(batches)) for _ in range(steps)]
    return {"projected_grads": np.array(opt.log.projected_grads), "losses": np.array(losses)}


def restored(student, config, params, names, settings, batches):
    """With lr 0 a step leaves every weight as it was, bit for bit."""
    model = model_of(config, params, names).trainable()
    with given(student.mezo, library, "_loss", "_update_"):
        student.mezo.MeZO(**{**settings, "lr": 0.0, "weight_decay": 0.0}).step(model, *batches_of(batches))
    return {"weights": {name: np.array(model.params[name]) for name in names}}


def batch_loss(student, config, params, names, batches):
    model = model_of(config, params, names)
    noise = library_noise.Noise(5, 0, 1e-3, frozenset(names))
    return {"loss": student.mezo._loss(model, [(tokens, mask) for tokens, mask in batches], noise)}


def update(student, config, params, names, settings, step, projected_grads):
    model = model_of(config, params, names).trainable()
    student.mezo._update_(model, library.Settings(**settings), step, list(projected_grads))
    return {"weights": {name: np.array(model.params[name]) for name in sorted(params)}}


def replayed(student, config, params, names, settings, projected_grads):
    model = model_of(config, params, names)
    log = library.Log(library.Settings(**settings), "", "", list(projected_grads))
    with given(student.mezo, library, "_update_"):
        new = student.mezo.replay(model, log)
    untouched = all(np.array_equal(model.params[name], params[name]) for name in params)
    frozen = not any(array.flags.writeable for array in new.params.values())
    return {
        "weights": {name: np.array(new.params[name]) for name in sorted(params)},
        "the base is untouched": untouched,
        "frozen": frozen,
    }
