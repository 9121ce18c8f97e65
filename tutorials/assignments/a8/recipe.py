"""Your recipe: from the bundled model and training data to the best model that fits the budget."""

from __future__ import annotations

from typing import Any

import minedge

__all__ = ["build"]


def build(base: minedge.Model, data: Any, seed: int) -> minedge.Model:
    """The model to be measured.

    base   the bundled model, float32; its arrays are read-only
    data   data.train and data.valid for `minedge.train`; data.task.examples("train") are its lines and labels
    seed   take all randomness from it: the same seed has to give the same model
    """
    # BEGIN SOLUTION a8.1
    tuned = minedge.train(
        base, data, "full", iters=70, batch_size=8, seq_len=40, learning_rate=2e-3, warmup=5, eval_every=0, seed=seed
    )
    return minedge.quant.int4(tuned, group_size=32, embeddings=True)
    # END SOLUTION
