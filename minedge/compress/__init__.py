"""Smaller models: int4 quantization and pruning. One file per method holds its linear kind and its verbs.

Importing the package makes the kinds known to files that name them.
"""

from __future__ import annotations

from minedge.compress import compositions, int4, prune, quant, sparse

__all__ = ["compositions", "int4", "prune", "quant", "sparse"]
