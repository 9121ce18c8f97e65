"""A new model to train from scratch: its shape from a name, a file or options, its tokenizer learned from the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minedge.config import Config, did_you_mean
from minedge.errors import MinedgeFormatError, UsageError

__all__ = ["SHAPES", "new_model", "shape_of"]

# Widths are multiples of 64, so that they can be quantized in groups.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(n_layer=2, n_embd=64, n_head=2, n_inner=192, context_length=128),
    "small": dict(n_layer=4, n_embd=192, n_head=6, n_kv_head=2, n_inner=512, context_length=256),
    "base": dict(n_layer=6, n_embd=384, n_head=6, n_inner=1024, context_length=256),
}
VOCAB_SIZE = 1536
_KEYS = (
    "n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "n_inner", "context_length", "architecture", "norm_eps",
    "rope_theta", "attn_in_bias", "tie_embeddings",
)  # fmt: skip


def shape_of(init: str | None, changes: dict[str, Any] | None) -> dict[str, Any]:
    """Sizes by name, as `Config` takes them: those of `init` (a name in `SHAPES` or a config.json), then `changes`."""
    if init is None:
        values: dict[str, Any] = {}
    elif init in SHAPES:
        values = dict(SHAPES[init])
    elif Path(init).expanduser().is_file():
        values = _from_file(Path(init).expanduser())
    else:
        near = did_you_mean(init, list(SHAPES))
        raise UsageError(
            f"--init: expected {', '.join(SHAPES)} or a config.json, got {init!r}, which is no such file{near}"
        )
    values.update(changes or {})
    for key in values:
        if key not in _KEYS:
            raise UsageError(
                f"--init-shape: unknown size {key!r}{did_you_mean(key, list(_KEYS))}; known: {', '.join(_KEYS)}"
            )
    missing = [key for key in ("n_layer", "n_embd", "n_head", "context_length") if key not in values]
    if missing:
        raise UsageError(
            f"--init-shape: {', '.join(missing)} missing; give them, or start from --init {next(iter(SHAPES))}"
        )
    if isinstance(values["n_embd"], int):
        # 8/3 of the width, in whole groups: three matrices then hold as much as GPT-2's two of 4 times the width.
        values.setdefault("n_inner", -(-8 * values["n_embd"] // 3 // 64) * 64)
    return values


def _from_file(path: Path) -> dict[str, Any]:
    from minedge.io.jsonfile import read_json

    data = read_json(path)
    if "model_type" not in data:  # minedge's own names
        return {key: value for key, value in data.items() if key != "vocab_size"}
    data.setdefault("vocab_size", 1)  # the tokenizer decides it
    try:
        config = Config.from_hf(data)
    except MinedgeFormatError as error:
        raise MinedgeFormatError(f"{path}: {str(error).removeprefix('config.json: ')}") from None
    return {key: getattr(config, key) for key in _KEYS}


def new_model(
    shape: dict[str, Any], dataset: Any, vocab_size: int | None, seed: int, backend: str | None, name: str
) -> Any:
    """Random weights of this shape from `seed`, and a tokenizer learned from the training texts."""
    import minedge
    from minedge.data.tokenizer import Tokenizer

    Config(vocab_size=1, **shape)  # sizes that contradict each other are refused before the tokenizer is learned
    tokenizer = Tokenizer.train_bpe(_texts(dataset), vocab_size or VOCAB_SIZE)
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise UsageError(
            f"--vocab-size: this text has pairs to merge for at most {tokenizer.vocab_size} tokens, got {vocab_size}"
        )
    config = Config(
        vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, **shape
    )
    return replace(minedge.init(config, tokenizer, seed=seed, backend=backend), name=name)


def _texts(dataset: Any) -> Iterable[str]:
    """Training texts, whatever form the data has."""
    from minedge.data.conversations import plain_text

    split = dataset.train
    if split is None or not len(split):
        raise UsageError(f"data {dataset.name!r} has no train part; add a train file beside the others")
    if hasattr(split, "texts"):
        return split.texts
    if hasattr(split, "pairs"):
        return [text for pair in split.pairs for text in pair]
    if hasattr(split, "conversations"):
        return [plain_text(messages)[0] for messages in split.conversations]
    before, cue, words = dataset.task.pieces()
    return [before + e.text + cue + words[e.label] for e in dataset.task.examples("train")]
