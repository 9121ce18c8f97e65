"""The child process that holds a student's code: it imports the files, then answers calls until its pipe closes.

It runs with limits that the kernel keeps (processor time, memory, file size, processes) and behind a fence that Python
keeps: an audit hook that refuses sockets, programs, signals, and files outside the temporary folder and the
interpreter's own. The limits hold for any code. The fence stops Python code that does not set out to climb it; it is no
substitute for a container where submissions may be hostile.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import json
import os
import struct
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import numpy as np

from minedge.course.cut import imports
from minedge.course.watch import Watch
from minedge.course.wire import MAX_MESSAGE, pack, unpack

__all__ = ["main"]

MAX_PRINTED = 2000  # characters a call may print and have shown
_REFUSED = (
    "socket.", "subprocess.", "ctypes.dlopen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.kill", "os.killpg", "pty.", "ftplib.", "smtplib.", "urllib.",
)  # fmt: skip
_CHANGES = frozenset(
    ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
)


class FenceError(PermissionError):
    """Something a student's code may not do here."""


class MissingError(AttributeError):
    """The student's file lacks a name that the handout has."""


class SetupError(Exception):
    """What an assignment's `setup` could not do with the student's files, in its own words."""


class _Capped(io.TextIOBase):
    """Where prints go: the first characters are kept, the rest is dropped."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += str(text)[: MAX_PRINTED - len(self.text)]
        return len(text)

    def take(self) -> str:
        text, self.text = self.text, ""
        return text


class _Named:
    """A student's module; a missing name is an error that says so."""

    def __init__(self, module: types.ModuleType, file: str):
        self._module, self._file = module, file

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError:
            raise MissingError(f"{self._file}: no {name}; keep the names that the handout has") from None


def main(settings: str) -> None:
    """Serve. `settings` is JSON: folder, files (name -> path), homes (name -> path of the library's file), calls
    (path), requests and answers (descriptors), limits.
    """
    told = json.loads(settings)
    folder, limits = Path(told["folder"]), told["limits"]
    files = {name: Path(path) for name, path in told["files"].items()}
    answers = os.fdopen(told["answers"], "wb", buffering=0)
    _limit(limits)
    printed = _Capped()
    sys.stdout = sys.stderr = printed
    student = types.SimpleNamespace(files=files)
    watch = Watch(files, told["homes"])
    first: dict[str, Any] = {"ok": True, "signatures": {}, "imports": []}
    try:
        calls = _module("calls", Path(told["calls"]))
        setup = getattr(calls, "setup", None)
        if setup:
            try:
                setup(student, files)
            except RuntimeError as error:  # said for the student: the C file does not compile, there is no compiler
                raise SetupError(str(error)) from error
        _raise_fence(folder)
        for name in (name for name in files if name.endswith(".py")):
            module = _module(Path(name).stem, files[name], f"student_{Path(name).stem}")
            first["imports"] += imports(files[name].read_text(encoding="utf-8"))[:200]
            first["signatures"][name] = _signatures(module)
            watch.imported(name, module)
            setattr(student, Path(name).stem, _Named(module, name))
    except BaseException as error:
        first = _failure(error, files)
    first["printed"], first["taken"] = printed.take(), sorted(watch.taken)
    answers.write(pack(first))
    if not first["ok"]:
        return
    with os.fdopen(told["requests"], "rb", buffering=0) as requests:
        while True:
            head = _exactly(requests, 8)
            if head is None:
                return
            body = _exactly(requests, struct.unpack("<Q", head)[0])
            if body is None:
                return
            answer = _answer(body, calls, student, files, watch)
            answer["printed"], answer["taken"] = printed.take(), sorted(watch.taken)
            with contextlib.suppress(Exception):
                sys.stdout = sys.stderr = printed  # the code may have put its own there
            try:
                packed = pack(answer)
            except (TypeError, ValueError, RecursionError) as error:
                packed = pack({"ok": False, "kind": "answer", "text": f"returned {error}, expected arrays or numbers"})
            answers.write(packed)


