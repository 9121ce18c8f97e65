"""What the machine can do: reading memory, float32 products, int8 products. The limits that shares are taken of.

Reading: two NumPy loops over an array far larger than the caches, one slice per thread; the faster one counts. It is
a lower bound of what the memory gives, so a share of it may come out above 1 where a kernel prefetches better.
Products: float32 by NumPy's BLAS and by minedge, the faster one; for int8 there is no loop that is everybody's, so the
limit is the fastest int8 product that anyone made in the run, those of the part matmul included.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minedge.bench.measure import Run
from minedge.bench.parts import Entry, Outputs, Part
from minedge.bench.stats import spread
from minedge.bench.worker import Clock, Subject

__all__ = ["PARTS", "Limit", "describe", "imports", "limits_of", "make"]

READ_BYTES = 1 << 29
SGEMM = 1024


def imports(job: Mapping[str, Any]) -> None:
    """Compiled code is loaded on the spot."""


def make(job: Mapping[str, Any]) -> Subject:
    """One measurement, named by sizes["measure"]."""
    return _MEASURES[job["sizes"]["measure"]](job)


class _Loop(Subject):
    """`work(i)` on each thread i, `amount` of `unit` in all."""

    def __init__(self, threads: int, work: Callable[[int], Any], amount: float, kind: str, settings: str):
        self.work, self.settings, self.threads = work, settings, threads
        self.pool = ThreadPoolExecutor(threads)
        unit = {"read": "GB/s", "float": "GFLOP/s", "int8": "G multiply-adds/s"}[kind]
        self.facts = {"amount": amount / 1e9, "unit": unit, "limit": kind}
        self.outputs: dict[str, Any] = {"right": True}

    def run(self, units: int, clock: Clock) -> None:
        with clock.running():
            for _ in range(units):
                list(self.pool.map(self.work, range(self.threads)))


def _read(job: Mapping[str, Any]) -> Subject:
    threads, maximum = job["threads"], job["sizes"]["loop"] == "max"
    data = np.ones(job["sizes"].get("bytes", READ_BYTES) // 4, np.int32 if maximum else np.float32)
    slices = np.array_split(data, threads)
    work: Callable[[int], Any] = (
        (lambda i: slices[i].max()) if maximum else (lambda i: np.dot(slices[i], slices[i]))  # sdot reads it once
    )
    _set_blas_threads(1)  # the slices are the threads
    loop = "int32 maximum" if maximum else "float32 dot product"
    subject = _Loop(threads, work, data.nbytes, "read", f"{loop} over {data.nbytes / 1e6:.0f} MB, NumPy")
    total = sum(float(work(i)) for i in range(threads))
    subject.outputs = {"right": total == (threads if maximum else data.size)}
    return subject


def _set_blas_threads(n: int) -> None:
    """The variables were set for `job.threads`; a slice per thread wants one each. Without threadpoolctl, by affinity:
    OpenBLAS runs small products on the caller alone, so this is done through its own function where NumPy exports it.
    """
    import ctypes
    import glob

    folder = Path(np.__file__).parents[1]
    for file in glob.glob(str(folder / "numpy.libs" / "*openblas*")):
        library = ctypes.CDLL(file)
        for name in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads"):
            if hasattr(library, name):
                getattr(library, name)(n)
                return


def _sgemm(job: Mapping[str, Any]) -> Subject:
    n = job["sizes"].get("n", SGEMM)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    if job["sizes"]["library"] == "numpy":
        product: Callable[[], Any] = lambda: a @ b  # noqa: E731
        settings = f"{n} x {n}, NumPy's BLAS"
    else:
        from minedge.ops import get

        ops = get(job["backend"])
        product, settings = (lambda: ops.linear_forward(a, b)[0]), f"{n} x {n}, {ops.spec}"
    right = (b if job["sizes"]["library"] == "numpy" else b.T).astype(np.float64)
    exact = a[:4].astype(np.float64) @ right
    # A sum of n products errs by at most n u times the sum of their magnitudes, u = 2^-24.
    bound = n * 2.0**-24 * (np.abs(a[:4]).astype(np.float64) @ np.abs(right))
    subject = _Loop(1, lambda i: product(), 2.0 * n**3, "float", settings)
    subject.outputs = {"right": bool((np.abs(product()[:4] - exact) <= bound).all())}
    return subject


def _int4(job: Mapping[str, Any]) -> Subject:
    from minedge.ops import get

    tokens, out, width = 64, 512, 512
    rng = np.random.default_rng(0)
    ops, x = get(job["backend"]), rng.standard_normal((tokens, width), np.float32)
    q, s = ops.int4_quantize(rng.standard_normal((out, width), np.float32), 32)
    product = lambda i: ops.int4_int8_linear(x, q, s, 32)  # noqa: E731
    subject = _Loop(
        1, product, float(tokens * out * width), "int8", f"int4 x int8 from the cache, 64 tokens, {ops.spec}"
    )
    close = np.allclose(product(0), get("numpy").int4_int8_linear(x, q, s, 32), rtol=1e-4, atol=1e-3)
    subject.outputs = {"right": bool(close)}
    return subject


_MEASURES: dict[str, Callable[[Mapping[str, Any]], Subject]] = {
    "read": _read, "sgemm": _sgemm, "int4": _int4,
}  # fmt: skip


def _check(who: str, outputs: Outputs, reference: Outputs) -> tuple[bool, str]:
    return bool(outputs["right"]), "against NumPy in float64 or int64"


def _entry(note: str, alone: bool = True, **sizes: Any) -> Entry:
    return Entry("minedge", "minedge.bench.machine:make", (), note, sizes, alone)


PARTS = {
    "machine": Part(
        "machine",
        "read bandwidth from memory, float32 and int8 products from the cache: the limits that shares refer to",
        (
            _entry("read, dot product", measure="read", loop="dot"),
            _entry("read, maximum", measure="read", loop="max"),
            _entry("sgemm, NumPy", measure="sgemm", library="numpy"),
            _entry("sgemm, minedge", alone=False, measure="sgemm", library="minedge"),
            _entry("int4 x int8, minedge", alone=False, measure="int4"),
        ),
        _check,
        shaped=False,
    )
}


@dataclass(frozen=True)
class Limit:
    """What this machine did with some number of threads: bytes, float32 and int8 multiply-adds per second."""

    read: float
    float_macs: float
    int8_macs: float

    def seconds(self, facts: Mapping[str, Any]) -> float:
        """The least time that work of these `bytes` and `macs` could take; 0 where it states neither."""
        rate = self.int8_macs if facts.get("arithmetic") == "int8" else self.float_macs
        memory = facts.get("bytes", 0.0) / self.read if self.read else 0.0
        return max(memory, facts.get("macs", 0.0) / rate if rate else 0.0)


def limits_of(runs: Iterable[Run]) -> dict[int, Limit]:
    """Threads -> the fastest of each kind in these runs; none where reading was not measured."""
    best: dict[int, dict[str, float]] = {}
    for run in runs:
        if not run.counts:
            continue
        found, seconds = best.setdefault(run.job.threads, {}), spread(run.seconds).median
        kind, rate = run.facts.get("limit"), run.facts["amount"] * 1e9 / seconds
        if kind is None and run.facts.get("arithmetic") == "int8":
            kind, rate = "int8", run.facts["macs"] / seconds
        if kind is not None:
            found[kind] = max(found.get(kind, 0.0), rate)
    return {
        n: Limit(found["read"], found.get("float", 0.0) / 2, found.get("int8", 0.0))
        for n, found in best.items()
        if "read" in found
    }


def describe() -> dict[str, Any]:
    """Processor, caches, memory, versions, date."""
    import minedge

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or "unknown",
        "cpus": cpus,
        "wide": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "asimddp", "i8mm") if flag in _flags()],
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minedge": minedge.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "executable": sys.executable,
    }


def _flags() -> list[str]:
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    named = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in named if name.strip() == key), "")
