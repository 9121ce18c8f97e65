"""Int4 matrices in the order in which the kernels read them: tiles, made once for each matrix.

    codes, scales = tiles([(qweight, scales)])[0]      # ops int4_tile, on huge pages

A model stores the rows of a matrix one after the other, which is what files hold and methods read; a token reads
tiles (kernels/int4_tiles.h draws one). They belong to the arrays they were made from: as long as both live, every
engine and model that shares them gets the same tiles, and with either of the two arrays they go. A model with another
array in its place therefore gets new tiles. An array that may be written to (`Model.trainable`) is not remembered.

What this costs in memory: pages of an array that lies in a file (io/safetensors.py maps int4 matrices) are given back
to the system, so that a loaded model stands in memory once, as tiles; they come again if something reads the rows.
Matrices made in this process, or repacked from a GGUF file, stay beside their tiles.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from minedge.ops.memory import Slabs, give_back

__all__ = ["Tiles", "tiles"]

Array = NDArray[Any]
TILE = 16  # rows


class Tiles(NamedTuple):
    """codes uint8 (out/16, in/32, 4, 16, 4), scales float16 (out/16, in/group_size, 16), out rounded up to 16."""

    codes: Array
    scales: Array

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


# Found by the identities of the two arrays, which are not those of others while the arrays live. Weak: nothing is kept
# alive by it but tiles whose arrays are.
_made: dict[tuple[int, int], tuple[Tiles, Any, Any]] = {}


def tiles(matrices: Sequence[tuple[Array, Array]]) -> list[Tiles]:
    """The tiles of each (qweight uint8 (out, in/2), scales float16 (out, in/group_size)), checked arrays; those that
    are not there yet are made, side by side.
    """
    total = sum(_size(q) + _size(s) for q, s in matrices if (id(q), id(s)) not in _made)
    slabs, here = Slabs(total), {}
    for qweight, scales in matrices:
        key = (id(qweight), id(scales))
        if key not in here:  # an embedding may be the head as well
            known = _made.get(key)
            here[key] = known[0] if known is not None else _make(qweight, scales, slabs)
    return [here[id(q), id(s)] for q, s in matrices]


def _size(array: Array) -> int:
    return -(-array.shape[0] // TILE) * TILE * array.shape[1] * array.itemsize


def _make(qweight: Array, scales: Array, slabs: Slabs) -> Tiles:
    from minedge.ops.c_ops.int4 import tiles_in  # here: without a compiler there is none, and nobody asks for tiles

    made = Tiles(*tiles_in(slabs.empty, qweight, scales))
    give_back(qweight)
    give_back(scales)
    if not (qweight.flags.writeable or scales.flags.writeable):
        key = id(qweight), id(scales)

        def forget(_: Any) -> None:
            _made.pop(key, None)

        _made[key] = made, weakref.ref(qweight, forget), weakref.ref(scales, forget)
    return made
