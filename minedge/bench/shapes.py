"""The model shapes that can be measured by name, as data; weights are random, since speed does not depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minedge.config import Config, did_you_mean
from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["SHAPES", "Shape", "find_shape"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, and the batch (rows x tokens) that its training is measured with."""

    name: str
    config: Config
    batch_size: int
    seq_len: int


def _llama(layers: int, width: int, heads: int, kv: int, inner: int, vocab: int, context: int, **more: Any) -> Config:
    return Config(
        vocab_size=vocab, n_layer=layers, n_embd=width, n_head=heads, n_kv_head=kv, n_inner=inner,
        context_length=context, **more,
    )  # fmt: skip


def _gpt2(layers: int, width: int, heads: int, vocab: int, context: int) -> Config:
    return _llama(layers, width, heads, heads, 4 * width, vocab, context, architecture="gpt2")


# Sizes as the published config.json files have them. The nanoGPT ones are its two character-level examples.
_TABLE = (
    Shape("nanogpt-char-cpu", _gpt2(4, 128, 4, 65, 64), 12, 64),
    Shape("nanogpt-char", _gpt2(6, 384, 6, 65, 256), 64, 256),
    Shape("stories15m", _llama(6, 288, 6, 6, 768, 32000, 256), 8, 256),
    Shape("gpt2-124m", _gpt2(12, 768, 12, 50257, 1024), 4, 64),
    Shape("smollm2-135m", _llama(30, 576, 9, 3, 1536, 49152, 8192, rope_theta=1e5), 1, 256),
    Shape("smollm2-360m", _llama(32, 960, 15, 5, 2560, 49152, 8192, rope_theta=1e5), 1, 256),
    Shape("qwen2.5-0.5b", _llama(24, 896, 14, 2, 4864, 151936, 32768, rope_theta=1e6, architecture="qwen2"), 1, 256),
    Shape("tinyllama-1.1b", _llama(22, 2048, 32, 4, 5632, 32000, 2048, tie_embeddings=False), 1, 256),
    Shape("llama-3.2-1b", _llama(16, 2048, 32, 8, 8192, 128256, 131072, rope_theta=5e5), 1, 256),
    Shape("qwen2.5-1.5b", _llama(28, 1536, 12, 2, 8960, 151936, 32768, rope_theta=1e6, architecture="qwen2"), 1, 256),
)
SHAPES: Mapping[str, Shape] = MappingProxyType({shape.name: shape for shape in _TABLE})


def find_shape(name: str, batch_size: int | None = None, seq_len: int | None = None) -> Shape:
    """The shape of that name, or of a config.json (or a folder that has one); the batch replaced where given.

    Raises `UsageError` for an unknown name, with the nearest, and for rows longer than the model's context;
    `MinedgeFormatError` for a file that is no config.
    """
    path = Path(name).expanduser()
    if name in SHAPES:
        shape = SHAPES[name]
    elif path.is_file() or (path / "config.json").is_file():
        shape = _from_file(path if path.is_file() else path / "config.json")
    else:
        raise UsageError(
            f"--shape: expected {', '.join(SHAPES)} or a config.json, got {name!r}{did_you_mean(name, list(SHAPES))}"
        )
    shape = replace(shape, batch_size=batch_size or shape.batch_size, seq_len=seq_len or shape.seq_len)
    if shape.seq_len > shape.config.context_length:
        raise UsageError(f"--max-seq-length: expected at most {shape.config.context_length}, got {shape.seq_len}")
    return shape


def _from_file(path: Path) -> Shape:
    from minedge.io.jsonfile import read_json

    try:
        config = Config.from_hf(read_json(path))
    except MinedgeFormatError as error:
        raise MinedgeFormatError(f"{path}: {str(error).removeprefix('config.json: ')}") from None
    where = path.resolve()
    return Shape(
        where.parent.name if path.name == "config.json" else where.stem, config, 1, min(256, config.context_length)
    )
