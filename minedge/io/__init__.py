"""Files: model directories, adapters and checkpoints; every reader is strict, every write is atomic."""

from __future__ import annotations

__all__ = ["adapters", "atomic", "checkpoint", "hf", "hf_weights", "jsonfile", "safetensors", "safetensors_header"]
