"""`minedge.quant`: the ways to store weights in fewer bits."""

from __future__ import annotations

from minedge.compress.half import BFloat16, Float16, half
from minedge.compress.int4 import Int4, int4
from minedge.compress.int8 import Int8, int8
from minedge.compress.nf4 import NF4, nf4
from minedge.compress.packing import dequantize

__all__ = ["NF4", "BFloat16", "Float16", "Int4", "Int8", "dequantize", "half", "int4", "int8", "nf4"]
