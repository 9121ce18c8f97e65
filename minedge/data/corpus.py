"""Text that every Python installation carries: the language reference and the standard library's docstrings.

Sources are parsed with `ast`; nothing is imported or run, so `this` prints no poem and `antigravity` opens no browser.
A passage is a piece of text with the place it came from. Passages come in a fixed order (module, then position in the
file), so the same interpreter always gives the same corpus.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from minedge.errors import MinedgeError

__all__ = [
    "Passage",
    "clean",
    "docstrings",
    "normalized",
    "passages",
    "read_passages",
    "split_long",
    "topics",
    "without_boilerplate",
    "without_doctests",
]

# Folders that hold tests, other people's packages, generated tables or no prose.
_SKIPPED_FOLDERS = frozenset(
    "__pycache__ __phello__ dist-packages ensurepip idle_test lib-dynload pydoc_data site-packages".split()  # noqa: SIM905
) | {"test", "tests", "turtledemo"}
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")

_MIN_CHARS, _MAX_CHARS = 40, 2000
_MIN_WORDS = 5
_MIN_LETTERS = 0.55  # share of ASCII letters among the characters that are not white space
_MAX_FOREIGN = 0.02  # share of characters outside ASCII
_LONG_LINE, _MAX_REPEATS = 20, 4  # a line this long in more passages than that is boilerplate

# Typographic characters say nothing that their ASCII forms do not, and each would cost a small vocabulary several
# bytes. (Formatted by hand.)
# fmt: off
_ASCII_FORMS = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "...",
    "\u00a0": " ", "\u200b": "", "\u2192": "->", "\u2264": "<=", "\u2265": ">=", "\u2260": "!=", "\u2022": "*",
    "\u00d7": "*", "\u2212": "-", "\u00b7": "*",
})
# fmt: on
_RULE = re.compile(r"^[\s=\-~*^#+_.|]{3,}$")  # a heading's underline, a table's frame
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_NOT_LETTERS = bytes(b for b in range(128) if not chr(b).isalpha())
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of text. `module` is a dotted path, or `topics.<key>` for the language reference."""

    text: str
    module: str
    qualname: str
    kind: str  # "module" | "class" | "function" | "topic"


def normalized(text: str) -> str:
    """Lower case with single spaces: the form in which passages are compared."""
    return " ".join(text.lower().split())


def without_doctests(lines: Iterable[str]) -> Iterator[str]:
    """Leave out doctest examples: from a line that starts with `>>>` to the next blank line, as doctest reads them.

    They are code, not prose, and the same few (`>>> import turtle`) recur so often that a model learns them by heart.
    """
    inside = False
    for line in lines:
        inside = bool(line.strip()) and (inside or line.lstrip().startswith(">>>"))
        if not inside:
            yield line


def clean(text: str) -> str | None:
    """Dedent and tidy a docstring; None if what remains is too short, not English prose, or garbled."""
    text = inspect.cleandoc(text.translate(_ASCII_FORMS).expandtabs())
    lines = [_CONTROL.sub("", line).rstrip() for line in text.split("\n")]
    text = "\n".join(line for line in without_doctests(lines) if not _RULE.match(line))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if len(text) < _MIN_CHARS or len(_WORD.findall(text)) < _MIN_WORDS:
        return None
    dense = "".join(text.split())
    ascii_part = dense.encode("ascii", "ignore")
    if len(ascii_part.translate(None, _NOT_LETTERS)) < _MIN_LETTERS * len(dense):
        return None
    return None if len(dense) - len(ascii_part) > _MAX_FOREIGN * len(dense) else text


def split_long(text: str, max_chars: int = _MAX_CHARS) -> list[str]:
    """Cut a long text at blank lines into parts of about `max_chars`: one copied paragraph must not cost a chapter."""
    parts: list[str] = []
    size = max_chars  # forces a first part
    for block in text.split("\n\n"):
        if size + len(block) > max_chars:
            parts.append(block)
            size = len(block)
        else:
            parts[-1] += "\n\n" + block
            size += 2 + len(block)
    return parts


