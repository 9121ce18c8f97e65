"""minedge doctor: which backends, instruction sets and op implementations this machine has, and which are chosen."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from minedge.cli.console import Console
from minedge.cli.text import size
from minedge.errors import MinedgeError
from minedge.ops import use_backend

__all__ = ["DESCRIPTION", "EXAMPLES", "add_options", "run"]

DESCRIPTION = """Show what minedge finds on this machine: versions, processor, the three backends with their instruction
sets, where each op of each backend comes from, what is chosen, and one line of advice. Nothing is compiled."""
EXAMPLES = ("minedge doctor", "minedge doctor --json", "MINEDGE_BACKEND=numpy minedge doctor")
PACKAGES = ("numpy", "numba", "llvmlite", "cffi", "safetensors", "tokenizers", "rich")


def add_options(parser: argparse.ArgumentParser) -> None:
    """None beyond those that every verb has."""


def run(args: argparse.Namespace, console: Console) -> int:
    with contextlib.nullcontext() if args.backend is None else use_backend(args.backend):
        report = examine()
    console.result(report)
    machine = report["machine"]
    console.out(f"minedge {report['minedge']} on Python {machine['python']}, {machine['system']} {machine['arch']}")
    console.out(f"processor   {machine['processor']}, {machine['cpus']} usable CPUs, {_memory(machine)}")
    console.out("packages    " + ", ".join(f"{name} {version}" for name, version in report["packages"].items()))
    console.out()
    rows = [
        [
            name,
            "yes" if not why else "no",
            "default" if name == report["default"] else "",
            why or report["details"].get(name, ""),
        ]
        for name, why in report["backends"].items()
    ]
    console.table(["backend", "here", "", "notes"], rows, left=4)
    console.out()
    columns = list(next(iter(report["ops"].values()), {}))
    chosen = (
        report["default"] if report["default"] in columns else f"{report['default']}:{report['kernels'].get('chosen')}"
    )
    headers = [f"{name} *" if name == chosen else name for name in columns]
    console.table(
        ["op", *headers], [[op, *where.values()] for op, where in report["ops"].items()], left=1 + len(columns)
    )
    console.out("native: the backend's own code; blas: NumPy's matrix product; numpy: the specification; *: chosen")
    console.out()
    engine = report["engine"]
    kinds = (
        f"generates text with {', '.join(engine['kinds'])} matrices; others go op by op (minedge inspect says which)"
    )
    console.out(f"engine      {kinds if engine['available'] else engine['why_not']}")
    console.out(f"advice      {report['advice']}")
    return 0


def examine() -> dict[str, Any]:
    """All findings as data."""
    import minedge
    from minedge import ops

    backends = {name: _short(why) for name, why in ops.available().items()}
    default, wrong = _default(backends)
    # One column per backend that runs here; plain "c" is one of its instruction sets, so those stand for it.
    columns = [name for name, why in backends.items() if not why and name != "c"]
    table = {op: {name: ops.get(name).origin[op] for name in columns} for op in ops.OPS}
    kernels = _kernels()
    return {
        "minedge": minedge.__version__,
        "machine": _machine(),
        "packages": _packages(),
        "backends": backends,
        "default": default,
        "kernels": kernels,
        "details": _details(kernels),
        "engine": _engine(kernels),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("MINEDGE_")},
        "ops": table,
        "advice": _advice(backends, default, wrong or kernels.get("why_not", "")),
    }


def _machine() -> dict[str, Any]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = 0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "arch": platform.machine(),
        "processor": _processor(),
        "cpus": cpus,
        "memory_bytes": memory,
        "executable": sys.executable,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return named.get("model name") or named.get("Model") or platform.processor() or "unknown"


def _packages() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "missing"
    return out


def _kernels() -> dict[str, Any]:
    """State of the compiled extension; why_not also says what is wrong with MINEDGE_THREADS or MINEDGE_ISA."""
    try:
        from minedge.ops import c_ops
    except (ImportError, AttributeError, MinedgeError) as error:
        return {"available": False, "why_not": _short(str(error))}
    if not c_ops.available():
        return {"available": False, "why_not": _short(c_ops.why_not())}
    isas = {name: bool(supported) for name, supported in c_ops.isas()}
    found = {"available": True, "isas": isas, "chosen": None, "threads": c_ops.threads()}
    try:
        return {**found, "chosen": c_ops.isa()}
    except MinedgeError as error:
        return {**found, "why_not": _short(str(error))}


def _engine(kernels: dict[str, Any]) -> dict[str, Any]:
    """Whether the engine can run here, and which kinds of matrices it knows."""
    from minedge.model.plan import PRODUCTS

    why_not = kernels.get("why_not", "")
    return {"available": not why_not, "why_not": why_not, "kinds": sorted(PRODUCTS)}


def _details(kernels: dict[str, Any]) -> dict[str, str]:
    """A note per backend that is there."""
    out = {"numpy": "the specification", "numba": "compiled at first use, then cached"}
    if kernels.get("chosen"):
        out["c"] = f"uses {kernels['chosen']}, {kernels['threads']} threads"
    return out


def _default(backends: dict[str, str]) -> tuple[str, str]:
    """(the default backend, what is wrong with it or with the variables that choose it)."""
    from minedge import ops

    name = "none"
    try:
        name = ops.default_backend()
        ops.get(name)
    except MinedgeError as error:
        return name, str(error)
    return name, ""


def _advice(backends: dict[str, str], default: str, wrong: str) -> str:
    if _short(wrong).startswith("MINEDGE_"):  # the environment chooses what is not there
        return f"{_short(wrong)}; unset it"
    if wrong and backends.get(default) != "":
        return f"MINEDGE_BACKEND={default} cannot be used ({_short(wrong)}); unset it"
    fastest = "leave out MINEDGE_BACKEND and --backend for the fastest"
    if default == "c":
        return "all is well: the C kernels are in use"
    if default.startswith("c:"):
        return f"{default} was asked for; {fastest}"
    if not backends["c"]:
        return f"the C kernels are available, but {default} was asked for; {fastest}"
    return "the C kernels are missing: install gcc or clang, then install minedge again the way it was installed"


def _memory(machine: dict[str, Any]) -> str:
    return f"{size(machine['memory_bytes'])} memory" if machine["memory_bytes"] else "memory unknown"


def _short(text: str) -> str:
    """An error's first line, without the part that repeats its backend."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    line = line.split("is not available here: ", 1)[-1]
    return "not for this processor" if line.startswith("isa: expected one of") else line
