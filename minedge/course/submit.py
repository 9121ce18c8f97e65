"""`submit` packs what a student hands in into one file; `unpack` reads such a file, which anybody may have made.

The file is a zip archive: manifest.json and the assignment's files, nothing else. Reading never writes a path out of
the archive: it asks for the names it knows, in memory, each up to a stated size.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import re
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedge.course.check import MAX_FILE
from minedge.course.content import Assignment, File, load
from minedge.course.cut import handout
from minedge.course.start import STATE, changed_tests, read_state
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io.atomic import atomic_write
from minedge.io.jsonfile import dump_json, open_regular, parse_json

__all__ = ["Submission", "submit", "unfinished", "unpack"]

MAX_ARCHIVE = 4 << 20
MAX_ENTRIES = 200
_FORMAT = "minedge-submission-1"
_MANIFEST = "manifest.json"
_WHEN = (1980, 1, 1, 0, 0, 0)  # the same files give the same archive


@dataclass(frozen=True)
class Submission:
    """What was handed in: the assignment's id, the name the student gives, the files, and remarks on the archive."""

    assignment: str
    student: str
    files: dict[str, bytes]
    remarks: tuple[str, ...] = ()


def submit(folder: str | Path, out: str | Path | None = None, student: str | None = None) -> Path:
    """Pack the folder's files; `out` defaults to ASSIGNMENT-STUDENT.zip in the current folder. Returns its path.

    An earlier submission there is replaced; any other file is not: UsageError.
    """
    folder = Path(folder)
    state = read_state(folder)
    assignment = load(state["assignment"])
    name = state.get("student", "") if student is None else student
    if not name.strip():
        raise UsageError("student: expected the name or number that the course knows you by; give --student NAME")
    files: dict[str, bytes] = {}
    for file in assignment.files:
        opened, _ = open_regular(folder / file.name, MAX_FILE)
        with opened:
            files[file.name] = opened.read() or b""
    hashes = {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}
    manifest = {"format": _FORMAT, "assignment": assignment.id, "student": name, "sha256": hashes}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in {_MANIFEST: dump_json(manifest), **files}.items():
            info = zipfile.ZipInfo(key, _WHEN)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
    path = Path(out) if out is not None else Path(f"{assignment.id}-{safe}.zip")
    _refuse_other(path, [folder / key for key in files])
    atomic_write(path, buffer.getvalue())
    return path


def unfinished(folder: str | Path) -> list[str]:
    """What a student may want to know before handing in: tasks with blanks left, Python files that do not parse."""
    folder = Path(folder)
    assignment = load(read_state(folder)["assignment"])
    blank: set[str] = set()
    broken = []
    for file in assignment.files:
        text = (folder / file.name).read_bytes().decode(errors="replace")
        blank |= _still_blank(assignment, file, text)
        if file.name.endswith(".py"):
            try:
                ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                where = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
                text = error.msg if isinstance(error, SyntaxError) else str(error)
                broken.append(f"{file.name}{where}: {type(error).__name__}: {' '.join(text.split())[:120]}")
    tasks = [task.id for task in assignment.tasks if task.id in blank]
    return [*([f"still blank: {', '.join(tasks)}"] if tasks else []), *broken]


def _still_blank(assignment: Assignment, file: File, text: str) -> set[str]:
    """Tasks whose blanks stand in `text`. One blank is enough in Python; in C a task has one for each kind of
    processor and is done with one of them filled in.
    """
    lines = [line.strip() for line in text.splitlines()]
    given = [line.strip() for line in handout(assignment, file).splitlines()]
    found = set()
    for line in set(given) & set(lines):
        blank = re.match(r"(?:raise NotImplementedError|NOT_IMPLEMENTED)\(\"(a\d+\.\d+)", line)
        if blank and (file.name.endswith(".py") or lines.count(line) >= given.count(line)):
            found.add(blank[1])
    return found


