"""From what the caller gave to what the loop needs: packed data, and a model with something to train."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from minedge.errors import UsageError
from minedge.finetune.train_config import TrainConfig

__all__ = ["packed_parts", "start_model", "trained_adapter"]


def start_model(model: Any, config: TrainConfig) -> Any:
    """The model that training starts from: `model`, with an adapter where the settings ask for one and it has none."""
    if config.method == "lora" or config.lora is not None:
        from minedge.finetune import lora

        if not any(_is_adapter(name) for name in model.params):
            options: Mapping[str, Any] = config.lora or {}
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
            model = lora.add(model, **given, seed=config.seed)
        else:  # the adapter alone is trained, not the norms that a loaded model also offers
            names = frozenset(name for name in model.trainable_names if _is_adapter(name))
            model = model.with_params(model.params, trainable_names=names)
    if not model.trainable_names:
        raise UsageError("model: it has no trainable arrays; train an adapter instead (method lora)")
    return model


def trained_adapter(model: Any) -> str | None:
    """The name of the adapter where that is all that is trained, else None."""
    if not all(_is_adapter(name) for name in model.trainable_names):
        return None
    adapters = {name.split(".lora_")[1].split(".")[1] for name in model.trainable_names}
    return adapters.pop() if len(adapters) == 1 else None


def _is_adapter(name: str) -> bool:
    return ".lora_" in name  # lora_A, lora_B, and DoRA's lora_magnitude_vector


def packed_parts(data: Any, tokenizer: Any, seq_len: int) -> tuple[Any, Any, dict[str, Any]]:
    """Packed training and validation data (or None), and facts about them for the record; `data` as in `train`."""
    if isinstance(data, (str, os.PathLike)):
        from minedge.data.loaders import load_data

        data = load_data(data)  # type: ignore[arg-type]
    if isinstance(data, tuple) and len(data) == 2:
        parts = list(data)
    elif hasattr(data, "train"):
        parts = [data.train, getattr(data, "valid", None)]
    else:
        parts = [data, None]
    packed: list[Any] = []
    for part in parts:
        if part is None or hasattr(part, "batch"):
            packed.append(part)
        elif hasattr(part, "pack"):
            if tokenizer is None:
                raise UsageError("model: it has no tokenizer, so text cannot be packed; give packed data")
            packed.append(part.pack(tokenizer, seq_len) if len(part) else None)
        else:
            got = type(part).__name__
            raise UsageError(f"data: expected a file, a folder, a built-in name, splits or packed data, got {got}")
    if packed[0] is None:
        raise UsageError("data: expected training examples, got none; check the file")
    return packed[0], packed[1], dict(getattr(data, "info", None) or {})
