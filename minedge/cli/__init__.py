"""The command line. Each verb is one file here, loaded when it is called: `minedge --help` imports none of them."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from minedge.errors import Interrupted, MinedgeError, UsageError

__all__ = ["VERBS", "main"]

# Verb -> what it does. The module of the same name has DESCRIPTION, EXAMPLES, add_options(parser), run(args, console).
VERBS: dict[str, str] = {
    "tour": "the whole chain on real text, measured as it goes",
    "train": "fine-tune a model (full, LoRA, MeZO), or train one from scratch",
    "generate": "continue a prompt",
    "chat": "talk with a model, line by line",
    "eval": "loss, perplexity, bits per byte; accuracy on a labelled task",
    "quantize": "pack weight matrices into 4, 8 or 16 bits",
    "prune": "set the smallest weights to zero and store what is left",
    "fuse": "merge a LoRA adapter into its model",
    "convert": "between file formats: Hugging Face, GGUF, minedge; llama2.c in",
    "inspect": "show what a model folder or file holds",
    "plan": "predict peak memory per training method",
    "tutorial": "learn the methods by running them, in notebooks",
    "course": "assignments: hand out, check, submit, grade",
    "bench": "measure this machine, and minedge beside other libraries",
    "doctor": "show backends, kernels and versions on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 fine, 1 our fault, 2 usage, 3 bad file, 4 diverged, 5 points missing,
    130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows '?', not a traceback
    where = "minedge"
    try:
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        if not words or words[0] in ("--help", "-h"):
            print(_overview())
            return 0 if words else 2
        if words[0] in ("--version", "-V"):
            import minedge

            print(f"minedge {minedge.__version__}")
            return 0
        where = f"minedge {words[0]}" if words[0] in VERBS else where
        return _run(words[0], words[1:])
    except SystemExit as stop:  # argparse's --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print(f"{where}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, a pager) has gone. The interpreter's last flush needs a place to go; 141 is SIGPIPE's code.
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        said = "" if isinstance(error, Interrupted) else "error: "
        print(f"{where}: {said}{_one_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1 if not isinstance(error, OSError) else 3)


def _run(verb: str, words: list[str]) -> int:
    from minedge.cli.console import Console
    from minedge.cli.parser import Parser, in_options
    from minedge.config import did_you_mean

    if verb not in VERBS:
        what = "option" if verb.startswith("-") else "verb"
        if verb.partition("=")[0] in ("--json", "--quiet", "--debug", "--backend", "--threads"):
            called = next((word for word in words if word in VERBS), "VERB")
            raise UsageError(f"option {verb!r} belongs after the verb: minedge {called} ... {verb}; see minedge --help")
        near = did_you_mean(verb, ["--help", "--version"] if what == "option" else list(VERBS))
        raise UsageError(f"unknown {what} {verb!r}{near}; see minedge --help")
    module = importlib.import_module(f"minedge.cli.{verb}")
    if hasattr(module, "parser"):  # course: one for each of its actions
        parser = module.parser(words)
    else:
        parser = Parser(verb, module.DESCRIPTION, module.EXAMPLES)
        module.add_options(parser)
    expand = getattr(module, "expand", None)  # train puts a config file's options in front of the words
    args = parser.read(expand(parser, words) if expand else words)
    own_threads = getattr(module, "OWN_THREADS", False)  # bench: for the processes that it measures
    typed = partial(in_options, parser=parser, called=getattr(module, "CALLED", {}))
    try:
        with _threads(None if own_threads else args.threads), _short_warnings(verb, typed):
            return module.run(args, Console(args.json, args.quiet))
    except UsageError as error:
        raise UsageError(typed(str(error))) from error


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Set the number of threads for libraries not loaded yet (through their variables) and for those that are."""
    if n is None:
        yield
        return
    names = ("MINEDGE_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    if "numba" in sys.modules:  # it refuses another NUMBA_NUM_THREADS once its threads run
        del before["NUMBA_NUM_THREADS"]
        numba = sys.modules["numba"]
        numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
    os.environ.update(dict.fromkeys(before, str(n)))
    try:
        from minedge.ops import c_ops
    except ImportError:
        c_ops = None  # type: ignore[assignment]
    loaded = c_ops is not None and c_ops.available()
    threads = c_ops.threads() if loaded else 0
    if loaded:
        c_ops.set_threads(n)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if loaded:
            c_ops.set_threads(threads)


@contextmanager
def _short_warnings(verb: str, typed: Callable[[str], str] = str) -> Iterator[None]:
    """Warnings as one line each, without the source line that raised them; with --quiet too: nobody asked for less
    than what is wrong.
    """

    def show(message: Any, category: type[Warning], *_: Any) -> None:
        if issubclass(category, (UserWarning, RuntimeWarning)):
            print(f"minedge {verb}: warning: {typed(_one_line(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _one_line(error: object) -> str:
    """An error as one line; a surprise names its type, so that a report of it is worth something."""
    if isinstance(error, Exception) and not isinstance(error, (MinedgeError, Warning)):
        if isinstance(error, OSError) and error.strerror:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}"
        if isinstance(error, MemoryError):
            return f"out of memory ({error or 'no details'}); take a smaller batch or model, and see minedge plan"
        return f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"
    from minedge.cli.text import printable

    return printable(" ".join(str(error).split()))


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb.ljust(width)}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: minedge VERB [options]\n\n"
        "Fine-tune, compress and run small language models on the CPU at hand.\n\n"
        f"verbs:\n{lines}\n\n"
        "minedge VERB --help shows a verb's options with examples; minedge --version the version.\n"
        "exit codes: 0 fine, 1 a fault of minedge, 2 usage, 3 bad file, 4 diverged, 5 points missing\n"
        "(course check), 130 interrupted"
    )
