"""Mutants of every format: an error or a whole model, and nothing that the other library rejects."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import minedge
from minedge.data.tokenizer import Tokenizer
from minedge.errors import MinedgeFormatError
from minedge.io import hf, llama2c
from minedge.io.adapters import read_adapter, write_adapter
from tests.io import fuzz, llama2c_files

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_mutants_are_refused_or_whole(name: str) -> None:
    count = int(2000 * fuzz.SHARES[name][0]) or 1
    assert fuzz.run(name, count, seed=0) >= count * fuzz.SHARES[name][1] // 1000


def _files(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """Small good files of the formats whose own tests do not truncate them, and how each is read."""
    tensors = {"model.layers.0.self_attn.q_proj.lora_A.default.weight": np.ones((2, 8), np.float32)}
    tensors["model.layers.0.self_attn.q_proj.lora_B.default.weight"] = np.ones((8, 2), np.float32)
    write_adapter(folder / "adapter", tensors, 2, 4, ["q_proj"])
    made = Tokenizer.train_bpe(["some text"], 262)
    sizes = dict(vocab_size=262, n_layer=1, n_embd=8, n_head=2, n_inner=8, context_length=8)
    minedge.init(minedge.Config(**sizes), made, backend="numpy").save(folder / "model")
    (folder / "m.bin").write_bytes(llama2c_files.model(dim=4, hidden=4, layers=1, heads=1, kv=1))
    pieces = [(-float(i), piece) for i, piece in enumerate([b"<unk>", b"\n<s>\n", b"\n</s>\n", b"a"])]
    (folder / "t.bin").write_bytes(llama2c_files.tokenizer(pieces))
    (folder / "t.model").write_bytes(llama2c_files.sentencepiece([("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("a", 0.0, 1)]))
    model = folder / "model"
    return {
        "llama2.c model": (folder / "m.bin", lambda: llama2c.read_model(folder / "m.bin", with_tokenizer=False)),
        "llama2.c vocabulary": (folder / "t.bin", lambda: llama2c.read_tokenizer(folder / "t.bin", 4)),
        "SentencePiece model": (folder / "t.model", lambda: llama2c.read_tokenizer(folder / "t.model", 3)),
        "config.json": (model / "config.json", lambda: hf.read_config(model)),
        "tokenizer.json": (model / "tokenizer.json", lambda: Tokenizer.load(model)),
        "tokenizer_config.json": (model / "tokenizer_config.json", lambda: Tokenizer.load(model)),
        "adapter_config.json": (folder / "adapter/adapter_config.json", lambda: read_adapter(folder / "adapter")),
        "adapter's weights": (folder / "adapter/adapter_model.safetensors", lambda: read_adapter(folder / "adapter")),
    }


def test_truncation_at_every_byte_of_every_format() -> None:
    with fuzz.scratch() as folder:
        for name, (path, read) in _files(folder).items():
            whole = path.read_bytes()
            read()
            for length in range(len(whole)):
                path.write_bytes(whole[:length])
                try:
                    read()
                except MinedgeFormatError as error:
                    assert str(folder) in str(error), (name, length)
                else:  # a line end after the last brace is all that JSON can do without
                    assert path.suffix == ".json" and not whole[length:].strip(), (name, length)
            path.write_bytes(whole)
            read()


@pytest.mark.campaign
@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_mutants_campaign(name: str) -> None:
    """MINEDGE_FUZZ safetensors files, 100,000 unless said otherwise, and of other formats their shares of it."""
    count = int(int(os.environ.get("MINEDGE_FUZZ", "100000")) * fuzz.SHARES[name][0])
    accepted = fuzz.run(name, count, seed=int(os.environ.get("MINEDGE_FUZZ_SEED", "1")))
    print(f"{name}: {count:,} tried, {accepted:,} accepted")
    assert accepted >= count * fuzz.SHARES[name][1] // 1000
