"""Files: model directories, adapters and checkpoints; every reader is strict, every write is atomic."""

from __future__ import annotations

__all__ = [
    "adapters", "atomic", "checkpoint", "gguf", "gguf_header", "gguf_names", "gguf_tokenizer", "gguf_types",
    "gguf_write", "hf", "hf_weights", "jsonfile", "llama2c", "safetensors", "safetensors_header",
    "sentencepiece", "sources",
]  # fmt: skip
