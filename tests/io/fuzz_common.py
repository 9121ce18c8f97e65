"""What the fuzzing of all formats shares."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minedge.model.shapes import param_shapes

__all__ = ["TEXTS", "WIDE", "Format", "is_whole"]

Format = Callable[[random.Random, Path], bool]  # one mutant: writes and reads it, says whether it was accepted
WIDE = [0, 1, 2, 3, 7, 8, 9, 13, 16, 31, 32, 33, 64, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 61, 1 << 63, (1 << 64) - 1]
TEXTS = [
    b"NaN", b"-0", b"1e2", b"null", b"{}", b"[]", b'"F32"', b'"\\ud800"', b'"\\u0061"', b"/**/", b"\xff", b" ", b"\n",
    b",", b'"a":', b'"__metadata__":{"a":"b"},', b"[2,1]", b"[0,8]",
]  # fmt: skip


def is_whole(config: Any, params: Any, linears: Any) -> None:
    assert {name: a.shape for name, a in params.items()} == {
        name: tuple(shape) for name, (shape, _) in param_shapes(config, linears).items()
    }
