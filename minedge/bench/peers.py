"""The other libraries: what they are called, what they need, whether an interpreter has them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

from minedge.config import did_you_mean
from minedge.errors import UsageError

__all__ = ["PEERS", "missing", "parse_peers", "require"]

# Peer -> importable modules that it needs, with the package that pip installs for each.
PEERS: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "torch": {"torch": "torch", "transformers": "transformers"},
    "peft": {"torch": "torch", "transformers": "transformers", "peft": "peft"},
    "onnxruntime": {"onnxruntime": "onnxruntime", "onnx": "onnx"},
    "llama.cpp": {"llama_cpp": "llama-cpp-python"},
})  # fmt: skip
_ALIASES = {"pytorch": "torch", "llama-cpp-python": "llama.cpp", "llama_cpp": "llama.cpp", "llamacpp": "llama.cpp"}
_LOOK = (
    "import importlib.util, json, sys; "
    "print(json.dumps([m for m in sys.argv[1:] if importlib.util.find_spec(m) is None]))"
)


def parse_peers(text: str) -> tuple[str, ...]:
    """'torch,llama.cpp' or 'all' -> names. Raises `UsageError` for one that is not known, with the nearest."""
    if text.strip() == "all":
        return tuple(PEERS)
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    names = [_ALIASES.get(word, word) for word in words]
    for word, name in zip(words, names, strict=True):
        if name not in PEERS:
            near = did_you_mean(word, [*PEERS, "all"])
            raise UsageError(f"--vs: expected all, or names out of {', '.join(PEERS)}, got {word!r}{near}")
    if not names:
        raise UsageError(f"--vs: expected all, or names out of {', '.join(PEERS)}, got nothing")
    return tuple(name for name in PEERS if name in names)


def missing(names: tuple[str, ...], python: str = "") -> dict[str, str]:
    """Peer -> 'not installed: pip install ...', for those that the interpreter `python` lacks.

    Raises `UsageError` where `python` is no interpreter that runs.
    """
    modules = sorted({module for name in names for module in PEERS[name]})
    program = python or sys.executable
    try:
        done = subprocess.run([program, "-c", _LOOK, *modules], capture_output=True, text=True, timeout=60, check=True)
        absent = set(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UsageError(f"--peer-python: expected a Python interpreter, {program!r} does not run: {error}") from None
    out = {}
    for name in names:
        packages = [package for module, package in PEERS[name].items() if module in absent]
        if packages:
            out[name] = f"not installed: pip install {' '.join(packages)}"
    return out


def require(names: tuple[str, ...], absent: Mapping[str, str], all_of_them: bool) -> None:
    """Raise `UsageError` for a peer that was asked for by name and is not there."""
    if absent and not all_of_them:
        name = next(name for name in names if name in absent)
        raise UsageError(
            f"--vs: {name} is {absent[name]} (or name an interpreter that has it with --peer-python; "
            "--vs all leaves out what is missing, and says so)"
        )
