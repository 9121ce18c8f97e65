"""`minedge.quant`: the ways to store weights in fewer bits."""

from __future__ import annotations

from minedge.compress.int4 import Int4, int4

__all__ = ["Int4", "int4"]
