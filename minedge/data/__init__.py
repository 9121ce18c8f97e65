"""Text and labels: the built-in corpus and task, loaders for files, tokenizer, batches."""

from __future__ import annotations

__all__: list[str] = []
