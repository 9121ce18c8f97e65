"""Keep evaluation honest across Python versions: drop what a bundled model met in training on another Python.

A model trained on the built-in corpus carries two files: seen.npy, a fingerprint of its training text, and
figures.json with the hash of the corpus. Where the running Python's corpus has that hash, its split already keeps
training and test apart and nothing is dropped.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from minedge.data.loaders import BUILT_IN, Dataset
from minedge.data.overlap import SeenFilter
from minedge.data.packing import Texts
from minedge.data.splits import evaluation_passages, stdlib_splits
from minedge.data.task import Labelled, stdlib_task

__all__ = ["without_seen"]


def without_seen(dataset: Dataset, model_folder: Path) -> Dataset:
    """A built-in set without the validation and test passages that the model in this folder has seen; others as they
    are.
    """
    record = model_folder / "seen.npy"
    if dataset.name not in BUILT_IN or not record.is_file() or _corpus_of(model_folder) == stdlib_splits().sha256:
        return dataset
    seen = SeenFilter.load(record)
    if dataset.task is not None:
        task = stdlib_task(seen)
        return replace(
            dataset,
            task=task,
            train=Labelled(task, "train"),
            valid=Labelled(task, "valid"),
            test=Labelled(task, "test"),
        )
    valid, test = (Texts(tuple(p.text for p in evaluation_passages(part, seen))) for part in ("valid", "test"))
    return replace(dataset, valid=valid, test=test)


def _corpus_of(model_folder: Path) -> str | None:
    try:
        return json.loads((model_folder / "figures.json").read_text(encoding="utf-8")).get("corpus_sha256")
    except (OSError, ValueError, AttributeError):
        return None
