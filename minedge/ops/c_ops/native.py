"""The compiled module, or the reason why there is none.

`floats(a)` and its like are what a kernel takes for an array that checks.py let through.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from minedge.errors import UsageError

__all__ = [
    "doubles",
    "ffi",
    "find_bad_id",
    "floats",
    "halves",
    "lib",
    "longs",
    "reason",
    "signed_bytes",
    "threads_wanted",
    "unsigned_bytes",
    "words",
]

lib: Any = None
ffi: Any = None
reason = ""
try:
    _kernels = importlib.import_module("minedge._kernels")
    ffi, lib = _kernels.ffi, _kernels.lib
except ImportError as error:
    reason = (
        f"the compiled module minedge._kernels does not load: {error}; install a C compiler and install minedge again"
    )

# from_buffer takes any array of bytes and believes the type it is told: dtype must have been checked before.
if lib is not None:
    _from = ffi.from_buffer

    def floats(a: np.ndarray) -> Any:
        return _from("float[]", a)

    def doubles(a: np.ndarray) -> Any:
        return _from("double[]", a)

    def longs(a: np.ndarray) -> Any:
        return _from("int64_t[]", a)

    def words(a: np.ndarray) -> Any:
        return _from("int32_t[]", a)

    def halves(a: np.ndarray) -> Any:
        return _from("uint16_t[]", a)

    def unsigned_bytes(a: np.ndarray) -> Any:
        return _from("uint8_t[]", a)

    def signed_bytes(a: np.ndarray) -> Any:
        return _from("int8_t[]", a)

    def product(
        isa: int, out: np.ndarray, a: np.ndarray, b: np.ndarray, a_t: bool, b_t: bool, M: int, N: int, K: int
    ) -> None:
        """out (M, N) = a b, either of them transposed where its flag says so; shapes must have been checked."""
        if K == 0:
            out[...] = 0
        elif out.size and lib.me_gemm(isa, floats(out), floats(a), floats(b), a_t, b_t, M, N, K):
            raise MemoryError("matrix product: no memory for its packed operands")

    def packed_product(
        gemm: Any, isa: int, out: np.ndarray, a: np.ndarray, weight: tuple, back: bool, M: int, rows: int, width: int
    ) -> None:
        """out = a weight.T, or with `back` a weight, for a packed weight (rows, width) that `gemm` reads from the
        arguments `weight`; shapes must have been checked.
        """
        if (rows if back else width) == 0:
            out[...] = 0
        elif out.size and gemm(isa, floats(out), floats(a), *weight, back, M, rows, width):
            raise MemoryError("matrix product: no memory for its packed operands")

    def find_bad_id(ids: np.ndarray, limit: int) -> int:
        return lib.me_find_bad_id(longs(ids), ids.size, limit)


def threads_wanted() -> int:
    """MINEDGE_THREADS where it is set, else the number of CPUs this process may use. UsageError for nonsense."""
    text = os.environ.get("MINEDGE_THREADS")
    if text is None or text == "":
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:  # not Linux
            return os.cpu_count() or 1
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise UsageError(f"MINEDGE_THREADS: expected a number in 1..256, got {text!r}")
    return int(text)