def _answer(body: bytes, calls: types.ModuleType, student: Any, files: dict[str, Path], watch: Watch) -> dict[str, Any]:
    request, kept = unpack(body, "request"), unpack(body, "request")
    try:
        with watch.call(request["call"]):
            value = getattr(calls, request["call"])(student, **request["args"])
        changed = sorted(key for key, arg in request["args"].items() if not _same(arg, kept["args"][key]))
        return {"ok": True, "value": value, "changed": changed}
    except BaseException as error:
        failure = _failure(error, files)
        return {**failure, "where": failure["where"] or f"calling {request['call']}"}


def _failure(error: BaseException, files: dict[str, Path]) -> dict[str, Any]:
    """What went wrong, in words, and where in the student's files."""
    kinds = (
        (NotImplementedError, "blank"), (MemoryError, "memory"), (FenceError, "fence"), (MissingError, "missing"),
        (SetupError, "setup"),
    )  # fmt: skip
    kind = next((word for cls, word in kinds if isinstance(error, cls)), "raised")
    names = {str(path): name for name, path in files.items()}
    where = ""
    with contextlib.suppress(Exception):
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename in names:
                where = f"{names[frame.filename]} line {frame.lineno}"
    if isinstance(error, SyntaxError):
        kind, where = "syntax", f"{names.get(str(error.filename), error.filename)} line {error.lineno}"
    try:
        text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())[:300]
    except BaseException:
        text = "(its text cannot be shown)"
    return {"ok": False, "kind": kind, "type": type(error).__name__[:80], "text": text, "where": where}


def _module(stem: str, path: Path, name: str | None = None) -> types.ModuleType:
    name = name or f"minedge_course_{stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _signatures(module: types.ModuleType) -> dict[str, list[str]]:
    """Public functions and methods -> parameter names, as `cut.signatures` finds them in a text."""
    found: dict[str, list[str]] = {}

    def visit(names: dict[str, Any], prefix: str) -> None:
        for name, value in names.items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value) and not prefix:
                visit(dict(vars(value)), f"{name}.")
            elif inspect.isfunction(value):
                with contextlib.suppress(TypeError, ValueError):
                    found[prefix + name] = list(inspect.signature(value).parameters)

    visit(dict(vars(module)), "")
    return dict(list(found.items())[:500])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b)


def _exactly(stream: Any, count: int) -> bytes | None:
    if count > MAX_MESSAGE:
        return None
    parts = bytearray()
    while len(parts) < count:
        part = stream.read(count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _limit(limits: dict[str, Any]) -> None:
    import resource

    wanted = {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_CPU: int(limits["total_seconds"]) + 1,
        resource.RLIMIT_FSIZE: limits["file_mb"] << 20,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_NPROC: limits["processes"],
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit (macOS and memory)
            resource.setrlimit(what, (most, most))


def _raise_fence(folder: Path) -> None:
    """From here on the process may not leave `folder`; there is no way back. Audit hooks cannot be removed."""
    own = os.path.realpath(folder)
    places = {sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"}
    readable = (own, "/proc/self", *(os.path.realpath(place) for place in (*places, *filter(None, sys.path))))
    writable = (own, os.path.realpath("/dev/null"))
    busy = False  # what the hook does itself is not the student's

    def within(path: Any, places: tuple[str, ...]) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return any(real == place or real.startswith(place + os.sep) for place in places)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if event.startswith(_REFUSED):
                raise FenceError(f"{event} is not allowed in an assignment")
            if event == "open" and isinstance(args[0], (str, bytes)):
                flags = args[2] if isinstance(args[2], int) else 0
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
                if not within(args[0], writable if writes else readable):
                    raise FenceError(f"opening {os.fsdecode(args[0])[:100]} is not allowed in an assignment")
            elif event in _CHANGES and isinstance(args[0], (str, bytes)) and not within(args[0], (own,)):
                raise FenceError(f"{event} outside the own folder is not allowed in an assignment")
        finally:
            busy = False

    sys.addaudithook(hook)
