"""Writes that are there completely or not at all.

A file or folder is written under a temporary name beside its target (so on the same disk), flushed to the disk, renamed
over the target, and the folder that holds it is flushed too. POSIX promises that a rename is seen either before or
after, never halfway; a process that dies at any moment, or a disk that fills up, leaves the old state in place.

Temporary names carry the process that made them, so whoever writes next removes what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from minedge.errors import MinedgeError, UsageError
from minedge.io.owned import why_kept

__all__ = ["atomic_dir", "atomic_write", "fsync_dir", "os_errors", "recover_dir", "remove_stale"]

_HINTS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file is larger than this system allows (see ulimit -f)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission; choose a folder you may write to",
    errno.EPERM: "no permission; choose a folder you may write to",
    errno.EIO: "the device reported an input/output error; check the disk",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, a file was expected",
    errno.ENAMETOOLONG: "the name is too long",
}


# ---------------------------------------------------------------- test hooks

_crash_counts: Counter[str] = Counter()


def _crash_point(name: str) -> None:
    """Test hook: a place inside a save where a test may stop the process. Does nothing unless MINEDGE_CRASH_AT is set.

    MINEDGE_CRASH_AT="write:rename" kills this process (SIGKILL: no cleanup runs, as in a power cut) the first time the
    point of that name is reached, "write:rename:3" the third time. Tests may also replace this function to raise an
    OSError.
    """
    wanted = os.environ.get("MINEDGE_CRASH_AT")
    if not wanted:
        return
    point, _, count = wanted.rpartition(":")
    if not count.isdigit():
        point, count = wanted, "1"
    _crash_counts[name] += 1
    if point == name and _crash_counts[name] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- errors


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str], doing: str = "write") -> Iterator[None]:
    """Turn an OSError (disk full, read-only, input/output error, ...) inside the block into one clear MinedgeError."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, error.strerror or str(error))
        raise MinedgeError(f"cannot {doing} {os.fspath(path)}: {hint}; what was there before is unchanged") from error


# ---------------------------------------------------------------- temporary names


def _start_time(pid: int) -> str:
    """The kernel's start time of a process: a number that tells a living process from one that got its recycled id
    later.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0"  # no /proc (macOS): the id alone has to do
    return stat.rpartition(")")[2].split()[19]  # field 22; the name in field 2 may hold spaces


def _alive(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it exists and belongs to someone else
    return start == "0" or _start_time(pid) == start


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"


_TOKEN = re.compile(
    r"\.(?P<target>.+)\.(?P<role>tmp|old)-(?P<host>\w+)-(?P<pid>\d+)-(?P<start>\d+)-(?P<serial>[0-9a-f]+)"
)


def _sibling(target: Path, role: str) -> Path:
    token = f"{_host()}-{os.getpid()}-{_start_time(os.getpid())}-{os.urandom(4).hex()}"
    return target.with_name(f".{target.name}.{role}-{token}")


def _delete(path: Path) -> None:
    if os.path.isdir(path) and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_stale(folder: str | os.PathLike[str]) -> list[str]:
    """Delete the temporaries that killed processes of this machine left in `folder`, and return their names.

    Where such a process died between moving an old folder away and moving the new one in, the old folder is moved back
    first.
    """
    folder, removed = Path(folder), []
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            match = _TOKEN.fullmatch(entry)
            if match is None or match["host"] != _host() or _alive(int(match["pid"]), match["start"]):
                continue
            if match["role"] == "old" and not (folder / match["target"]).exists():
                os.rename(folder / entry, folder / match["target"])
            else:
                _delete(folder / entry)
                removed.append(entry)
    return removed


def recover_dir(path: str | os.PathLike[str]) -> None:
    """Before reading folder `path`: if it is missing because its replacement was killed midway, move the old one
    back.
    """
    path = Path(path)
    if not os.path.exists(path):
        remove_stale(path.parent)


# ---------------------------------------------------------------- flushing


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk, so that a rename inside it survives a power cut."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened for this
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            _fsync_file(Path(root, file))
        fsync_dir(root)


# ---------------------------------------------------------------- one file


def atomic_write(path: str | os.PathLike[str], data: bytes | Callable[[Path], None]) -> None:
    """Write a file so that it holds either its old or its complete new content; parents are made as needed.

    `data` is the content, or a function that writes the file whose path it is given. An OSError becomes a MinedgeError;
    on any error or interruption the temporary is removed and the old file stays.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UsageError(f"cannot write {path}: it is a folder, a file name was expected")
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent)
        folder = _sibling(path, "tmp")
        folder.mkdir()  # a folder, because a function may make temporaries of its own beside the file it writes
        temporary = folder / path.name
        try:
            if callable(data):
                data(temporary)
            else:
                _write_bytes(temporary, data)
            _crash_point("write:flush")
            _fsync_file(temporary)
            _crash_point("write:rename")
            os.replace(temporary, path)
            _crash_point("write:renamed")
            fsync_dir(path.parent)
        finally:
            with contextlib.suppress(OSError):
                _delete(folder)


def _write_bytes(path: Path, data: bytes) -> None:
    view, half = memoryview(data), len(data) // 2
    with open(path, "xb", buffering=0) as file:
        for part in (view[:half], view[half:]):
            while part:
                part = part[file.write(part) :]
            _crash_point("write:part")


# ---------------------------------------------------------------- one folder


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str], overwrite: bool = False, ours: bool = True) -> Iterator[Path]:
    """Fill a folder under a temporary name and rename it to `path` when the block ends without an error.

    An existing `path` is refused with a UsageError. With `overwrite`, an existing folder is replaced as a whole if it
    is empty or holds only what minedge writes (owned.py; any folder without `ours`), so a mistyped path cannot delete
    someone's home folder.
    """
    path = Path(os.path.abspath(path))
    recover_dir(path)
    _check_target(path, overwrite, ours)
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent)
        temporary = _sibling(path, "tmp")
        temporary.mkdir()
    try:
        with os_errors(path):
            yield temporary
            _crash_point("dir:flush")
            _fsync_tree(temporary)
            _crash_point("dir:rename")
            _check_target(path, overwrite, ours)  # again: someone may have made it meanwhile
            _rename_dir(temporary, path)
            _crash_point("dir:renamed")
            fsync_dir(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            _delete(temporary)
        raise


def _check_target(path: Path, overwrite: bool, ours: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UsageError(f"the output folder {path} exists already; choose another name, or pass overwrite=True")
    if path.is_symlink() or not os.path.isdir(path):
        raise UsageError(f"will not overwrite {path}: it is not a folder")
    with os_errors(path, "read"):
        reason = why_kept(path) if ours else None
    if reason:
        raise UsageError(f"will not overwrite {path}: it {reason}; choose another folder")


def _rename_dir(temporary: Path, path: Path) -> None:
    if not os.path.exists(path):
        os.rename(temporary, path)
        return
    if _exchange(temporary, path):
        _crash_point("dir:exchanged")
        _delete(temporary)  # now the old folder
        return
    # Without an exchange there is a moment when `path` is missing; recover_dir undoes a death in it.
    old = _sibling(path, "old")
    os.rename(path, old)
    _crash_point("dir:moved-away")
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    _delete(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where the system or file system
    cannot.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0
