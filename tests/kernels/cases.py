"""One way to call every op of the C tier with arrays of about n elements, so that no kernel is left out of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minedge.ops import c_ops

__all__ = ["CASES", "ISAS", "arrays", "bits_of", "outputs"]

# Not an empty list without the extension: a name that then fails to load, so that nothing passes by not running.
ISAS = [name for name, supported in c_ops.isas() if supported] or ["scalar"]

Case = Callable[[np.random.Generator, int], tuple]


def _f(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _positive(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.abs(_f(rng, *shape)) + np.float32(0.5)


def _rows(n: int) -> int:
    """About sqrt(n) rows, so that rows and columns both grow."""
    return max(1, int(n**0.5) // 2)


def _packed(rng: np.random.Generator, n: int, rows: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows, blocks = rows or n % 5 + 1, n // 3 + 1
    qweight = rng.integers(0, 256, (rows, blocks * 16), dtype=np.uint8)
    return qweight, rng.standard_normal((rows, blocks)).astype(np.float16)


def _tiles(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A weight of n % 37 + 1 rows in tiles; groups of 32 or 64 columns; the rows beyond its last hold anything."""
    rows, blocks = n % 37 + 1, n // 3 + 1
    tiles, groups = -(-rows // 16), blocks // 2 if blocks % 2 == 0 else blocks
    codes = rng.integers(0, 256, (tiles, blocks, 4, 16, 4), dtype=np.uint8)
    return codes, rng.standard_normal((tiles, groups, 16)).astype(np.float16), rows


def _nf4(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    rows, blocks = n % 5 + 1, n // 3 + 1
    return rng.integers(0, 256, (rows, blocks * 16), dtype=np.uint8), _positive(rng, rows, blocks)


def _q8(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    rows, blocks = n % 5 + 1, n // 3 + 1
    return rng.integers(-128, 128, (rows, blocks * 32), dtype=np.int8), _f(rng, rows, blocks).astype(np.float16)


def _half(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float16, or bfloat16's bits: by turns."""
    numbers = _f(rng, *shape)
    return numbers.astype(np.float16) if shape[-1] % 2 else (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _bits(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.packbits(rng.random(n) < 0.5, bitorder="little")


def _sparse(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pruned weight of n % 7 + 1 rows, 8 (n // 4 + 1) columns; float32 and float16 by turns, all densities."""
    keep = rng.random((n % 7 + 1, 8 * (n // 4 + 1))) < rng.choice([0.05, 0.3, 0.5, 0.95, 1.0])
    counts = keep.sum(axis=1)
    values = _f(rng, int(counts.sum())).astype(np.float16 if n % 2 else np.float32)
    return np.packbits(keep, bitorder="little"), values, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _attention(rng: np.random.Generator, n: int, backward: bool = False) -> tuple:
    width, queries = n % 19 + 1, n // 4 + 1
    keys = queries + n % 3
    q, k, v = _f(rng, 2, queries, 4, width), _f(rng, 2, keys, 2, width), _f(rng, 2, keys, 2, width)
    return (
        (_f(rng, *q.shape), (q, k, v, _f(rng, *q.shape), _positive(rng, 2, 4, queries) + 5)) if backward else (q, k, v)
    )


def _coded(rng: np.random.Generator, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple:
    """The same attention over keys and values in codes."""
    codes = [rng.integers(-127, 128, k.shape, dtype=np.int8) for _ in range(2)]
    scales = [_positive(rng, *k.shape[:3]) for _ in range(2)]
    return q, codes[0], scales[0], codes[1], scales[1]


CASES: dict[str, Case] = {
    "embedding_forward": lambda r, n: (r.integers(0, 5, (2, n)), _f(r, 5, n + 1)),
    "embedding_backward": lambda r, n: (_f(r, _rows(n), n + 1), (r.integers(0, 5, _rows(n)), (5, n + 1))),
    "linear_forward": lambda r, n: (_f(r, 3, n + 1), _f(r, n % 7 + 1, n + 1)),
    "linear_backward": lambda r, n: (_f(r, 3, n % 7 + 1), (_f(r, 3, n + 1), _f(r, n % 7 + 1, n + 1))),
    "bias_forward": lambda r, n: (_f(r, 3, n + 1), _f(r, n + 1)),
    "bias_backward": lambda r, n: (_f(r, 70, n + 1), ()),
    "rms_norm_forward": lambda r, n: (_f(r, 3, n + 1), _f(r, n + 1), 1e-5),
    "rms_norm_backward": lambda r, n: (_f(r, 70, n + 1), (_f(r, 70, n + 1), _f(r, n + 1), _positive(r, 70))),
    "layer_norm_forward": lambda r, n: (_f(r, 3, n + 1), _f(r, n + 1), _f(r, n + 1), 1e-5),
    "layer_norm_backward": lambda r, n: (
        _f(r, 70, n + 1),
        (_f(r, 70, n + 1), _f(r, n + 1), _f(r, 70), _positive(r, 70)),
    ),
    "rotary_forward": lambda r, n: (_f(r, 2, 3, 2, 2 * n), _f(r, 3, n), _f(r, 3, n)),
    "rotary_backward": lambda r, n: (_f(r, 2, 3, 2, 2 * n), (_f(r, 3, n), _f(r, 3, n))),
    "swiglu_forward": lambda r, n: (_f(r, n), _f(r, n)),
    "swiglu_backward": lambda r, n: (_f(r, n), (_f(r, n), _f(r, n))),
    "gelu_forward": lambda r, n: (_f(r, n),),
    "gelu_backward": lambda r, n: (_f(r, n), (_f(r, n),)),
    "attention_forward": _attention,
    "attention_backward": lambda r, n: _attention(r, n, backward=True),
    "cached_attention": _attention,
    "cached_attention_int8": lambda r, n: _coded(r, *_attention(r, n)),
    "cross_entropy_forward": lambda r, n: (_f(r, 3, n + 1), r.integers(0, n + 1, 3), _positive(r, 3)),
    "cross_entropy_backward": lambda r, n: (
        0.5,
        (_f(r, 3, n + 1), r.integers(0, n + 1, 3), _positive(r, 3), _positive(r, 3)),
    ),
    "adamw_": lambda r, n: (_f(r, n), _f(r, n), _f(r, n), _positive(r, n), 1e-2, 0.9, 0.999, 1e-8, 0.1, 3, 0.5),
    "sum_squares": lambda r, n: (_f(r, n),),
    "normal": lambda r, n: (2**40 + 5, 1, 2, 3, n % 131, n),
    "perturb": lambda r, n: (_f(r, n), 1e-3, 5, 1, 2, 3, n % 131),
    "perturb_both": lambda r, n: (_f(r, n), 1e-3, 5, 1, 2, 3, n % 131),
    "linear_both": lambda r, n: (_f(r, 2, n % 9 + 1, n + 1), _f(r, n % 37 + 1, n + 1), 1e-3, 5, 1, 2, 3),
    "perturb_": lambda r, n: (_f(r, n), 0.99, 1e-3, 5, 1, 2, 3, n % 131),
    "int4_quantize": lambda r, n: (_f(r, n % 5 + 1, 32 * (n // 3 + 1)), 32),
    "int4_dequantize": lambda r, n: (*_packed(r, n), 32),
    "int4_linear_forward": lambda r, n: (_f(r, 2, 32 * (n // 3 + 1)), *_packed(r, n), 32),
    "int4_linear_backward": lambda r, n: (_f(r, 2, n % 5 + 1), (*_packed(r, n), 32)),
    "int8_quantize": lambda r, n: (_f(r, n % 5 + 1, 32 * (n // 3 + 1)),),
    "int4_int8_linear": lambda r, n: (_f(r, n % 19 + 1, 32 * (n // 3 + 1)), *_packed(r, n), 32),
    "int4_tile": lambda r, n: _packed(r, n, n % 37 + 1),
    "int4_tile_linear": lambda r, n: (_f(r, n % 19 + 1, 32 * (n // 3 + 1)), *_tiles(r, n)),
    "int4_int8_partials": lambda r, n: (
        r.integers(-128, 128, (n % 7 + 1, 32 * (n // 3 + 1)), dtype=np.int8),
        _packed(r, n)[0],
    ),
    "q8_dequantize": lambda r, n: _q8(r, n),
    "q8_int8_linear": lambda r, n: (_f(r, n % 19 + 1, 32 * (n // 3 + 1)), *_q8(r, n)),
    "half_widen": lambda r, n: (_half(r, n % 3 + 1, n),),
    "half_linear_forward": lambda r, n: (_f(r, n % 9 + 1, n + 1), _half(r, n % 7 + 1, n + 1)),
    "half_linear_backward": lambda r, n: (_f(r, 3, n % 7 + 1), (_half(r, n % 7 + 1, n + 1),)),
    "nf4_quantize": lambda r, n: (_f(r, n % 5 + 1, 32 * (n // 3 + 1)), 32),
    "nf4_dequantize": lambda r, n: (*_nf4(r, n), 32),
    "nf4_linear_forward": lambda r, n: (_f(r, 2, 32 * (n // 3 + 1)), *_nf4(r, n), 32),
    "nf4_linear_backward": lambda r, n: (_f(r, 2, n % 5 + 1), (*_nf4(r, n), 32)),
    "mask_apply": lambda r, n: (_f(r, n), _bits(r, n)),
    "mask_apply_": lambda r, n: (_f(r, n), _bits(r, n)),
    "sparse_linear_forward": lambda r, n: (_f(r, n % 9 + 1, 8 * (n // 4 + 1)), *_sparse(r, n)),
    "sparse_linear_backward": lambda r, n: (_f(r, n % 5 + 1, n % 7 + 1), _sparse(r, n)),
    "sparse_pack": lambda r, n: (_f(r, n), _bits(r, n)),
    "sparse_unpack": lambda r, n: (_f(r, n // 2), np.packbits(np.arange(n) % 2 == 1, bitorder="little"), (n,)),
}


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Every array in nested tuples."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from arrays(item)


def outputs(name: str, ops: dict, args: tuple) -> tuple:
    """What the op returned, or the arrays it changed in place; caches are left out, they repeat the inputs."""
    result = ops[name](*args)
    if name.endswith("_"):
        assert result is None
        return tuple(arrays(args))
    if name.endswith("_forward"):
        out, cache = result
        return out, tuple(a for a in arrays(cache) if not any(a is b for b in arrays(args)))
    return result if isinstance(result, tuple) else (result,)


def bits_of(value: Any) -> bytes:
    """All bits of nested tuples of arrays and floats."""
    if isinstance(value, tuple):
        return b"".join(bits_of(item) for item in value)
    return b"" if value is None else np.asarray(value).tobytes()
