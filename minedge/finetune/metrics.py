"""A run's record on disk, metrics.jsonl: one JSON object a line, for every step and every evaluation.

    {"step": 12, "loss": 3.21, "lr": 0.0003, "grad_norm": 0.8, "tokens_per_s": 12000.0, "seconds": 4.1}
    {"step": 100, "valid_loss": 2.95}

A process that dies leaves at most a torn last line, and records of steps that a resumed run will make again.
`truncate` removes both, so after any number of kills the file reads as if the run had never stopped.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from minedge.io.atomic import atomic_write, os_errors

__all__ = ["append", "read", "truncate"]


def append(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Add one line. It is not flushed to the disk: a checkpoint is what a run is resumed from, not this file."""
    # JSON has no NaN: a diverged loss is null.
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    with os_errors(path, "append to"), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole records in order; a torn last line is left out. An empty list where there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a kill, then appended to
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def truncate(path: str | os.PathLike[str], step: int) -> list[dict[str, Any]]:
    """Keep the records up to `step` (a torn line goes too), rewriting the file atomically; return what was kept."""
    if not Path(path).exists():
        return []
    kept = [record for record in read(path) if record["step"] <= step]
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return kept
