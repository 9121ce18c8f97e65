"""Blanks cut out of sources: what a student gets, and what the solution is.

    # BEGIN SOLUTION a1.2                     raise NotImplementedError("a1.2: <the task's title>")
    out = x * rstd[..., None] * weight   ->
    # END SOLUTION

In C the markers are comments /* BEGIN SOLUTION a7.1 */ ... /* END SOLUTION */, and the blank is NOT_IMPLEMENTED("...");
Markers of other assignments vanish and what they enclose stays. `solution` is the same file with all blocks in place.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from minedge.course.content import Assignment, File
from minedge.errors import MinedgeFormatError

__all__ = ["blocks", "handout", "imports", "leaks", "signatures", "solution", "source", "source_path"]

_MARKER = re.compile(
    r"^(?P<indent>[ \t]*)(?:#|/\*) (?:BEGIN SOLUTION (?P<task>a\d+\.\d+)|END SOLUTION)(?: \*/)?[ \t]*$"
)
_SHORT = 12  # a line of fewer characters ("dx = x") gives nothing away


def source_path(assignment: Assignment, file: File) -> Path:
    """The file that a student's file is cut from."""
    if file.source.startswith("./"):
        return assignment.folder / file.source[2:]
    spec = importlib.util.find_spec(file.source)
    if spec is None or spec.origin is None:
        raise MinedgeFormatError(f"{assignment.id}: {file.name} is cut from {file.source}, which is not there")
    return Path(spec.origin)


def source(assignment: Assignment, file: File) -> str:
    """The text that a student's file is cut from."""
    return source_path(assignment, file).read_text(encoding="utf-8")


def solution(assignment: Assignment, file: File) -> str:
    """The file with every blank filled in: the source without its marker lines."""
    return "".join(line for line in source(assignment, file).splitlines(True) if not _MARKER.match(line.rstrip("\n")))


def handout(assignment: Assignment, file: File) -> str:
    """The file with the assignment's blanks."""
    titles = {task.id: task.title for task in assignment.tasks}
    c = file.name.endswith((".c", ".h"))
    out: list[str] = []
    for task, indent, lines in _pieces(source(assignment, file), file.name):
        if task is None or task.partition(".")[0] != assignment.id:
            out += lines
            continue
        if task not in titles:
            raise MinedgeFormatError(f"{file.name}: a blank is marked {task}, which {assignment.id} has no task for")
        text = f"{task}: {titles[task]}".replace("\\", "/").replace('"', "'")
        blank = f'NOT_IMPLEMENTED("{text}");' if c else f'raise NotImplementedError("{text}")'
        out.append(f"{indent}{blank}\n")
    text = "".join(out)
    hidden = {key.partition(":")[2]: new for key, new in assignment.docstrings.items() if key.startswith(file.name)}
    return _with_docstrings(text, hidden, file.name)


def blocks(assignment: Assignment, file: File) -> dict[str, list[str]]:
    """Task -> the lines that are cut out for it."""
    found: dict[str, list[str]] = {}
    for task, _, lines in _pieces(source(assignment, file), file.name):
        if task is not None and task.partition(".")[0] == assignment.id:
            found.setdefault(task, []).extend(lines)
    return found


def leaks(assignment: Assignment, texts: Iterable[str]) -> list[str]:
    """Solution lines that stand, whole, in one of `texts`. Comments and spaces do not count, nor do very short lines
    and heads of loops and branches.
    """
    lines = {_bare(line) for file in assignment.files for part in blocks(assignment, file).values() for line in part}
    lines = {line for line in lines if len(line) >= _SHORT and not line.endswith(":")}
    lines -= {_bare(line) for line in assignment.given}
    return sorted(lines & {_bare(line) for text in texts for line in text.splitlines()})


def imports(text: str) -> list[str]:
    """Names of the modules, and of what is taken out of them, that Python source imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return sorted(found)


def signatures(text: str) -> dict[str, list[str]]:
    """Names of the public functions and methods of Python source -> their parameters' names."""
    found: dict[str, list[str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                a = node.args
                every = (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg)
                found[prefix + node.name] = [arg.arg for arg in every if arg is not None]

    visit(ast.parse(text).body, "")
    return found


def _pieces(text: str, where: str) -> list[tuple[str | None, str, list[str]]]:
    """(task or None, indentation, lines) in turn; blocks of other assignments may enclose one another."""
    pieces: list[tuple[str | None, str, list[str]]] = [(None, "", [])]
    open_: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(True), 1):
        match = _MARKER.match(line.rstrip("\n"))
        if match is None:
            pieces[-1][2].append(line)
        elif match["task"]:
            if open_:
                raise MinedgeFormatError(f"{where}:{number}: BEGIN SOLUTION inside that of line {open_[-1][1]}")
            open_.append((match["task"], number))
            pieces.append((match["task"], match["indent"], []))
        else:
            if not open_:
                raise MinedgeFormatError(f"{where}:{number}: END SOLUTION without a BEGIN")
            open_.pop()
            pieces.append((None, "", []))
    if open_:
        raise MinedgeFormatError(f"{where}:{open_[-1][1]}: BEGIN SOLUTION without an END")
    return pieces


def _with_docstrings(text: str, new: dict[str, str], where: str) -> str:
    """The source with the docstrings of the named functions ("f", "Class.method") replaced."""
    lines = text.splitlines(True)
    places = []
    for name, docstring in new.items():
        body: list[ast.stmt] = ast.parse(text).body
        node: ast.AST | None = None
        for part in name.split("."):
            node = next((n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part), None)
            body = getattr(node, "body", [])
        first = body[0] if body else None
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)) or first.end_lineno is None:
            raise MinedgeFormatError(f"{where}: docstrings names {name}, which has none")
        places.append((first.lineno - 1, first.end_lineno, first.col_offset, docstring))
    for begin, end, column, docstring in sorted(places, reverse=True):
        indent = " " * column
        wrapped = textwrap.wrap(docstring, 116 - column)
        wrapped = [f'{indent}"""{wrapped[0]}', *(indent + line for line in wrapped[1:])]
        closing = ['"""\n'] if len(wrapped) == 1 else [f'\n{indent}"""\n']
        lines[begin:end] = ["\n".join(wrapped), *closing]
    return "".join(lines)


def _bare(line: str) -> str:
    """A line without indentation, trailing comment and inner spaces."""
    return re.sub(r"\s+", "", re.sub(r"\s(#|//).*$", "", f" {line}"))
