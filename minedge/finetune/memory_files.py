"""Memory of loading, saving and packing a model, counted without doing it: io/hf.py and compress/packing.py with sizes
in the place of arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from minedge.config import Config
from minedge.finetune.memory import Trace, array_bytes
from minedge.finetune.memory_needs import F
from minedge.model.linears import LinearKind, core
from minedge.model.shapes import linear_shapes, param_shapes

__all__ = ["loading", "packing", "saving"]

_CHUNK = 4 << 20  # bytes read at a time where a file holds another type than memory
_ITEMSIZE = {"float32": 4, "float16": 2, "uint16": 2, "uint8": 1, "int8": 1, "int64": 8}


def loading(trace: Trace, config: Config, linears: Mapping[str, LinearKind]) -> None:
    """The arrays come one after the other; a kind that lies in the file in another form (a pruned matrix) stands there
    twice for a moment.
    """
    sizes = array_bytes(config, linears)
    for name, widths in linear_shapes(config).items():
        made = sum(trace.hold("weights", sizes.pop(key)) for key in linears[name].shapes(name, *widths))
        trace.spike(_stored(linears[name], name, widths) + min(made, _CHUNK))
    trace.hold("weights", sum(sizes.values()))


def saving(trace: Trace, config: Config, linears: Mapping[str, LinearKind], dtype: str | None) -> None:
    """The model, and a copy of what the file holds in another form: pruned matrices, all floats with `dtype` float16,
    GPT-2's turned matrices.
    """
    sizes = array_bytes(config, linears)
    types = {key: dtype_ for key, (_, dtype_) in param_shapes(config, linears).items()}
    trace.hold("weights", sum(sizes.values()))
    for name, widths in linear_shapes(config).items():
        kind = linears[name]
        trace.hold("copies", _stored(kind, name, widths))
        turned = config.arch.conv1d and kind.kind == "dense" and name not in (config.arch.embed, config.arch.head)
        for key in kind.shapes(name, *widths):
            if turned and dtype != "float16":
                trace.hold("copies", sizes[key])
    if dtype == "float16":
        trace.hold("copies", sum(size // 2 for key, size in sizes.items() if types[key] == "float32"))


def packing(trace: Trace, config: Config, linears: Mapping[str, LinearKind], kind: Any, tier: str) -> None:
    """The model as it was, the packed matrices beside it, and what making one of them takes."""
    trace.hold("weights", sum(array_bytes(config, linears).values()))
    for name, widths in linear_shapes(config).items():
        inside = core(linears[name])
        if name == config.arch.embed or inside == kind or widths[1] % kind.group_size:
            continue
        dense = F * prod(widths)
        # NumPy rounds in whole arrays: the products and codes in float32, their integers.
        trace.spike((0 if inside.kind == "dense" else dense) + (3 * dense if tier == "numpy" else 0))
        made = kind.shapes(name, *widths).values()
        trace.hold("packed", sum(prod(shape) * _ITEMSIZE[dtype] for shape, dtype in made))


def _stored(kind: LinearKind, name: str, widths: tuple[int, int]) -> int:
    """Bytes of the form in a file where that is not the form in memory. Sizes that follow from the values (how many
    weights a mask keeps) count as those of the whole matrix.
    """
    shapes = kind.storage_shapes(name, *widths)
    if shapes is None or shapes == kind.shapes(name, *widths):
        return 0
    known = (prod(n if n is not None else prod(widths) for n in shape) * _ITEMSIZE[d] for shape, d in shapes.values())
    return sum(known)
