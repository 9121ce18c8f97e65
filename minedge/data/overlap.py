r"""Which passages share text: exact shared runs, near-duplicates, and a small fingerprint of a whole training split.

A text of n symbols has n - k + 1 windows of k symbols. The hash of window i is a polynomial in an odd b modulo 2^64,

    h_i = sum_j  c[i + j] * b^j  =  b^(-i) * (P[i + k] - P[i]),    P[n] = sum_{m < n} c[m] * b^m,

so one cumulative sum gives all windows. Integer arithmetic modulo 2^64 is the same on every machine.

The fingerprint is winnowing (Schleimer, Wilkerson, Aiken, SIGMOD 2003): of every `WINDOW` consecutive hashes keep the
smallest. Two texts that share a run of GRAM + WINDOW - 1 characters then share a kept hash, wherever the run stands.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minedge.data.corpus import normalized
from minedge.errors import MinedgeFormatError

__all__ = ["RUN", "SeenFilter", "overlapping", "window_hashes"]

RUN = 40  # characters in a row: more is a copy
SHINGLE = 5  # words
NEAR = 0.5  # share of a passage's shingles that makes it a near-duplicate
GRAM, WINDOW = 32, 29  # the fingerprint finds every shared run of 60 characters

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_WORDS = re.compile(r"\w+")


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: spreads every input bit over the whole word."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def window_hashes(symbols: np.ndarray, lengths: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, owners) of all windows of k symbols that lie inside one text.

    `symbols` holds the texts one after the other, `lengths` their sizes. A text shorter than k is one window: the whole
    text, with its length mixed in so that it equals only another text of exactly that content.
    """
    n = len(symbols)
    count = np.asarray(lengths, np.int64)
    ends = np.cumsum(count)
    owners = np.repeat(np.arange(len(count)), count)
    at = np.arange(n)
    size = np.minimum(k, ends[owners] - at)  # symbols from here to the window's end
    starts = ends[owners] - count[owners]
    whole = (size == k) | ((at == starts) & (count[owners] < k))
    at, size, owners = at[whole], size[whole], owners[whole]

    code = _mix(symbols.astype(np.uint64) + np.uint64(1))
    power = np.ones(n + 1, np.uint64)
    power[1:] = _BASE
    power = np.cumprod(power, dtype=np.uint64)  # b^i, wrapping
    inverse = np.ones(n + 1, np.uint64)
    inverse[1:] = pow(_BASE, -1, 1 << 64)
    inverse = np.cumprod(inverse, dtype=np.uint64)
    total = np.zeros(n + 1, np.uint64)
    np.cumsum(code * power[:n], dtype=np.uint64, out=total[1:])
    hashes = (total[at + size] - total[at]) * inverse[at]
    return _mix(hashes + size.astype(np.uint64)), owners


