"""The loss of hidden states, logits made tile by tile: with a large vocabulary they would outweigh everything else.

Legend: N positions, C n_embd, V vocab_size; x (N, C) the final norm's output, targets (N,), weights (N,).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minedge.config import Config
from minedge.model import transformer
from minedge.model.linears import LinearKind, Params
from minedge.model.noise import Noise, Perturbed
from minedge.model.shapes import head_name
from minedge.ops import Ops

__all__ = [
    "LOGIT_TILE", "both_rows", "head_loss", "head_loss_and_grads", "head_losses", "head_row_losses", "tile_rows",
    "training_rows",
]  # fmt: skip

Array = NDArray[Any]
Linears = Mapping[str, LinearKind]

LOGIT_TILE = 1 << 23  # logits made at once: up to 32 MB of float32


def head_loss(
    config: Config, params: Params, linears: Linears, ops: Ops, x: Array, targets: Array, weights: Array,
    noise: Noise | None = None, int8: bool = False,
) -> float:  # fmt: skip
    """sum_i weights_i * cross-entropy_i; positions of weight 0 need no logits."""
    rows, total = np.flatnonzero(weights), 0.0  # tiles as if all counted: never larger than the memory plan's
    head = transformer.head_params(config, params, linears, ops, noise)
    for at in _tiles(len(rows), tile_rows(len(x), LOGIT_TILE // config.vocab_size)):
        part = rows[at]
        tile = x if len(part) == len(x) else np.ascontiguousarray(x[part])
        logits, _ = transformer.head_forward(config, head, linears, tile, ops, int8=int8)
        total += ops.cross_entropy_forward(logits, targets[part], weights[part])[0]
    return total


def head_losses(
    config: Config, params: Params, linears: Linears, ops: Ops, xs: tuple[Array, Array], targets: Array, weights: Array,
    sides: tuple[Perturbed, Perturbed], int8: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """`head_loss` of xs[0] with the weights of sides[0] and of xs[1] with those of sides[1]: both sides' logits of a
    tile are made together, and summed up in the parts that `head_loss` makes.
    """
    rows, totals = np.flatnonzero(weights), [0.0, 0.0]
    most = tile_rows(len(targets), LOGIT_TILE // config.vocab_size)
    name = head_name(config)
    for at in _tiles(len(rows), both_rows(config, len(targets))):
        part = rows[at]
        logits = linears[name].both(np.stack([x[part] for x in xs]), sides, name, ops, int8)  # (2, rows, V)
        for side in (0, 1):
            for few in _tiles(len(part), most):
                found, _ = ops.cross_entropy_forward(logits[side, few], targets[part[few]], weights[part[few]])
                totals[side] += found
    return totals[0], totals[1]


def both_rows(config: Config, count: int) -> int:
    """Positions a tile of `head_losses`: as many of `head_loss`'s tiles as keep both sides' logits below the size of
    the head's matrix, of which two passes would make a perturbed copy. Each tile makes that matrix's z anew.
    """
    most = tile_rows(count, LOGIT_TILE // config.vocab_size)
    return most * max(1, config.n_embd // 2 // max(1, most))


def head_row_losses(
    config: Config, params: Params, linears: Linears, ops: Ops, x: Array, targets: Array, weights: Array, width: int
) -> Array:
    """`head_loss` of each row of `width` positions, float64 (N / width,); the logits are made as there."""
    found = np.flatnonzero(weights)
    totals = np.zeros(len(x) // width)
    head = transformer.head_params(config, params, linears, ops, None)
    for at in _tiles(len(found), tile_rows(len(x), LOGIT_TILE // config.vocab_size)):
        part = found[at]
        tile = x if len(part) == len(x) else np.ascontiguousarray(x[part])
        logits, _ = transformer.head_forward(config, head, linears, tile, ops)
        rows, starts = np.unique(part // width, return_index=True)
        for row, start, stop in zip(rows, starts, [*starts[1:], len(part)], strict=True):
            where = part[start:stop]
            totals[row] += ops.cross_entropy_forward(logits[start:stop], targets[where], weights[where])[0]
    return totals


def head_loss_and_grads(
    config: Config, params: Params, linears: Linears, ops: Ops, x: Array, targets: Array, weights: Array,
    wanted: frozenset[str],
) -> tuple[float, Array, dict[str, Array]]:  # fmt: skip
    """The same loss over all positions, its gradient for x (N, C), and the head's wanted gradients."""
    dx, grads, total = np.empty_like(x), dict[str, Array](), 0.0
    for at in _tiles(len(x), tile_rows(len(x), training_rows(config, wanted))):
        logits, cache = transformer.head_forward(config, params, linears, x[at], ops)
        loss, loss_cache = ops.cross_entropy_forward(logits, targets[at], weights[at])
        dlogits = ops.cross_entropy_backward(1.0, loss_cache)
        del logits, loss_cache
        dx[at], more = transformer.head_backward(dlogits, cache, params, config, linears, ops, wanted)
        transformer.add_grads_(grads, more)
        total += loss
    return total, dx, grads


def training_rows(config: Config, wanted: frozenset[str]) -> int:
    """Most positions of a tile in training. Where the head is trained its gradients are added up, and a tile is at
    least as large as the matrix: a second one beside the sum costs no more than the logits do.
    """
    trained = any(name.startswith(f"{head_name(config)}.") for name in wanted)
    return max(LOGIT_TILE // config.vocab_size, config.n_embd if trained else 1)


def tile_rows(count: int, most: int) -> int:
    """Positions a tile where `count` positions are cut into tiles of at most `most`: as even as they come, for a tile
    of few positions reads as much of the head's matrix as one of many.
    """
    tiles = -(-count // max(1, most))
    return -(-count // max(1, tiles))


def _tiles(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, max(1, size)))
