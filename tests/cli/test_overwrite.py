"""--overwrite replaces what minedge wrote, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minedge.cli.common import disk_bytes
from minedge.cli.tour import _fresh
from minedge.errors import UsageError
from minedge.io.owned import _STARTS, why_file_kept
from tests.cli.conftest import QUICK_TRAIN, snapshot

VERBS = {
    "quantize": ("quantize", "-m", "tiny", "--out", "o"),
    "prune": ("prune", "-m", "tiny", "--out", "o"),
    "fuse": ("fuse", "-m", "tiny", "--adapter-path", "adapter", "--out", "o"),
    "convert": ("convert", "tiny", "o"),
    "convert-hf": ("convert", "tiny", "o", "--to", "hf"),
    "train": (*QUICK_TRAIN, "--iters", "2", "--out", "o"),
    "train-full": (*QUICK_TRAIN, "--iters", "2", "--out", "o", "--method", "full"),
    "train-mezo": (*QUICK_TRAIN, "--iters", "2", "--out", "o", "--method", "mezo"),
}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_replaces_its_own_output_until_other_files_lie_there(name, home, cli):
    assert cli(*VERBS[name]).code == 0
    assert cli(*VERBS[name], "--overwrite").code == 0
    for file in ("a.txt", "b.txt", "c.txt", "d.txt"):
        Path("o", file).write_text("mine")
    before = snapshot(home)
    result = cli(*VERBS[name], "--overwrite")
    assert result.code == 2 and "a.txt, b.txt, c.txt and 1 more" in result.err
    assert "move what is yours away" in result.err
    assert snapshot(home) == before


@pytest.mark.parametrize("name", ["quantize", "prune", "fuse", "convert", "train"])
@pytest.mark.parametrize("marker", ["config.json", "manifest.json", "metrics.jsonl", "run.json", "adapter_config.json"])
def test_a_file_of_that_name_is_no_proof(name, marker, home, cli):
    Path("o").mkdir()
    Path("o", marker).write_text('{"name": "app"}\n')
    Path("o", "main.py").write_text("code")
    before = snapshot(home)
    result = cli(*VERBS[name], "--overwrite")
    assert result.code == 2 and "does not replace" in result.err
    assert snapshot(home) == before


def test_files_inside_a_run_are_looked_at_too(home, cli):
    assert cli(*VERBS["train"]).code == 0
    Path("o", "adapter", "notes.txt").write_text("mine")
    Path("o", "plots").mkdir()
    before = snapshot(home)
    result = cli(*VERBS["train"], "--overwrite")
    assert result.code == 2 and "adapter/notes.txt, plots" in result.err
    assert snapshot(home) == before


def test_a_folder_inside_a_run_is_ours_by_what_it_holds(home, cli):
    assert cli(*VERBS["train-full"]).code == 0
    for file in Path("o", "model").iterdir():
        file.unlink()
    Path("o", "model", "config.json").write_text("{}")
    before = snapshot(home)
    result = cli(*VERBS["train-full"], "--overwrite")
    assert result.code == 2 and "also holds model" in result.err
    assert snapshot(home) == before


def test_a_tour(home, cli):
    folder = Path("t")
    folder.mkdir()
    (folder / "tour.json").write_text(json.dumps({"name": "app"}))
    with pytest.raises(UsageError, match="no earlier tour"):
        _fresh(folder, overwrite=True)
    (folder / "tour.json").write_text(json.dumps({"finished": False}))
    assert cli("quantize", "-m", "tiny", "--out", "t/int4-model").code == 0
    assert cli(*VERBS["train-mezo"][:-4], "--out", "t/mezo", "--method", "mezo").code == 0
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        _fresh(folder, overwrite=True)
    (folder / "mine.txt").unlink()
    assert not _fresh(folder, overwrite=True).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("quantize", "-m", "tiny", "--out", "tiny"),
        ("quantize", "-m", "tiny", "--out", "other/../tiny"),
        ("quantize", "-m", "run", "--out", "run"),
        ("quantize", "-m", "run/model", "--out", "run"),
        ("prune", "-m", "tiny", "--out", "tiny"),
        ("fuse", "-m", "tiny", "--adapter-path", "adapter", "--out", "tiny"),
        ("fuse", "-m", "tiny", "--adapter-path", "a=adapter", "--out", "adapter"),
        ("convert", "tiny", "tiny"),
        ("convert", "tiny", "tiny/model.safetensors", "--to", "gguf"),
        ("convert", "x.gguf", "x.gguf"),
        (*QUICK_TRAIN, "--iters", "2", "--out", "tiny"),
        (*QUICK_TRAIN, "--iters", "2", "--adapter-path", "adapter", "--out", "adapter"),
    ],
)
def test_what_is_read_is_not_replaced(words, home, cli):
    Path("other").mkdir()
    if "run" in str(words):
        assert cli(*VERBS["train-full"][:-4], "--out", "run", "--method", "full").code == 0
    if "x.gguf" in words:
        assert cli("convert", "tiny", "x.gguf").code == 0
    before = snapshot(home)
    result = cli(*words, "--overwrite")
    assert result.code == 2 and "what is read" in result.err, result.err
    assert snapshot(home) == before


@pytest.mark.parametrize("kind", _STARTS)
def test_a_single_file_is_replaced_by_its_own_kind(kind, tmp_path):
    start, ending, reason = _STARTS[kind]
    file = tmp_path / "file"
    for content, kept in ((b"", None), (start, None), (start + b" more", None), (start[:-1], reason), (b"x", reason)):
        file.write_bytes(content)
        assert why_file_kept(file, kind) == kept, content
    named = tmp_path / f"x{ending}"
    named.write_bytes(b"mine")
    assert why_file_kept(named, kind) == (None if ending else reason)
    assert all(why_file_kept(file, other) for other in _STARTS)


def test_bytes_on_disk_are_of_what_loading_reads(home):
    whole, adapter = disk_bytes(Path("tiny")), disk_bytes(Path("adapter"))
    assert whole == sum(p.stat().st_size for p in Path("tiny").iterdir())
    for folder in ("tiny", "adapter"):
        Path(folder, "pytorch_model.bin").write_bytes(bytes(1000))
        Path(folder, "old").mkdir()
        Path(folder, "old", "model.safetensors").write_bytes(bytes(1000))
    Path("tiny", "model-00001-of-00002.safetensors").write_bytes(bytes(1000))
    assert (disk_bytes(Path("tiny")), disk_bytes(Path("adapter"))) == (whole, adapter)
    assert disk_bytes(Path("tiny", "model.safetensors")) == Path("tiny", "model.safetensors").stat().st_size
    assert disk_bytes(Path("nowhere")) == 0
