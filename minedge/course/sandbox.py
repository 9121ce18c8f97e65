"""A student's code in a process of its own (worker.py), seen from outside: calls go in, plain values or one `CallError`
come out.

The process has its own temporary folder and session, an environment of a few harmless variables, and limits on time,
memory, files and processes. A call that takes too long or crashes ends the process; the next call starts another. POSIX
only, since that is where the limits are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minedge.course.content import Limits
from minedge.course.wire import MAX_MESSAGE, pack, unpack
from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["CallError", "Student"]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from minedge.course.worker import main; main(sys.argv[2])"
)
_START_SECONDS = 15.0  # for the interpreter and NumPy; the student's own module code counts as well
_KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "CC")


@dataclass
class CallError(Exception):
    """Why a call has no answer. kind: blank (NotImplementedError), raised, missing, syntax, setup, timeout, crash,
    memory, fence, answer, stopped.
    """

    kind: str
    text: str
    where: str = ""
    type: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class Student:
    """The student's files, ready to be called. A context manager; `call` may raise `CallError`.

    files: name -> text as it was handed in. calls: the assignment's calls.py. homes: file name -> the library's file
    that it was cut from; `taken` lists what that answered in the student's place.
    """

    def __init__(self, files: Mapping[str, bytes], calls: Path, limits: Limits, homes: Mapping[str, str] | None = None):
        if os.name != "posix":
            raise UsageError("course: checking runs code under limits that Linux, macOS and WSL have; use one of them")
        self.limits, self._calls, self._homes = limits, calls, dict(homes or {})
        self.changed: list[str] = []  # arguments that the last call changed in place
        self.printed = ""
        self.signatures: dict[str, dict[str, list[str]]] = {}
        self.imports: list[str] = []
        self.taken: set[str] = set()
        self._timeouts = 0
        self._deadline = time.monotonic() + limits.total_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._fatal: CallError | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="minedge-course-"))
        self._files = {}
        for name, data in files.items():
            path = self._folder / name
            path.write_bytes(data)
            self._files[name] = str(path)

    def __enter__(self) -> Student:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def twin(self) -> Student | None:
        """The same files in another process, to be called at the same time; None where there is one processor only."""
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if processors < 2:
            return None
        files = {name: Path(path).read_bytes() for name, path in self._files.items()}
        return type(self)(files, self._calls, self.limits, self._homes)

    def start(self) -> None:
        """Import the files. CallError where that fails; every later call then raises the same."""
        if self._fatal is not None:
            raise self._fatal
        if self._process is not None:
            return
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        told = {
            "folder": str(self._folder), "files": self._files, "calls": str(self._calls), "limits": asdict(self.limits),
            "homes": self._homes, "requests": requests, "answers": answers,
        }  # fmt: skip
        home = str(Path(__file__).resolve().parents[2])
        path = json.dumps([*(entry for entry in sys.path if entry and not self._is_inside(entry)), home])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _START, path, json.dumps(told)],
            env=self._environment(), cwd=self._folder, pass_fds=(requests, answers), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(requests)
        os.close(answers)
        try:
            first = self._answer(time.monotonic() + max(_START_SECONDS, self.limits.seconds), "importing the files")
        except CallError as error:
            self._fatal = error
            raise
        if not first.get("ok"):
            self._stop()
            self._fatal = _call_error(first)
            raise self._fatal
        with contextlib.suppress(TypeError, AttributeError):
            self.signatures = {str(file): dict(found) for file, found in first["signatures"].items()}
            self.imports = [str(name) for name in first["imports"]]

    def call(self, name: str, **args: Any) -> dict[str, Any]:
        """What calls.py's `name` returns on these arguments. CallError if it does not return a dict of values."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise CallError("stopped", f"not run: the {self.limits.total_seconds:g} s for all calls are used up")
        self.start()
        message = pack({"call": name, "args": args})
        seconds = min(self.limits.seconds if self._timeouts < 2 else self.limits.seconds / 5, left)
        deadline = time.monotonic() + seconds
        try:
            self._send(message, deadline)
            answer = self._answer(deadline, name)
        except BrokenPipeError:
            raise self._ended(name) from None
        except CallError as error:
            self._timeouts += error.kind == "timeout"
            raise
        if not answer.get("ok"):
            raise _call_error(answer)
        value, changed = answer.get("value"), answer.get("changed", [])
        if not isinstance(value, dict):
            raise CallError("answer", f"{name} returned {type(value).__name__}, expected named values")
        self.changed = [str(key) for key in changed] if isinstance(changed, list) else []
        return value

    def _send(self, message: bytes, deadline: float) -> None:
        os.set_blocking(self._requests, False)
        view = memoryview(message)
        while view:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([], [self._requests], [], wait)[1]:
                raise self._timed_out("reading its arguments")
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(self._requests, view) :]

    def _answer(self, deadline: float, doing: str) -> dict[str, Any]:
        head = self._read(8, deadline, doing)
        (length,) = struct.unpack("<Q", head)
        if length > MAX_MESSAGE:
            self._stop()
            raise CallError("answer", f"{doing}: an answer of {length:,} bytes, at most {MAX_MESSAGE:,} are read")
        try:
            answer = unpack(self._read(length, deadline, doing))
        except MinedgeFormatError as error:
            self._stop()
            raise CallError("answer", f"{doing}: {error}") from None
        if not isinstance(answer, dict):
            self._stop()
            raise CallError("answer", f"{doing}: no readable answer")
        said = str(answer.get("printed", "")).replace(f"{self._folder}{os.sep}", "")
        self.printed = (self.printed + said)[:2000]
        taken = answer.get("taken", [])
        self.taken.update(str(name)[:80] for name in (taken if isinstance(taken, list) else [])[:50])
        return answer

    def _read(self, count: int, deadline: float, doing: str) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([self._answers], [], [], wait)[0]:
                raise self._timed_out(doing)
            part = os.read(self._answers, min(count - len(parts), 1 << 20))
            if not part:
                raise self._ended(doing)
            parts += part
        return bytes(parts)

    def _timed_out(self, doing: str) -> CallError:
        self._stop()
        return CallError("timeout", f"{doing} did not end within its time; is there an endless loop?")

    def _ended(self, doing: str) -> CallError:
        """The process is gone: say how."""
        process, code = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=2)
        self._stop()
        if code is not None and code < 0:
            if code in (-signal.SIGXCPU, -signal.SIGKILL):
                return CallError("timeout", f"{doing} was stopped: more processor time or memory than allowed")
            with contextlib.suppress(ValueError):
                return CallError("crash", f"{doing} crashed the process ({signal.Signals(-code).name})")
        return CallError("crash", f"{doing} ended the process (exit code {code})")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for descriptor in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the session was made for it, so its own children go too
        process.wait()

    def _environment(self) -> dict[str, str]:
        """Nothing of the caller's but what an interpreter needs: tokens and passwords live in environments."""
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
        threads = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MINEDGE_THREADS")
        own = str(self._folder)
        return {
            **kept, **dict.fromkeys(threads, "1"), "HOME": own, "TMPDIR": own, "MINEDGE_BACKEND": "numpy",
            "NUMBA_CACHE_DIR": own,
        }  # fmt: skip

    def _is_inside(self, entry: str) -> bool:
        return Path(entry).resolve() == self._folder.resolve()


def _call_error(answer: Mapping[str, Any]) -> CallError:
    kind, text = str(answer.get("kind", "answer"))[:20], str(answer.get("text", ""))[:400]
    where, name = str(answer.get("where", ""))[:200], str(answer.get("type", ""))[:80]
    if kind in ("raised", "syntax"):
        text = f"{name}: {text}"
    elif kind == "memory":
        text = f"more memory than allowed ({text or 'MemoryError'})"
    return CallError(kind, text, where, name)
