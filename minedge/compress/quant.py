"""`minedge.quant`: the ways to store weights in fewer bits."""

from __future__ import annotations

from minedge.compress.int4 import Int4, int4
from minedge.compress.nf4 import NF4, nf4

__all__ = ["NF4", "Int4", "int4", "nf4"]
