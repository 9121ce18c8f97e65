"""What a8 asks of the student's recipe.py: a model, handed over as the files it is saved in."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import minedge
from minedge.data import loaders, splits
from minedge.data.task import Example, Labelled, Task
from minedge.model.model import Model
from minedge.ops import c_ops


class OwnDataError(Exception):
    """The recipe opened other data than it was given."""


def _refused(*args, **options):
    raise OwnDataError("a recipe may only use the data it is given")


def setup(student, paths):
    """Called in the student's process, before the recipe is loaded: whatever it imports from these is refused too."""
    # Saving asks for the machine's name, which the fence around a recipe refuses, as all that socket has.
    socket.gethostname = lambda: "course"
    for module, name in ((loaders, "load_data"), (loaders, "stdlib_task"), (splits, "stdlib_splits")):
        setattr(module, name, _refused)


def build(student, template, labels, parts, seed):
    """Run the recipe. parts: name -> [lines, indices of labels]. -> the saved files' bytes, buffers' bytes, seconds."""
    examples = {
        part: tuple(Example(line, int(label)) for line, label in zip(lines, indices, strict=True))
        for part, (lines, indices) in parts.items()
    }
    task = Task("lines", tuple(labels), tuple(labels), template, examples)
    data = SimpleNamespace(
        name="lines", task=task, train=Labelled(task, "train"), valid=Labelled(task, "valid"), info={}
    )
    base = minedge.load("bundled", backend="c" if c_ops.available() else None)
    began = time.perf_counter()
    model = student.recipe.build(base, data, seed)
    seconds = time.perf_counter() - began
    if not isinstance(model, Model):
        raise TypeError(f"build returned {type(model).__name__}, expected a Model")
    folder = Path(tempfile.mkdtemp())
    try:
        minedge.Model.save(model, folder / "model")
        files = {
            path.name: np.frombuffer(path.read_bytes(), np.uint8)
            for path in sorted((folder / "model").iterdir())
            if path.name == "config.json" or path.suffix == ".safetensors" or path.name.endswith(".index.json")
        }
    finally:
        shutil.rmtree(folder)
    return {"files": files, "seconds": seconds}