def _char_windows(texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    encoded = [normalized(text).encode() for text in texts]
    return window_hashes(np.frombuffer(b"".join(encoded), np.uint8), [len(e) for e in encoded], k)


def _word_windows(texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    words = [[zlib.crc32(w.encode()) for w in _WORDS.findall(text.lower())] for text in texts]
    return window_hashes(np.array([c for w in words for c in w], np.uint64), [len(w) for w in words], k)


def _contained(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """np.isin for arrays with few copies, where sorting is several times faster than its hash table."""
    if not len(theirs):
        return np.zeros(len(mine), bool)
    theirs = np.sort(theirs)
    at = np.minimum(np.searchsorted(theirs, mine), len(theirs) - 1)
    return theirs[at] == mine


def overlapping(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """bool (len(texts),): True where a text repeats something of `others`.

    Either it shares a run of 40 characters with one of them (case and white space aside; a shorter text must equal
    one), or more than half of its 5-word shingles occur in them.
    """
    if not texts or not others:
        return np.zeros(len(texts), bool)
    mine, owners = _char_windows(texts, RUN)
    theirs, _ = _char_windows(others, RUN)
    shared = np.bincount(owners[_contained(mine, theirs)], minlength=len(texts)) > 0
    mine, owners = _word_windows(texts, SHINGLE)
    theirs, _ = _word_windows(others, SHINGLE)
    hits = np.bincount(owners[_contained(mine, theirs)], minlength=len(texts))
    count = np.bincount(owners, minlength=len(texts))
    return shared | (hits > NEAR * np.maximum(count, 1))


def _fingerprint(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(32-bit hashes, owners): the smallest of every WINDOW consecutive windows; of a shorter text, its smallest."""
    hashes, owners = _char_windows(texts, GRAM)
    hashes = hashes >> np.uint64(32)
    n = len(hashes)
    if n == 0:
        return hashes.astype(np.uint32), owners
    # A minimum over WINDOW neighbours inside one text; positions past its end count as infinite.
    padded = np.concatenate([hashes, np.full(WINDOW, 1 << 40, np.uint64)])
    padded_owners = np.concatenate([owners, np.full(WINDOW, -1)])
    least = hashes.copy()
    for j in range(1, WINDOW):
        np.minimum(least, np.where(padded_owners[j : n + j] == owners, padded[j : n + j], least), out=least)
    # A window that runs past the end of a text adds only a finer choice near that end; keep it for short texts alone.
    ends = np.cumsum(np.bincount(owners))[owners]
    starts = ends - np.bincount(owners)[owners]
    inside = (np.arange(n) + WINDOW <= ends) | (np.arange(n) == starts)
    pairs = np.unique(np.stack([owners[inside].astype(np.uint64), least[inside]]), axis=1)
    return pairs[1].astype(np.uint32), pairs[0].astype(np.int64)


class SeenFilter:
    """A small record of a training split that tells later which passages repeat it.

    `seen(texts)` is True for a text that shares a run of 60 characters with the split, for an exact copy of any length,
    and by chance in about one passage of three thousand. Of shared runs of 32 to 59 characters it finds some.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = np.unique(np.asarray(hashes, np.uint32))

    @classmethod
    def of(cls, texts: Sequence[str]) -> SeenFilter:
        """The filter of a training split."""
        return cls(_fingerprint(texts)[0])

    def seen(self, texts: Sequence[str]) -> np.ndarray:
        """bool (len(texts),): True where a text repeats the split the filter was made of."""
        hashes, owners = _fingerprint(texts)
        return np.bincount(owners[_contained(hashes, self.hashes)], minlength=len(texts)) > 0

    def save(self, path: str | Path) -> None:
        """Write one .npy of uint16: how many hashes have each of the 65,536 upper halves, then the lower halves."""
        counts = np.bincount(self.hashes >> np.uint32(16), minlength=1 << 16).astype(np.uint16)
        lower = (self.hashes & np.uint32(0xFFFF)).astype(np.uint16)
        packed = np.concatenate([_pack_counts(counts), lower])
        with open(path, "wb") as file:
            np.save(file, packed, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> SeenFilter:
        """Read what `save` wrote; MinedgeFormatError if the file is something else."""
        try:
            with open(path, "rb") as file:
                packed = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MinedgeFormatError(f"{path}: expected a fingerprint written by minedge, got {error}") from None
        half = 1 << 15
        if packed.dtype != np.uint16 or packed.ndim != 1 or len(packed) < half:
            raise MinedgeFormatError(
                f"{path}: expected a uint16 vector of at least {half} entries, got {packed.dtype} {packed.shape}"
            )
        counts = _unpack_counts(packed[:half])
        if counts.sum() != len(packed) - half:
            raise MinedgeFormatError(
                f"{path}: counts promise {counts.sum()} hashes, the file holds {len(packed) - half}"
            )
        upper = np.repeat(np.arange(1 << 16, dtype=np.uint32), counts)
        return cls(upper << np.uint32(16) | packed[half:])


def _pack_counts(counts: np.ndarray) -> np.ndarray:
    """65,536 counts below 256, two to a uint16."""
    if counts.max(initial=0) > 255:
        raise ValueError("a training split of this size needs more than 255 hashes in one bucket")
    return counts[0::2] | counts[1::2] << np.uint16(8)


def _unpack_counts(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & np.uint16(255), packed >> np.uint16(8)], axis=1).ravel().astype(np.int64)
