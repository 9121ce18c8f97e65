"""Submissions that are not what they should be: each is one clear line."""

from __future__ import annotations

import json
import stat
import zipfile

import pytest

from minedge.course import load, start, submit
from minedge.course.submit import MAX_ENTRIES, MAX_FILE, unpack
from minedge.errors import MinedgeFormatError
from tests.course.planted import solved


def solve(folder):
    for file, data in solved(load("a1")).items():
        (folder / file).write_bytes(data)
    return folder


def archive(path, entries, manifest=True):
    """A zip of (name or ZipInfo, bytes) pairs, with a right manifest unless told otherwise."""
    told = {"format": "minedge-submission-1", "assignment": "a1", "student": "=cmd()", "sha256": {}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if manifest:
            file.writestr("manifest.json", json.dumps(told) if manifest is True else manifest)
        for name, data in entries:
            file.writestr(name, data)
    return path


def special(name, mode=0, encrypted=False):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.flag_bits = 1 if encrypted else 0
    return info


def duplicated(path):
    with pytest.warns(UserWarning):
        return archive(path, [("loss.py", b"1"), ("loss.py", b"2")])


def truncated(path):
    archive(path, list(solved(load("a1")).items()))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def damaged(path):
    archive(path, [(zipfile.ZipInfo("loss.py"), b"x" * 1000)])
    data = bytearray(path.read_bytes())
    data[data.index(b"x" * 100) + 5] ^= 1
    path.write_bytes(bytes(data))
    return path


BAD = {
    "no zip": (lambda p: p.write_bytes(b"hello") and p, "not a readable submission"),
    "empty": (lambda p: (p.touch(), p)[1], "not a readable submission"),
    "truncated": (truncated, "not a readable submission"),
    "damaged": (damaged, "Bad CRC-32"),
    "missing file": (lambda p: p, "no such file"),
    "no manifest": (lambda p: archive(p, [("loss.py", b"")], manifest=False), "no manifest.json"),
    "manifest no JSON": (lambda p: archive(p, [], manifest="{"), "not valid JSON"),
    "manifest too deep": (lambda p: archive(p, [], manifest="[" * 100000), "nested deeper"),
    "manifest of another kind": (lambda p: archive(p, [], manifest='{"format": "x"}'), "expected format"),
    "unknown assignment": (
        lambda p: archive(
            p, [], manifest='{"format": "minedge-submission-1", "assignment": "../a1", "student": "x", "sha256": {}}'
        ),
        "assignment: expected one of",
    ),
    "bomb": (lambda p: archive(p, [("loss.py", b"\0" * (64 << 20))]), f"larger than {MAX_FILE:,} bytes"),
    "link": (lambda p: archive(p, [(special("loss.py", stat.S_IFLNK | 0o777), b"/etc/passwd")]), "a link or a device"),
    "twice": (duplicated, "occurs twice"),
    "many": (lambda p: archive(p, [(f"f{i}", b"") for i in range(MAX_ENTRIES + 1)]), "entries, expected at most"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_unreadable_archive_is_one_line(kind, tmp_path):
    make, said = BAD[kind]
    path = make(tmp_path / "s.zip")
    with pytest.raises(MinedgeFormatError) as caught:
        unpack(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_encrypted_entry_is_refused(tmp_path):
    path = archive(tmp_path / "s.zip", [("loss.py", b"x")])
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(MinedgeFormatError, match="encrypted"):
        unpack(path)


def test_paths_out_of_the_archive_are_never_written(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    evil = [("../evil.py", b"x"), ("/tmp/evil_minedge.py", b"x"), ("properties.py", b"PROPERTIES = []")]
    path = archive(inner / "s.zip", [*solved(load("a1")).items(), *evil])
    got = unpack(path)
    assert set(got.files) == {"layers.py", "loss.py", "attention.py"}
    assert "ignored in the archive: '../evil.py'" in got.remarks[0]
    assert {p.name for p in tmp_path.rglob("*")} == {"inner", "s.zip"}


def test_a_changed_file_is_remarked(tmp_path):
    folder = solve(start("a1", tmp_path / "w"))
    path = submit(folder, tmp_path / "s.zip", "Bob")
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    entries["loss.py"] += b"# one more line\n"
    archive(path, [(n, d) for n, d in entries.items() if n != "manifest.json"], entries["manifest.json"].decode())
    assert unpack(path).remarks == ("loss.py was changed after submit packed it",)
