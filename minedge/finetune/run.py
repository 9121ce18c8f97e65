"""What a training run keeps on disk, and the record of where it ran.

out/run.json               settings, model, environment
out/metrics.jsonl          a record a step (metrics.py);  out/loss.svg, the same as a picture
out/step-00000100/         checkpoints (io/checkpoint.py): the newest few and the best by validation loss
out/model/ or out/adapter/ the result;  out/mezo.log, the replayable record of a MeZO run
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import minedge
from minedge.errors import MinedgeFormatError, UsageError
from minedge.finetune import metrics
from minedge.finetune.curve import write_curve
from minedge.io import checkpoint
from minedge.io.atomic import atomic_write
from minedge.io.jsonfile import dump_json

__all__ = ["RunFolder", "differences", "environment"]

_OWN = ("run.json", "metrics.jsonl")  # what tells a run's folder from someone else's


def environment(ops: Any) -> dict[str, Any]:
    """Everything beside settings, weights and data that the bits of a run may depend on; JSON."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found: dict[str, Any] = {
        "minedge": minedge.__version__,
        "tier": ops.name,
        "isa": ops.isa,
        "build": "",
        "threads": _cpus(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or str(_cpus()),
        "machine": platform.machine(),
    }
    if ops.name == "c":
        from minedge import _kernels
        from minedge.ops import c_ops

        found["threads"] = c_ops.threads()
        found["build"] = hashlib.sha256(Path(_kernels.__file__).read_bytes()).hexdigest()[:16]
    elif ops.name == "numba":
        import numba

        found["threads"], found["build"] = numba.get_num_threads(), f"numba {numba.__version__}"
    return found


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'key: old -> new' for every entry of two flat records that differs."""
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]


class RunFolder:
    """The output folder of a run, held by a lock. With `path` None it keeps nothing and every method does nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def open(cls, out: str | os.PathLike[str] | None, resume: str | os.PathLike[str] | None) -> Iterator[RunFolder]:
        """Make and lock `out`. `UsageError` where it holds anything and the run is not being resumed."""
        if out is None:
            if resume == "auto":
                raise UsageError("resume: 'auto' looks into the output folder, so give out=...")
            yield cls(None)
            return
        path = Path(out).expanduser()
        if path.exists() and not path.is_dir():
            raise UsageError(f"out: expected a folder, {path} is a file")
        held = [p.name for p in path.iterdir() if p.name != ".lock"] if path.is_dir() else []
        ours = any(name in held for name in _OWN) or any(name.startswith("step-") for name in held)
        if held and not ours and not all(name.startswith(".") for name in held):
            raise UsageError(f"out: the folder {path} holds other things; choose a new one")
        if ours and resume is None:
            raise UsageError(
                f"out: the folder {path} holds a run already; continue it with resume='auto' or choose a new one"
            )
        with checkpoint.lock_run(path):
            yield cls(path)

    def find(self, resume: str | os.PathLike[str] | None) -> Path | None:
        """The checkpoint to go on from: the newest whole one ("auto"), a run's newest, or the one named."""
        if resume is None:
            return None
        if resume == "auto":
            assert self.path is not None
            return checkpoint.latest_checkpoint(self.path)
        given = Path(resume).expanduser()
        if not given.is_dir():
            raise UsageError(
                f"resume: expected 'auto', a run folder or a checkpoint in it, but {str(resume)!r} does not exist"
            )
        if (given / "manifest.json").exists():
            checkpoint.verify_checkpoint(given)
            return given
        found = checkpoint.latest_checkpoint(given)
        if found is None:
            raise MinedgeFormatError(f"{given}: no checkpoint in it that is whole")
        return found

    def begin(self, header: Mapping[str, Any], step: int) -> None:
        """Write run.json; keep the metrics of steps that will not be made again."""
        if self.path is not None:
            atomic_write(self.path / "run.json", dump_json(dict(header)))
            self.records = metrics.truncate(self.path / "metrics.jsonl", step)

    def record(self, **values: Any) -> None:
        if self.path is not None:
            metrics.append(self.path / "metrics.jsonl", values)
            self.records.append(values)

    def save(
        self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], keep: int, best: int | None
    ) -> Path | None:
        """A checkpoint, then without those that are neither new nor best, and the curve so far."""
        if self.path is None:
            return None
        saved = checkpoint.save_checkpoint(self.path, step, arrays, state)
        checkpoint.prune_checkpoints(self.path, keep=keep, protect=best)
        write_curve(self.path / "loss.svg", self.records)
        return saved

    def weights(self, step: int, names: list[str]) -> dict[str, np.ndarray]:
        """The trainable arrays of the checkpoint of `step`."""
        from minedge.io import safetensors

        assert self.path is not None
        where = checkpoint.checkpoint_path(self.path, step)
        checkpoint.verify_checkpoint(where)
        return {
            name[2:]: a for name, a in safetensors.read(where / "arrays.safetensors", [f"w.{n}" for n in names]).items()
        }

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, for messages."""
        return checkpoint.latest_checkpoint(self.path) if self.path is not None else None