def _refuse_other(path: Path, sources: Sequence[Path]) -> None:
    """UsageError where writing `path` would cost somebody a file that is not an earlier submission."""
    if not path.exists():
        return
    if path.is_dir():
        raise UsageError(f"{path}: a folder, expected the file to write")
    known = False
    if not any(path.samefile(source) for source in sources):
        with contextlib.suppress(MinedgeFormatError):
            unpack(path)
            known = True
    if not known:
        raise UsageError(f"{path} exists already and is not a submission; it stays as it is, choose another name")


def unpack(path: str | Path) -> Submission:
    """Read a submission: an archive, or a folder as `start` makes it. MinedgeFormatError on anything else."""
    path = Path(path)
    if path.is_dir():
        try:
            state = read_state(path)
        except UsageError as error:
            raise MinedgeFormatError(str(error)) from None
        found: dict[str, bytes] = {}
        assignment = _assignment(state["assignment"], path)
        for file in assignment.files:
            if (path / file.name).is_file() and not (path / file.name).is_symlink():
                opened, _ = open_regular(path / file.name, MAX_FILE)
                with opened:
                    found[file.name] = opened.read() or b""
        return Submission(assignment.id, state.get("student", ""), found, tuple(changed_tests(path, assignment)))
    opened, size = open_regular(path, MAX_ARCHIVE)
    with opened:
        data = opened.read(size + 1) or b""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, path)
    except MinedgeFormatError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        text = " ".join(str(error).split())[:200]
        raise MinedgeFormatError(f"{path}: not a readable submission: {type(error).__name__}: {text}") from None


def _read(archive: zipfile.ZipFile, path: Path) -> Submission:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise MinedgeFormatError(f"{path}: {len(entries)} entries, expected at most {MAX_ENTRIES}")
    names = [entry.filename for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MinedgeFormatError(f"{path}: entry {twice[0]!r} occurs twice")
    by_name = {entry.filename: entry for entry in entries}
    if _MANIFEST not in by_name:
        raise MinedgeFormatError(f"{path}: no {_MANIFEST}; it is not what minedge course submit writes")
    manifest = parse_json(_content(archive, by_name[_MANIFEST], path), f"{path}: {_MANIFEST}")
    texts = [manifest.get(key) for key in ("format", "assignment", "student")]
    if texts[0] != _FORMAT or not all(isinstance(text, str) for text in texts):
        raise MinedgeFormatError(f"{path}: {_MANIFEST}: expected format {_FORMAT!r}, assignment and student")
    assignment = _assignment(str(texts[1]), path)
    wanted = [file.name for file in assignment.files]
    files = {name: _content(archive, by_name[name], path) for name in wanted if name in by_name}
    odd = sorted(set(names) - {*wanted, _MANIFEST, STATE})
    remarks: tuple[str, ...] = (f"ignored in the archive: {', '.join(map(repr, odd[:5]))}",) if odd else ()
    said = manifest.get("sha256")
    if isinstance(said, dict):
        changed = [name for name, data in files.items() if said.get(name) != hashlib.sha256(data).hexdigest()]
        remarks += tuple(f"{name} was changed after submit packed it" for name in changed)
    return Submission(assignment.id, str(texts[2])[:200], files, remarks)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bytes:
    """An entry's bytes, read up to the limit whatever size it claims."""
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise MinedgeFormatError(f"{path}: entry {entry.filename!r} is not a regular file (a link or a device)")
    if entry.flag_bits & 1:
        raise MinedgeFormatError(f"{path}: entry {entry.filename!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MinedgeFormatError(f"{path}: entry {entry.filename!r} is compressed in a way that is not read here")
    with archive.open(entry) as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise MinedgeFormatError(f"{path}: entry {entry.filename!r} is larger than {MAX_FILE:,} bytes")
    return data


def _assignment(name: Any, path: Path) -> Assignment:
    try:
        return load(str(name)[:40])
    except UsageError as error:
        raise MinedgeFormatError(f"{path}: {error}") from None