def _stdlib_folder() -> Path:
    """The folder of the running interpreter's library sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "argparse.py").is_file():
        raise MinedgeError(
            f"the built-in corpus needs the standard library's sources, expected argparse.py in {folder}, found none "
            "(a zipped or stripped Python); use a full CPython or pass your own text with --data"
        )
    return folder


def _module_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(dotted module path, file) of every source file worth reading, in order of the module path."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(_SKIPPED_PREFIXES)]
        for file in files:
            if file.endswith(".py") and not file.startswith(_SKIPPED_PREFIXES):
                path = Path(here, file)
                parts = path.relative_to(folder).with_suffix("").parts
                if parts[-1] == "__init__":
                    parts = parts[:-1]
                if parts:
                    found.append((".".join(parts), path))
    return iter(sorted(found))


def docstrings(source: bytes) -> Iterator[tuple[str, str, str]]:
    """(qualname, kind, raw docstring) of everything a module's source documents, in the order of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules hold invalid escapes
        tree = ast.parse(source)
    yield from _walk(tree, "", "module")


def _walk(node: ast.AST, qualname: str, kind: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield qualname, kind, text
    # Definitions also stand inside if, try and with.
    for field in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, field, None) or ():
            if isinstance(child, ast.ClassDef):
                yield from _walk(child, f"{qualname}.{child.name}".lstrip("."), "class")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _walk(child, f"{qualname}.{child.name}".lstrip("."), "function")
            elif isinstance(child, (ast.If, ast.Try, ast.With, ast.ExceptHandler, ast.For, ast.While)):
                yield from _walk(child, qualname, kind)


def topics(source: bytes) -> dict[str, str]:
    """The language-reference chapters in `pydoc_data/topics.py`, read as a literal."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "topics" for t in node.targets):
            return ast.literal_eval(node.value)
    return {}


def _topic_passages(chapters: dict[str, str]) -> Iterator[Passage]:
    # Large chapters contain small ones word for word ('compound' holds 'if', 'for', 'try'): a paragraph stays only in
    # the smallest chapter that has it.
    seen: set[str] = set()
    kept: dict[str, list[str]] = {}
    for key in sorted(chapters, key=lambda k: (len(chapters[k]), k)):
        kept[key] = []
        for block in chapters[key].split("\n\n"):
            form = normalized(block)
            if form not in seen:
                seen.add(form)
                kept[key].append(block)
    for key in sorted(kept):
        text = clean("\n\n".join(kept[key]))
        for i, part in enumerate(split_long(text) if text else ()):
            tidy = clean(part)
            if tidy:
                yield Passage(tidy, f"topics.{key}", f"#{i}", "topic")


def read_passages(files: Iterable[tuple[str, bytes]]) -> Iterator[Passage]:
    """Clean passages of (module, source) pairs; a source that this interpreter cannot parse is passed over."""
    for module, source in files:
        try:
            found = list(docstrings(source))
        except (SyntaxError, ValueError, RecursionError):
            continue
        for qualname, kind, raw in found:
            text = clean(raw)
            parts = split_long(text) if text else []
            for i, part in enumerate(parts):
                tidy = clean(part)
                if tidy:
                    yield Passage(tidy, module, f"{qualname}#{i}" if len(parts) > 1 else qualname, kind)


def without_boilerplate(found: Iterable[Passage]) -> Iterator[Passage]:
    """Leave out lines that many passages share, such as "Example (for a Turtle instance named turtle):".

    A line of 20 or more characters that stands in more than four passages is learned by heart and says nothing. What is
    then too short to be a passage goes too.
    """
    kept = list(found)
    lines = [{line.strip() for line in p.text.split("\n")} for p in kept]
    counts = Counter(line for own in lines for line in own if len(line) >= _LONG_LINE)
    for passage, own in zip(kept, lines, strict=True):
        if not any(counts[line] > _MAX_REPEATS for line in own):
            yield passage
            continue
        rest = [line for line in passage.text.split("\n") if counts[line.strip()] <= _MAX_REPEATS]
        tidy = clean("\n".join(rest))
        if tidy:
            yield replace(passage, text=tidy)


@functools.lru_cache(maxsize=1)
def passages() -> tuple[Passage, ...]:
    """Every passage of the running interpreter, exact duplicates included (`splits` decides which copy stays).

    Takes two to four seconds the first time. Raises MinedgeError if the interpreter has no library sources.
    """
    folder = _stdlib_folder()
    chapters = folder / "pydoc_data" / "topics.py"
    found = list(_topic_passages(topics(chapters.read_bytes()))) if chapters.is_file() else []
    found.extend(read_passages((module, path.read_bytes()) for module, path in _module_files(folder)))
    return tuple(without_boilerplate(found))
