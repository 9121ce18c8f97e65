"""What general text models reach on the built-in test text, in bits per byte: xz and interpolated 5-gram models.

    python benchmarks/text_baselines.py [--tokenizer DIR]       prints JSON; about half a minute

The n-gram models are interpolated Kneser-Ney with three discounts per order (Chen and Goodman 1999, Sec. 3), over bytes
and over the tokens of a BPE. With c the counts at the highest order and, below it, the number of different symbols seen
before an n-gram,

    p_n(w|h) = max(c(hw) - D(c(hw)), 0) / c(h.) + (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h.) * p_{n-1}(w|h'),   p_0 = 1/V

N_k(h) = symbols that follow h exactly k times (3: three times or more). The discounts follow from counts of counts; one
factor on all of them is tuned on the validation part. Every document ends with an end symbol, whose bits are charged
and whose byte is not counted.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minedge.data.splits import stdlib_splits
from minedge.data.tokenizer import Tokenizer

ORDER = 5
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)


def ngram_keys(documents: Sequence[Sequence[int]], end: int, order: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(keys, scored): keys[n][i] is a 64-bit hash of the n symbols up to position i; scored marks the symbols to
    predict.
    """
    pad = [end] * (order - 1)
    symbols = np.array([s for doc in documents for s in (*pad, *doc, end)], np.uint64)
    scored = np.array([x for doc in documents for x in (*[False] * (order - 1), *[True] * (len(doc) + 1))])
    keys = [np.zeros(len(symbols), np.uint64)]
    for n in range(1, order + 1):
        older = np.concatenate([np.full(n - 1, end, np.uint64), symbols[: len(symbols) - (n - 1)]])
        x = (keys[-1] ^ (older + np.uint64(n << 32))) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(n)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys.append(x ^ (x >> np.uint64(29)))
    return keys, scored


@dataclass
class Level:
    """Counts of one order: n-grams (sorted keys, counts) and their contexts (sorted keys, total, N1..N3)."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    followers: np.ndarray  # (contexts, 3)
    discounts: np.ndarray  # (3,)


def train_ngram(documents: Sequence[Sequence[int]], end: int, order: int) -> list[Level]:
    """Levels 1..order."""
    keys, scored = ngram_keys(documents, end, order)
    at = np.flatnonzero(scored)
    levels: list[Level] = []
    for n in range(order, 0, -1):
        # At the highest order `at` is every position; below it, one position per different longer n-gram.
        grams, first, counts = np.unique(keys[n][at], return_index=True, return_counts=True)
        context_of_gram = keys[n - 1][at[first] - 1]
        contexts, inverse = np.unique(context_of_gram, return_inverse=True)
        totals = np.bincount(inverse, counts)
        bucket = np.minimum(counts, 3) - 1
        followers = np.stack([np.bincount(inverse, bucket == k, len(contexts)) for k in range(3)], axis=1)
        n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discounts = np.clip([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0.05, [0.95, 1.9, 2.8])
        levels.insert(0, Level(grams, counts, contexts, totals, followers, discounts))
        at = at[first]
    return levels


def find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index, found) of each key."""
    index = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return index, sorted_keys[index] == keys


def probabilities(
    levels: list[Level], documents: Sequence[Sequence[int]], end: int, n_symbols: int, scale: float
) -> np.ndarray:
    """p of every symbol of the documents, each document's end symbol included."""
    keys, scored = ngram_keys(documents, end, len(levels))
    at = np.flatnonzero(scored)
    p = np.full(len(at), 1.0 / n_symbols)
    for n, level in enumerate(levels, 1):
        gram, known = find(level.grams, keys[n][at])
        context, seen = find(level.contexts, keys[n - 1][at - 1])
        discounts = np.minimum(level.discounts * scale, [0.99, 1.99, 2.99])
        count = np.where(known, level.counts[gram], 0)
        kept = np.maximum(count - discounts[np.clip(count, 1, 3) - 1], 0)
        p = np.where(seen, (kept + level.followers[context] @ discounts * p) / level.totals[context], p)
    return p


def ngram_bits_per_byte(
    parts: Mapping[str, Sequence[Sequence[int]]], n_bytes: dict[str, int], end: int, order: int
) -> dict:
    """Bits per byte on test, with the discount factor that validation prefers."""
    levels = train_ngram(parts["train"], end, order)

    def bits_per_byte(part: str, scale: float) -> float:
        return float(-np.log2(probabilities(levels, parts[part], end, end + 1, scale)).sum() / n_bytes[part])

    valid = {s: bits_per_byte("valid", s) for s in SCALES}
    scale = min(valid, key=lambda s: valid[s])
    test = bits_per_byte("test", scale)
    return {"order": order, "discount_scale": scale, "valid": round(valid[scale], 4), "test": round(test, 4)}


def xz_size(texts: Sequence[str]) -> int:
    """Bytes of the texts, a zero byte between them, as a bare LZMA2 stream (no container to pay for)."""
    data = "\0".join(texts).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0, "lc": 4}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def measure(tokenizer: Tokenizer | None = None) -> dict:
    """All baselines on the test part; `tokenizer` None trains one of 1536 ids on the training part."""
    found = stdlib_splits()
    texts = {part: found.texts(part) for part in ("train", "valid", "test")}
    n_bytes = {part: found.n_bytes(part) for part in texts}
    tokenizer = tokenizer or Tokenizer.train_bpe(texts["train"], 1536)
    as_bytes = {part: [list(t.encode()) for t in docs] for part, docs in texts.items()}
    as_tokens = {part: tokenizer.encode_batch(docs) for part, docs in texts.items()}
    end = tokenizer.vocab_size

    return {
        "python": found.python,
        "corpus_sha256": found.sha256,
        "n_bytes": n_bytes,
        "xz_test_alone": round(8 * xz_size(texts["test"]) / n_bytes["test"], 4),
        "xz_test_after_train": round(
            8 * (xz_size(texts["train"] + texts["test"]) - xz_size(texts["train"])) / n_bytes["test"], 4
        ),
        "byte_5gram": ngram_bits_per_byte(as_bytes, n_bytes, 256, ORDER),
        "byte_8gram": ngram_bits_per_byte(as_bytes, n_bytes, 256, 8),
        "token_5gram": {"vocab_size": tokenizer.vocab_size, **ngram_bits_per_byte(as_tokens, n_bytes, end, ORDER)},
        "token_3gram": {"vocab_size": tokenizer.vocab_size, **ngram_bits_per_byte(as_tokens, n_bytes, end, 3)},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tokenizer", help="folder with tokenizer.json; default: train one of 1536 ids on the training part"
    )
    args = parser.parse_args()
    print(json.dumps(measure(Tokenizer.load(args.tokenizer) if args.tokenizer else None), indent=2))


if __name__ == "__main__":
    main()
