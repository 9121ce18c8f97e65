"""llama2.c files: the weights in their places, the head's two forms, tokenizers of both sorts, and real files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

import minedge
from minedge.errors import MinedgeFormatError
from minedge.io import llama2c
from tests.io.llama2c_files import model, sentencepiece, tokenizer


def _plain_logits(data: bytes, tokens: list[int]) -> np.ndarray:
    """llama2.c's forward pass in float64, written down from the format alone: interleaved rotary, no head split."""
    dim, hidden, layers, heads, kv, vocab, length = struct.unpack("<7i", data[:28])
    at, size = 28, dim // heads

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        out = np.frombuffer(data, "<f4", count, at).reshape(shape).astype(np.float64)
        at += 4 * count
        return out

    embed = take(abs(vocab), dim)
    norm1, wq, wk, wv = take(layers, dim), take(layers, dim, dim), take(layers, kv * size, dim), take(layers, kv * size, dim)  # fmt: skip  # noqa: E501
    wo, norm2 = take(layers, dim, dim), take(layers, dim)
    w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    last = take(dim)
    take(2, length, size // 2)
    head = embed if vocab > 0 else take(-vocab, dim)
    assert at == len(data)

    def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turn(x: np.ndarray) -> np.ndarray:  # (T, heads, size), pairs (2i, 2i + 1)
        angle = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        pair = x.reshape(*x.shape[:2], -1, 2)
        z = (pair[..., 0] + 1j * pair[..., 1]) * np.exp(1j * angle)
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x, T = embed[tokens], len(tokens)
    for i in range(layers):
        h = rms(x, norm1[i])
        q, k, v = turn((h @ wq[i].T).reshape(T, heads, size)), turn((h @ wk[i].T).reshape(T, kv, size)), (h @ wv[i].T).reshape(T, kv, size)  # fmt: skip  # noqa: E501
        out = np.zeros((T, heads, size))
        for j in range(heads):
            scores = q[:, j] @ k[:, j * kv // heads].T / np.sqrt(size)
            scores[np.triu_indices(T, 1)] = -np.inf
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, j] = p / p.sum(-1, keepdims=True) @ v[:, j * kv // heads]
        x = x + out.reshape(T, dim) @ wo[i].T
        h = rms(x, norm2[i])
        gate = h @ w1[i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w3[i].T)) @ w2[i].T
    return rms(x, last) @ head.T


@pytest.mark.parametrize("vocab", [11, -11])
def test_logits_are_those_of_the_format(vocab: int, tmp_path: Path) -> None:
    data = model(dim=16, hidden=20, layers=2, heads=4, kv=2, vocab=vocab, length=8, seed=3)
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.warns(UserWarning, match="no tokenizer beside it"):
        read = minedge.load(tmp_path / "m.bin", backend="numpy")
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = _plain_logits(data, tokens)
    ours = read.logits(np.array([tokens]))[0]
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    assert read.config.tie_embeddings == (vocab > 0) and read.config.vocab_size == 11
    assert not any(array.flags.writeable for array in read.params.values())
    assert read.trainable_names == frozenset(read.params)


PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", b"a", b"b", b" a", b"ab", b" ab"]


@pytest.mark.parametrize("name", ["tok9.bin", "tokenizer.bin", "tok9.model", "tokenizer.model"])
def test_a_tokenizer_beside_the_model_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(model(vocab=9))
    scored = [(-float(i), piece) for i, piece in enumerate(PIECES)]
    content = tokenizer(scored)
    if name.endswith("model"):
        words = [piece.decode().strip("\n").replace(" ", "▁") for piece in PIECES]
        content = sentencepiece([(w, -float(i), (2, 3, 3)[i] if i < 3 else 1) for i, w in enumerate(words)])
    (tmp_path / name).write_bytes(content)
    read = minedge.load(tmp_path / "m.bin", backend="numpy").tokenizer
    assert read.encode("ab a") == [8, 6]  # " a" has a better score than "ab", and then joins the b
    assert read.decode([8, 6]) == "ab a"
    assert (read.bos_token, read.eos_token, read.bos_id, read.eos_id) == ("<s>", "</s>", 1, 2)
    assert read.encode("z") == [3, 0]


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(model(vocab=9))
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer([(0.0, piece) for piece in PIECES[:8]]))
    with pytest.raises(MinedgeFormatError, match=r"tokenizer\.bin.*token 8: the file ends|too short for the 9 tokens"):
        minedge.load(tmp_path / "m.bin", backend="numpy")


def test_the_tokenizer_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(model(vocab=9))
    (tmp_path / "elsewhere").write_bytes(tokenizer([(0.0, piece) for piece in PIECES]))
    found = llama2c.read_model(tmp_path / "m.bin", tmp_path / "elsewhere")[3]
    assert found.token_id("▁ab") == 8


def test_what_is_not_a_llama2c_model_says_what_to_do(tmp_path: Path) -> None:
    for start, says in ((b"\x80\x02", "a pickle.*save_pretrained"), (b"PK\x03\x04", "zip.*save_pretrained")):
        (tmp_path / "pytorch_model.bin").write_bytes(start + bytes(100))
        with pytest.raises(MinedgeFormatError, match=says):
            minedge.load(tmp_path / "pytorch_model.bin", backend="numpy")


# ---------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def models() -> Path:
    root = os.environ.get("MINEDGE_DATA")
    if not root:
        pytest.skip("MINEDGE_DATA is not set: it names a folder with models/stories260K and models/babyllama-tok105")
    return Path(root) / "models"


@pytest.mark.data
def test_the_stories_model_and_its_hugging_face_form_give_the_same_logits(models: Path, tmp_path: Path) -> None:
    ours = minedge.load(models / "stories260K" / "stories260K.bin", backend="numpy")
    theirs = minedge.load(models / "stories260K", backend="numpy")
    tokens = np.random.default_rng(0).integers(0, 512, (4, 512))
    assert np.abs(ours.logits(tokens) - theirs.logits(tokens)).max() <= 1e-5
    assert ours.generate("Once upon a time", max_tokens=60) == theirs.generate("Once upon a time", max_tokens=60)
    text = (models.parent / "text" / "tinystories.txt").read_text(encoding="utf-8")[:20_000]
    assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
    ours.save_gguf(tmp_path / "m.gguf")
    back = minedge.load(tmp_path / "m.gguf", backend="numpy")
    assert np.array_equal(back.logits(tokens), ours.logits(tokens))
    assert back.tokenizer.encode(text) == ours.tokenizer.encode(text)


@pytest.mark.data
def test_the_character_level_model_tells_a_story(models: Path) -> None:
    model = minedge.load(models / "babyllama-tok105" / "model5000.bin", backend="numpy")
    assert (model.n_params(), model.tokenizer.vocab_size) == (936_448, 105)
    assert "little girl named" in model.generate("Once upon a time", max_tokens=60)
