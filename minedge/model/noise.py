"""MeZO's perturbation as a value passed down the forward pass: `Noise` names it, `Perturbed` is the weights under it.

No weight is ever written. `Perturbed(params, noise, ops)` looks like `params`, but reading a named tensor gives a
fresh array w + eps * z, made on the spot by the counter-based generator and forgotten afterwards, so memory grows by
one tensor at most, and restoring is exact because nothing has to be restored. Faster tiers may add eps * z tile by tile
inside a kernel instead; this mapping is what they have to equal, bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from minedge.errors import UsageError
from minedge.ops import Ops

__all__ = ["Noise", "Perturbed", "tensor_id", "tensor_ids"]


def tensor_id(name: str) -> int:
    """The 32-bit number that stands for a parameter's name in the generator's counter: CRC-32 of its UTF-8 bytes."""
    return zlib.crc32(name.encode())


@functools.lru_cache(maxsize=16)
def tensor_ids(names: frozenset[str]) -> Mapping[str, int]:
    """`tensor_id` of every name. Two names with one id would share their noise: a UsageError (ValueError)."""
    ids = {name: tensor_id(name) for name in sorted(names)}
    if len(set(ids.values())) < len(ids):
        by_id: dict[int, str] = {}
        for name, number in ids.items():
            if number in by_id:
                both = f"{by_id[number]!r} and {name!r}"
                raise UsageError(f"names: {both} have the same CRC-32 and would get the same noise; rename one")
            by_id[number] = name
    return ids


@dataclass(frozen=True)
class Noise:
    """w + eps * z(seed, step, sample, name) for the tensors in `names`; -eps is the other side of the same z."""

    seed: int
    step: int
    eps: float
    names: frozenset[str]
    sample: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(self.names))
        tensor_ids(self.names)


class Perturbed(Mapping[str, np.ndarray]):
    """`params` seen through `noise`: a read-only mapping that makes a perturbed tensor each time one is read.

    >>> from minedge.ops import get
    >>> params = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    >>> seen = Perturbed(params, Noise(seed=1, step=0, eps=0.1, names=frozenset({"a"})), get("numpy"))
    >>> seen["b"] is params["b"], bool((seen["a"] == seen["a"]).all()), bool((params["a"] == 0).all())
    (True, True, True)
    >>> bool((seen.rows("a", np.array([1, 1])) == seen["a"][[1, 1]]).all())
    True
    """

    def __init__(self, params: Mapping[str, np.ndarray], noise: Noise, ops: Ops):
        missing = sorted(noise.names - params.keys())
        if missing:
            raise UsageError(f"noise: expected names of parameters, got {missing[0]!r}, which the model does not have")
        self.params, self.noise, self.ops = params, noise, ops
        self._ids = tensor_ids(noise.names)

    def __getitem__(self, name: str) -> np.ndarray:
        # BEGIN SOLUTION a4.1
        if name not in self._ids:
            return self.params[name]
        return self._perturb(name, self.params[name], 0)
        # END SOLUTION

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def __contains__(self, name: object) -> bool:  # the inherited one would make a whole perturbed tensor to find out
        return name in self.params

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        """`self[name][ids]` for a 2-D tensor (an embedding), making only the rows asked for. Returns (..., C)."""
        weight, ids = self.params[name], np.asarray(ids)
        if name not in self._ids:
            return weight[ids]
        wanted, place = np.unique(ids, return_inverse=True)
        if wanted.size and not 0 <= wanted[0] <= wanted[-1] < weight.shape[0]:
            raise IndexError(f"ids: expected row numbers in [0, {weight.shape[0]}), got {wanted[0]} .. {wanted[-1]}")
        # BEGIN SOLUTION a4.2
        width = weight.shape[1]
        made = np.empty((wanted.size, width), weight.dtype)
        for low, high in _runs(wanted):  # one call for each run of neighbouring rows
            first, last = int(wanted[low]), int(wanted[high - 1]) + 1
            made[low:high] = self._perturb(name, weight[first:last], first * width)
        return made[place.reshape(ids.shape)]
        # END SOLUTION

    def linear_both(self, name: str, x: np.ndarray) -> np.ndarray:
        """x (2, ..., in) -> (2, ..., out): x[0] times `self[name]`, x[1] times the same tensor at -eps."""
        n = self.noise
        at = (n.seed, n.step, n.sample, self._ids[name])
        return self.ops.linear_both(x, self.params[name], n.eps, *at)

    def _perturb(self, name: str, weight: np.ndarray, start: int) -> np.ndarray:
        # BEGIN SOLUTION a4.1
        noise = self.noise
        return self.ops.perturb(weight, noise.eps, noise.seed, noise.step, noise.sample, self._ids[name], start=start)
        # END SOLUTION


def _runs(ordered: np.ndarray) -> Iterable[tuple[int, int]]:
    """(low, high) index pairs of the stretches of `ordered` that rise by exactly one."""
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    edges = [0, *breaks.tolist(), len(ordered)]
    return itertools.pairwise(edges) if len(ordered) else ()
