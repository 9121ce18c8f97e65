"""Tokenizers and chat templates opened where they can do no harm: in a child process with little memory and time.

The tokenizers library is compiled code and a template is a program; both come out of files that anybody can have made.
A crash, a hang or a huge allocation ends the child, and becomes one line here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from minedge.errors import MinedgeError, MinedgeFormatError

__all__ = ["MEMORY", "SECONDS", "child", "open_tokenizer"]

MEMORY = 3 << 30  # bytes of address space; a vocabulary of 256,000 tokens takes a third of it
SECONDS = 60  # of processor time; the clock's limit is twice that
_MAX_ANSWER = 64 << 10
# The current folder is not searched for modules: it may be the model's own.
_START = """import sys
sys.path[:] = [*(p for p in sys.path if p), sys.argv[1]]
from minedge.cli.limited import child
child(*sys.argv[2:])"""


def open_tokenizer(path: Path) -> dict[str, Any] | None:
    """What the tokenizer of a model is, with its template's verdict; None where there is none.

    Raises MinedgeFormatError where it cannot be opened, whatever the reason.
    """
    home = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", _START, home, str(path), str(MEMORY), str(SECONDS)]
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    env = {**os.environ, **single, "TOKENIZERS_PARALLELISM": "false", "PYTHONFAULTHANDLER": ""}
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * SECONDS)
    except subprocess.TimeoutExpired:
        raise MinedgeFormatError(f"{path}: tokenizer: opening it did not end within {2 * SECONDS} s") from None
    answer = None
    with contextlib.suppress(ValueError):
        answer = json.loads(done.stdout[:_MAX_ANSWER])
    if isinstance(answer, dict) and done.returncode == 0:
        if "error" in answer:
            raise MinedgeFormatError(str(answer["error"]))
        return answer.get("tokenizer")
    raise MinedgeFormatError(f"{path}: tokenizer: {_ending(done.returncode, done.stderr)}")


def _ending(code: int, stderr: bytes) -> str:
    """Why a child ended that did not answer."""
    import signal

    if code == -getattr(signal, "SIGXCPU", 24) or code == -getattr(signal, "SIGKILL", 9):
        return f"opening it was stopped: more than {SECONDS} s of processor time or too much memory"
    if b"memory" in stderr.lower():
        return f"opening it takes more than {MEMORY >> 20:,} MB of memory"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the tokenizers library crashed on it ({signal.Signals(-code).name})"
    last = stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    return f"it cannot be opened (exit code {code}: {last[0][:200]})"


# ---------------------------------------------------------------- in the child


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none; the clock's limit stays
        return
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
            resource.setrlimit(what, (most, most))


def _read(path: Path) -> Any:
    """The tokenizer of a model folder, a GGUF file or a llama2.c file, or None."""
    from minedge.data.tokenizer import Tokenizer

    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists() or len(ggufs) != 1:
            return Tokenizer.load(path) if (path / "tokenizer.json").exists() else None
        path = ggufs[0]
    if path.suffix == ".json":
        return Tokenizer.load(path)
    sized = re.fullmatch(r"tok(\d{1,9})\.bin", path.name)
    if sized:
        from minedge.io.llama2c import read_tokenizer as read_llama2c

        return read_llama2c(path, int(sized[1]))
    with path.open("rb") as file:
        head = file.read(28)
    if head.startswith(b"GGUF"):
        from minedge.io.gguf import GGUFFile
        from minedge.io.gguf_tokenizer import read_tokenizer

        with GGUFFile(path) as gguf:
            return read_tokenizer(gguf, vocab_size=1 << 31)
    if len(head) == 28 and path.suffix == ".bin":
        from minedge.io.llama2c import tokenizer_beside

        return tokenizer_beside(path, abs(struct.unpack("<7i", head)[5]))
    return None


def _describe(tokenizer: Any) -> dict[str, Any]:
    """Sizes and names, and whether the template runs on a small conversation."""
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    told: dict[str, Any] = {"tokens": len(ids), "largest_id": max(ids, default=0), "eos_token": tokenizer.eos_token}
    tokenizer.decode(tokenizer.encode("Is it whole? 1 + 1 = 2, \u00e9\u4e2d\n"))
    if tokenizer.chat is None:
        told["chat_template"] = "none"
        return told
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    try:
        tokenizer.chat.render(talk[:1], add_generation_prompt=True)
        tokenizer.chat.render(talk)
        told["chat_template"] = f"{len(tokenizer.chat_template):,} characters, renders"
    except MinedgeError as error:
        told["chat_template"] = f"{len(tokenizer.chat_template):,} characters, but {error}"
    return told


def child(path: str, memory: str, seconds: str) -> None:
    """Open, describe, and print the answer as JSON."""
    _limit(int(memory), int(seconds))
    answer: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent's own reading says them
            tokenizer = _read(Path(path))
        answer["tokenizer"] = None if tokenizer is None else _describe(tokenizer)
    except MinedgeError as error:
        answer["error"] = str(error)
    except MemoryError:
        answer["error"] = f"{path}: tokenizer: opening it takes more than {int(memory) >> 20:,} MB of memory"
    except (Exception, RecursionError) as error:
        answer["error"] = f"{path}: tokenizer: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    sys.stdout.write(json.dumps(answer))
