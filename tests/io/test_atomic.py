"""Atomic writes: old or new, never between, whatever kills the process or fails underneath."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minedge.errors import MinedgeError, UsageError
from minedge.io import atomic, safetensors
from minedge.io.atomic import atomic_dir, atomic_write, remove_stale

Run = Callable[..., "subprocess.CompletedProcess[str]"]
OLD, NEW = b"old " * 1000, b"new!" * 2000


def _no_leftovers(folder: Path) -> None:
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith(".")] == []


# ---------------------------------------------------------------- plain behaviour


def test_writes_bytes_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    atomic_write(path, OLD)
    atomic_write(path, NEW)
    assert path.read_bytes() == NEW
    assert os.listdir(path.parent) == ["c.bin"]


def test_the_old_file_is_replaced_not_written_into(tmp_path: Path) -> None:
    atomic_write(tmp_path / "f", OLD)
    os.link(tmp_path / "f", tmp_path / "reader")  # like a process that has the old file open
    atomic_write(tmp_path / "f", NEW)
    assert (tmp_path / "reader").read_bytes() == OLD and (tmp_path / "f").read_bytes() == NEW


def test_content_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def record(name: str, real: Callable[..., None]) -> None:
        def call(*args: Any) -> None:
            what = "folder" if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
            events.append(f"{name} {what}")
            real(*args)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "rename"):
        record(name, getattr(os, name))
    atomic_write(tmp_path / "f", OLD)
    assert events == ["fsync file", "replace file", "fsync folder"]
    events.clear()
    with atomic_dir(tmp_path / "d") as folder:
        (folder / "x").write_bytes(OLD)
    assert events == ["fsync file", "fsync folder", "rename file", "fsync folder"]


def test_new_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "bytes", OLD)
        safetensors.write(tmp_path / "tensors", {"a": np.ones(3)})  # the library alone would leave 0600
        with atomic_dir(tmp_path / "folder") as folder:
            (folder / "x").write_bytes(OLD)
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("bytes", "tensors", "folder", "folder/x")
    }
    assert modes == {"bytes": 0o640, "tensors": 0o640, "folder": 0o750, "folder/x": 0o640}


def test_an_error_or_interrupt_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write(path, OLD)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(target: Path, error: type[BaseException] = error) -> None:
            target.write_bytes(b"half")
            raise error

        with pytest.raises(error):
            atomic_write(path, fail)
    assert path.read_bytes() == OLD
    _no_leftovers(tmp_path)


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(OLD)
    with pytest.raises(UsageError, match="exists already"), atomic_dir(tmp_path / "out"):
        raise AssertionError("the block must not run")
    refused = pytest.raises(UsageError, match="holds no model")
    with refused, atomic_dir(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out" / "mine").read_bytes() == OLD


def test_a_file_or_link_at_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for name in ("file", "link"):
        for overwrite in (False, True):
            with pytest.raises(UsageError), atomic_dir(tmp_path / name, overwrite=overwrite):
                pass
    with pytest.raises(UsageError, match="is a folder"):
        atomic_write(tmp_path, NEW)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwriting_replaces_the_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    for content in ("one", "two"):
        with atomic_dir(tmp_path / "out", overwrite=True, ours=False) as folder:
            (folder / "one").write_text(content)
            (folder / content).write_text(content)
    assert sorted(os.listdir(tmp_path / "out")) == ["one", "two"]
    assert (tmp_path / "out" / "one").read_text() == "two"
    _no_leftovers(tmp_path)


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "out") as folder:
        (folder / "x").write_bytes(OLD)
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- killed

_WRITE = """
import sys; from minedge.io.atomic import atomic_write
atomic_write(sys.argv[1], b"new!" * 2000)
"""
_DIR = """
import sys; from minedge.io import atomic
if sys.argv[2] == "no-exchange":
    atomic._exchange = lambda a, b: False
