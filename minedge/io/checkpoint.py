"""Training checkpoints that survive a kill at any moment, and the lock that keeps two runs out of one folder.

A run folder holds one folder per checkpoint, step-00000123/, with arrays.safetensors (whatever has a shape: trainable
weights, optimizer moments), state.json (the rest: step, schedule, data cursor, generators) and manifest.json, written
last, with the size and SHA-256 of the others. The folder is filled under a temporary name and renamed when complete, so
a half-written one never bears a checkpoint's name; the manifest also uncovers what a failing disk or a hand did to the
files later. A checkpoint that does not verify is passed over for the one before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import safetensors
from minedge.io.atomic import _crash_point, _fsync_tree, _sibling, atomic_dir, os_errors, remove_stale
from minedge.io.jsonfile import dump_json, open_regular, read_json

__all__ = [
    "checkpoint_path",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "lock_run",
    "prune_checkpoints",
    "save_checkpoint",
    "verify_checkpoint",
]

_FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_FILES = ("arrays.safetensors", "state.json")


def checkpoint_path(run_dir: str | os.PathLike[str], step: int) -> Path:
    """The folder that holds the checkpoint of `step`."""
    return Path(run_dir) / f"step-{step:08d}"


# ---------------------------------------------------------------- save


def save_checkpoint(
    run_dir: str | os.PathLike[str], step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of `step` and return its folder; an older one of the same step is replaced.

    `state` must be JSON (numbers that are not finite are allowed). Raises UsageError if it is not, MinedgeError if the
    disk is full, read-only or failing; then all earlier checkpoints are as they were.
    """
    if step < 0:
        raise UsageError(f"step: expected 0 or more, got {step}")
    _check_state(state, "state")
    encoded = dump_json(dict(state))
    write_arrays = safetensors.writer(arrays)
    path = checkpoint_path(run_dir, step)
    with atomic_dir(path, overwrite=True, ours=False) as folder:
        write_arrays(folder / "arrays.safetensors")
        _crash_point("checkpoint:arrays")
        (folder / "state.json").write_bytes(encoded)
        _crash_point("checkpoint:state")
        _fsync_tree(folder)  # the manifest must never be on the disk before what it vouches for
        files = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in _FILES}
        dump_json({"format_version": _FORMAT_VERSION, "step": step, "files": files}, folder / "manifest.json")
        _crash_point("checkpoint:manifest")
    return path


def _check_state(value: Any, where: str) -> None:
    """Refuse what JSON would not give back as it was: other types, and keys that are not strings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{where}: expected strings as keys, got {key!r}")
            _check_state(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_state(item, f"{where}[{i}]")
    elif not (value is None or isinstance(value, (str, int, float))):
        raise UsageError(
            f"{where}: expected JSON (str, int, float, bool, None, list, dict), got {type(value).__name__}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path)[0] as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


# ---------------------------------------------------------------- load


def list_checkpoints(run_dir: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, folder) of everything that bears a checkpoint's name, oldest first; not verified."""
    run_dir = Path(run_dir)
    remove_stale(run_dir)
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(run_dir) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match is not None and entry.is_dir(follow_symlinks=False):
                found.append((int(match[1]), run_dir / entry.name))
    return sorted(found)


def verify_checkpoint(path: str | os.PathLike[str], hashes: bool = True) -> None:
    """Raise MinedgeFormatError, naming the file, unless the manifest is whole and every file is as it says."""
    path = Path(path)
    manifest = read_json(path / "manifest.json")
    where = path / "manifest.json"
    if manifest.get("format_version") != _FORMAT_VERSION:
        got = manifest.get("format_version")
        raise MinedgeFormatError(f"{where}: format_version: expected {_FORMAT_VERSION}, got {got!r}")
    match, step = _NAME.fullmatch(path.name), manifest.get("step")
    if match is None or step != int(match[1]):
        raise MinedgeFormatError(f"{where}: step {step!r} does not belong into a folder called {path.name}")
    files = manifest.get("files")
    if not isinstance(files, dict) or sorted(files) != sorted(_FILES):
        raise MinedgeFormatError(f"{where}: expected entries for {' and '.join(_FILES)}")
    for name in _FILES:
        entry = files[name] if isinstance(files[name], dict) else {}
        file, size = open_regular(path / name)
        file.close()
        if size != entry.get("bytes"):
            raise MinedgeFormatError(f"{path / name}: {size} bytes, the manifest says {entry.get('bytes')!r}")
        try:
            if hashes and _sha256(path / name) != entry.get("sha256"):
                raise MinedgeFormatError(f"{path / name}: the content is not what the manifest's SHA-256 says")
        except OSError as error:
            raise MinedgeFormatError(f"{path / name}: cannot be read: {error.strerror}") from error


def _is_valid(path: Path, hashes: bool) -> bool:
    try:
        verify_checkpoint(path, hashes)
    except MinedgeFormatError:
        return False
    return True


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint that verifies, or None; half-written and damaged ones are passed over."""
    return next((path for _, path in reversed(list_checkpoints(run_dir)) if _is_valid(path, hashes=True)), None)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Verify a checkpoint and return its arrays (fresh and writable: they belong to the caller) and its state."""
    path = Path(path)
    verify_checkpoint(path)
    arrays = safetensors.read(path / "arrays.safetensors")
    for array in arrays.values():
        array.flags.writeable = True
    return arrays, read_json(path / "state.json", constants=True)


# ---------------------------------------------------------------- prune


def prune_checkpoints(
    run_dir: str | os.PathLike[str], keep: int = 2, protect: int | Iterable[int] | None = None
) -> list[int]:
    """Delete old checkpoints and return their steps.

    Kept are the newest `keep`, those of the steps in `protect` (the best one), the newest that verifies, and any that
    do not verify: a damaged one is left for its owner to look at and does not count.
    """
    if keep < 1:
        raise UsageError(f"keep: expected at least 1, got {keep}")
    steps = {protect} if isinstance(protect, int) else set(protect or ())
    valid = [(step, path) for step, path in list_checkpoints(run_dir) if _is_valid(path, hashes=False)]
    steps |= {step for step, _ in valid[-keep:]}
    doomed = [(step, path) for step, path in valid if step not in steps]
    newest = latest_checkpoint(run_dir) if doomed else None
    removed = []
    for step, path in doomed:
        if path != newest:
            # Renamed first, so that a kill in the middle does not leave half a folder under a checkpoint's name.
            with os_errors(path, "delete"):
                doomed_path = _sibling(path, "tmp")
                os.rename(path, doomed_path)
                _crash_point("prune:renamed")
                shutil.rmtree(doomed_path)
            removed.append(step)
    return removed


# ---------------------------------------------------------------- lock


@contextlib.contextmanager
def lock_run(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder (made if missing) for this process; UsageError if another run holds it.

    The lock is the kernel's, on the file .lock: it ends with the process that holds it, however that dies, so there are
    no stale ones. The file stays (deleting it would race with the next run) and names the holder for the message.
    Children made by fork share the lock.
    """
    run_dir = Path(run_dir)
    with os_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with os_errors(run_dir):
            _flock(descriptor, run_dir)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, run_dir: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return  # a system without POSIX locks
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise UsageError(
            f"the run folder {run_dir} is in use by {holder}; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise  # some network file systems have no locks; there the user has to take care
