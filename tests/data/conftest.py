"""A small tokenizer shared by the data tests."""

from __future__ import annotations

import pytest

from minedge.data.splits import stdlib_splits
from minedge.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(stdlib_splits().texts("train"), 1536)
