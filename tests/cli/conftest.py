"""A tiny random model with its tokenizer, an adapter and data, written once; and `cli`, which runs a command here."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import minedge
from minedge.cli import main
from minedge.config import Config
from minedge.data.tokenizer import Tokenizer

SENTENCE = "The quick brown fox jumps over the lazy dog. Return the value of x if it is set, else raise an error.\n"


@dataclass
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with tiny/ (2 layers, 64 wide), adapter/, text.txt, labels.tsv. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("cli")
    text = "".join(f"line {i}: {SENTENCE}" for i in range(60))
    (folder / "text.txt").write_text(text)
    lines = [f"{'good' if i % 2 else 'bad'} thing number {i} is {'nice' if i % 2 else 'awful'}\n" for i in range(100)]
    (folder / "labels.tsv").write_text("".join(lines))
    tokenizer = Tokenizer.train_bpe([text], 300)
    config = Config(
        vocab_size=300, n_layer=2, n_embd=64, n_head=2, n_inner=96, context_length=64,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = minedge.init(config, tokenizer, seed=1)
    model.save(folder / "tiny")
    adapted = minedge.lora.add(minedge.load(folder / "tiny"), r=2, seed=3)
    changed = {name: a + 0.01 if ".lora_B." in name else a for name, a in adapted.params.items()}
    minedge.lora.save_adapter(adapted.with_params(changed), folder / "adapter")
    return folder


@pytest.fixture
def home(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of `shared` as working directory."""
    copy = tmp_path / "home"
    shutil.copytree(shared, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Result]]:
    """`cli("eval", "--data", ...)` -> Result."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below `folder` with the hash of its content; locks aside."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


QUICK_TRAIN = (
    "train",
    "--model",
    "tiny",
    "--data",
    "text.txt",
    "--batch-size",
    "2",
    "--max-seq-length",
    "32",
    "--seed",
    "5",
)
