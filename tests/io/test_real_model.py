"""The real model of the development data: published figure, and through save and load. Run with `-m data`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import minedge
from minedge.data.packing import Texts

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def data() -> Path:
    """The folder named by MINEDGE_DATA, with what these tests need in it."""
    root = os.environ.get("MINEDGE_DATA")
    if not root:
        pytest.skip("MINEDGE_DATA is not set: it names a folder with models/stories260K and text/tinystories.txt")
    missing = [name for name in ("models/stories260K", "text/tinystories.txt") if not Path(root, name).exists()]
    if missing:
        pytest.fail(f"MINEDGE_DATA={root} has no {' and no '.join(missing)}")
    return Path(root)


def _loss(model: minedge.Model, text: Path) -> tuple[float, int]:
    """Mean nats a predicted token over the first 20,000 characters, in pieces of 255 tokens with token 1 in front."""
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8")[:20000])
    total, count = 0.0, 0
    for start in range(0, len(ids), 255):
        piece = np.array([[1, *ids[start : start + 255]]])
        total += model.loss(piece) * (piece.size - 1)
        count += piece.size - 1
    return total / count, count


def test_loss_is_the_published_one(data: Path) -> None:
    loss, count = _loss(minedge.load(data / "models/stories260K"), data / "text/tinystories.txt")
    assert count == 9602
    assert loss == pytest.approx(1.52316, abs=5e-4)


def test_packed_rows_and_a_continuation_are_read_as_the_published_figure_reads_them(data: Path) -> None:
    model = minedge.load(data / "models/stories260K")
    text = (data / "text/tinystories.txt").read_text(encoding="utf-8")[:20000]
    total = count = 0.0
    for tokens, mask in Texts((text,)).pack(model.tokenizer, 256).eval_batches(8):
        inside = mask * (tokens != model.tokenizer.eos_id)  # less the end of the text, which the figure leaves out
        total += float(model.loss_sum(tokens, inside)[0])
        count += float(inside.sum())
    assert count == 9602 and total / count == pytest.approx(1.52316, abs=5e-4)
    assert model.generate("Once upon a time there was a", max_tokens=2).startswith(" little")


def test_save_and_load_keep_every_bit_and_float16_keeps_the_loss(data: Path, tmp_path: Path) -> None:
    model = minedge.load(data / "models/stories260K")
    model.save(tmp_path / "same")
    same = minedge.load(tmp_path / "same")
    assert all(same.params[name].tobytes() == array.tobytes() for name, array in model.params.items())
    model.save(tmp_path / "half", dtype="float16")
    half, _ = _loss(minedge.load(tmp_path / "half"), data / "text/tinystories.txt")
    assert half == pytest.approx(1.52316, abs=1e-3)
    size = (tmp_path / "half" / "model.safetensors").stat().st_size
    assert size < 0.51 * (tmp_path / "same" / "model.safetensors").stat().st_size