with atomic.atomic_dir(sys.argv[1], overwrite=True, ours=False) as folder:
    for name in "ab":
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("point", ["write:part", "write:part:2", "write:flush", "write:rename", "write:renamed"])
def test_a_kill_leaves_the_old_or_the_new_file(tmp_path: Path, run_python: Run, point: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(OLD)
    result = run_python(_WRITE, str(path), MINEDGE_CRASH_AT=point)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert path.read_bytes() == (NEW if point == "write:renamed" else OLD)
    atomic_write(path, OLD)  # whoever comes next also removes what the dead process left
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("exchange", ["exchange", "no-exchange"])
@pytest.mark.parametrize("point", ["dir:flush", "dir:rename", "dir:exchanged", "dir:moved-away", "dir:renamed"])
def test_a_kill_leaves_the_old_or_the_new_folder(tmp_path: Path, run_python: Run, point: str, exchange: str) -> None:
    path = tmp_path / "out"
    path.mkdir()
    for name in "ab":
        (path / name).write_text("old")
    result = run_python(_DIR, str(path), exchange, MINEDGE_CRASH_AT=point)
    reached = point not in {"exchange": ("dir:moved-away",), "no-exchange": ("dir:exchanged",)}[exchange]
    assert result.returncode == (-signal.SIGKILL if reached else 0), result.stderr
    atomic.recover_dir(path)  # what every reader of folders does first
    contents = {(path / name).read_text() for name in "ab"}
    assert contents == ({"old"} if point in ("dir:flush", "dir:rename", "dir:moved-away") and reached else {"new"})
    remove_stale(tmp_path)
    assert os.listdir(tmp_path) == ["out"]


def test_leftovers_of_the_living_are_not_touched(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "slow") as folder:
        (folder / "x").write_text("half")
        assert remove_stale(tmp_path) == []
        atomic_write(tmp_path / "other", OLD)
    assert (tmp_path / "slow" / "x").read_text() == "half"


def test_a_recycled_process_id_counts_as_dead(tmp_path: Path) -> None:
    host, pid = atomic._host(), os.getpid()
    (tmp_path / f".f.tmp-{host}-{pid}-1-00000000").mkdir()  # this process's id, but started at another time
    (tmp_path / f".f.tmp-{host}-{pid}-{atomic._start_time(pid)}-00000000").mkdir()
    (tmp_path / ".f.tmp-elsewhere-1-1-00000000").mkdir()  # another machine's: nobody here can know
    assert len(remove_stale(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 2


# ---------------------------------------------------------------- failing disks


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "EFBIG"])
@pytest.mark.parametrize("point", ["write:part", "write:flush", "write:rename"])
def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, code: str
) -> None:
    path = tmp_path / "f"
    atomic_write(path, OLD)

    def fail(name: str) -> None:
        if name == point:
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(atomic, "_crash_point", fail)
    with pytest.raises(MinedgeError, match=f"cannot write {path}: .*unchanged") as caught:
        atomic_write(path, NEW)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == OLD
    _no_leftovers(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root; the tests with a limited file size stand in")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    atomic_write(small_disk / "f", OLD)
    safetensors.write(small_disk / "t", {"a": np.ones(10)})
    with pytest.raises(MinedgeError, match="disk is full"):
        atomic_write(small_disk / "f", bytes(4 << 20))
    with pytest.raises(MinedgeError, match="disk is full"):
        safetensors.write(small_disk / "t", {"a": np.ones(1 << 20)})
    with pytest.raises(MinedgeError, match="disk is full"), atomic_dir(small_disk / "d") as folder:
        (folder / "x").write_bytes(bytes(4 << 20))
    assert sorted(os.listdir(small_disk)) == ["f", "t"]
    assert (small_disk / "f").read_bytes() == OLD and safetensors.read(small_disk / "t")["a"].shape == (10,)


_LIMITED = """
import resource, sys, numpy as np
from minedge.errors import MinedgeError
from minedge.io import safetensors
from minedge.io.atomic import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (lambda: atomic_write(sys.argv[1] + "/f", bytes(200_000)),
              lambda: safetensors.write(sys.argv[1] + "/t", {"a": np.ones(50_000)})):
    try:
        write()
    except MinedgeError as error:
        print(error)
"""


def test_a_limited_file_size_is_a_clear_error(tmp_path: Path, run_python: Run) -> None:
    result = run_python(_LIMITED, str(tmp_path))
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) == 2, result.stderr
    assert all("larger than this system allows" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir()
    (folder / "f").write_bytes(OLD)
    if os.geteuid() == 0:  # root may write anywhere, save on a read-only mount
        command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("as root this test needs to mount a read-only tmpfs")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
    else:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)


def test_a_read_only_folder_is_a_clear_error(read_only_folder: Path) -> None:
    with pytest.raises(MinedgeError, match=r"read-only|no permission"):
        atomic_write(read_only_folder / "f", NEW)
    with pytest.raises(MinedgeError, match=r"read-only|no permission"), atomic_dir(read_only_folder / "d"):
        pass


def test_odd_targets_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    for path in (tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(MinedgeError):
            atomic_write(path, NEW)
        with pytest.raises(MinedgeError), atomic_dir(path):
            pass
