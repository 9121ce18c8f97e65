"""What `minedge.load` may be given: files by what they hold, hub ids from the local cache, and clear refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import minedge
from minedge.config import Config
from minedge.errors import MinedgeFormatError, UsageError
from minedge.io import sources

REVISION = "0123456789abcdef0123456789abcdef01234567"


def _model() -> minedge.Model:
    return minedge.init(Config(vocab_size=16, n_layer=1, n_embd=32, n_head=2, n_inner=32, context_length=8))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with the model org/tiny in it, laid out as the hub library does: links into blobs/."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    repo = tmp_path / "home" / "hub" / "models--org--tiny"
    snapshot = repo / "snapshots" / REVISION
    _model().save(tmp_path / "plain")
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    for i, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.move(file, repo / "blobs" / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    (repo / "refs" / "main").write_text(REVISION)
    return repo


def test_a_hub_id_is_found_in_the_cache(hub: Path) -> None:
    model = minedge.load("org/tiny", backend="numpy")
    assert (model.name, model.config.vocab_size) == ("org/tiny", 16)


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_the_caches_place_can_be_set(name: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(tmp_path / "home" / "hub", tmp_path / "elsewhere")
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert minedge.load("org/tiny", backend="numpy").config.n_layer == 1


@pytest.mark.parametrize("name", ["org/other", "tiny", "org/tiny/x", "../tiny", "org/..", "org--tiny", "", "a b/c"])
def test_what_is_not_in_the_cache_is_a_clear_error(name: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)
    if not name:
        assert sources.in_hub_cache("") is None
        return
    with pytest.raises(UsageError, match="local Hugging Face cache"):
        minedge.load(name, backend="numpy")


@pytest.mark.parametrize("content", ["../../..", "", "a/b", "x" * 2000, "\0", "é"])
def test_a_reference_cannot_lead_out_of_the_cache(content: str, hub: Path) -> None:
    (hub / "refs" / "main").write_text(content)
    with pytest.raises(MinedgeFormatError, match="refs/main"):
        minedge.load("org/tiny", backend="numpy")


def test_a_reference_to_a_missing_snapshot_is_no_model(hub: Path) -> None:
    (hub / "refs" / "main").write_text("f" * 40)
    assert sources.in_hub_cache("org/tiny") is None


def test_a_link_out_of_the_snapshot_is_refused(hub: Path, tmp_path: Path) -> None:
    target = hub / "snapshots" / REVISION / "model.safetensors"
    outside = shutil.copy(os.path.realpath(target), tmp_path / "outside.safetensors")
    target.unlink()
    target.symlink_to(outside)
    with pytest.raises(MinedgeFormatError, match="leads out"):
        minedge.load("org/tiny", backend="numpy")


def test_a_folder_with_one_gguf_file_is_that_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = _model()
    model.save_gguf(tmp_path / "repo" / "weights.gguf")
    model.save_gguf(tmp_path / "without-ending", "f16")
    tokens = np.arange(8)[None]
    assert np.array_equal(minedge.load(tmp_path / "repo").logits(tokens), model.logits(tokens))
    assert minedge.load(tmp_path / "without-ending").config == model.config
    model.save_gguf(tmp_path / "repo" / "other.gguf")
    with pytest.raises(MinedgeFormatError, match=r"config\.json"):
        minedge.load(tmp_path / "repo")


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("hello")
    with pytest.raises(MinedgeFormatError, match=r"expected a model directory.*starts with b'hell'"):
        minedge.load(tmp_path / "m.txt")
    (tmp_path / "m.gguf").write_text("hello")
    with pytest.raises(MinedgeFormatError, match="does not start with 'GGUF'"):
        minedge.load(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match=r"did you mean.*m\.gguf"):
        minedge.load(tmp_path / "n.gguf")


def test_a_pickle_alone_says_how_to_convert_it(tmp_path: Path) -> None:
    _model().save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(MinedgeFormatError, match=r"never read; convert it.*save_pretrained"):
        minedge.load(tmp_path / "m")
