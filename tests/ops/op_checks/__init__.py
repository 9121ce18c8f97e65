"""Property checks of the ops: plain functions of an ops object, used by the tests and, on planted bugs, by
tests/mutants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from op_checks.attention import check_attention, check_attention_view
from op_checks.bounds import RATIOS
from op_checks.cached_attention import check_cached_attention, check_cached_attention_int8
from op_checks.half import check_half, check_half_linear
from op_checks.int4 import (
    check_int4_linear,
    check_int4_quantize,
    check_int4_tile,
    check_int8_linear,
    check_partials,
)
from op_checks.layers import (
    check_bias,
    check_embedding,
    check_gelu,
    check_layer_norm,
    check_linear,
    check_rms_norm,
    check_rotary,
    check_swiglu,
)
from op_checks.nf4 import check_absmax, check_nf4_linear, check_nf4_quantize
from op_checks.q8 import check_q8, check_q8_product
from op_checks.sparse import check_sparse_linear
from op_checks.training import (
    check_adamw,
    check_cross_entropy,
    check_linear_both,
    check_masks,
    check_noise,
    check_sum_squares,
)

__all__ = ["CHECKS", "RATIOS", "Check", "Cross"]


class Check(NamedTuple):
    """A property, how its arguments are drawn, the ops it covers, and arguments that mutants are tried with."""

    run: Callable[..., None]
    draw: dict[str, st.SearchStrategy[Any]]
    ops: tuple[str, ...]
    typical: dict[str, Any]


class Cross:
    """Ops whose backward passes come from another tier than the rest."""

    def __init__(self, forward: Any, backward: Any):
        self._forward, self._backward = forward, backward

    def __getattr__(self, op: str) -> Any:
        return getattr(self._backward if op.endswith("_backward") else self._forward, op)


_SEED = st.integers(0, 2**31)
_FEW = st.sampled_from([1, 2, 3, 5])
_ROWS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 17, 33])
# 1, block - 1, block, block + 1, odd
_WIDTH = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
_LONG = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 33, 255, 256, 257, 1000])
_GROUP = st.sampled_from([32, 64, 128])


@st.composite
def _lengths(draw: Any) -> tuple[int, int]:
    """T and S >= T: whole sequences, single tokens, and pieces that continue a cache."""
    T = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 9]))
    return T, T + draw(st.sampled_from([0, 0, 1, 3, 16]))


def _attention(ops: Any, seed: int, B: int, lengths: tuple[int, int], KV: int, G: int, half: int, scale: float) -> None:
    check_attention(ops, seed, B, *lengths, KV, G, 2 * half, scale)


def _cached_attention(
    ops: Any, seed: int, B: int, lengths: tuple[int, int], KV: int, G: int, half: int, scale: float
) -> None:
    check_cached_attention(ops, seed, B, *lengths, KV, G, 2 * half, scale)


def _cached_attention_int8(
    ops: Any, seed: int, B: int, lengths: tuple[int, int], KV: int, G: int, D: int, scale: float
) -> None:
    check_cached_attention_int8(ops, seed, B, *lengths, KV, G, D, scale)


_SMALL = st.sampled_from([1, 2])
CHECKS: dict[str, Check] = {
    "embedding": Check(
        check_embedding,
        dict(N=_ROWS, C=_WIDTH, V=st.sampled_from([1, 2, 9, 50])),
        ("embedding_forward", "embedding_backward"),
        dict(N=20, C=17, V=9),
    ),
    "linear": Check(
        check_linear, dict(N=_ROWS, C=_WIDTH, M=_WIDTH), ("linear_forward", "linear_backward"), dict(N=9, C=33, M=17)
    ),
    "bias": Check(check_bias, dict(N=_LONG, C=_WIDTH), ("bias_forward", "bias_backward"), dict(N=257, C=33)),
    "rms_norm": Check(
        check_rms_norm, dict(N=_ROWS, C=_WIDTH), ("rms_norm_forward", "rms_norm_backward"), dict(N=9, C=33)
    ),
    "layer_norm": Check(
        check_layer_norm,
        dict(N=_ROWS, C=_WIDTH, shift=st.sampled_from([0.0, 100.0])),
        ("layer_norm_forward", "layer_norm_backward"),
        dict(N=9, C=33, shift=100.0),
    ),
    "rotary": Check(
        check_rotary,
        dict(B=_SMALL, T=_FEW, H=_FEW, half=st.sampled_from([1, 2, 7, 8, 9, 16, 17])),
        ("rotary_forward", "rotary_backward"),
        dict(B=2, T=3, H=2, half=9),
    ),
    "swiglu": Check(
        check_swiglu,
        dict(n=_LONG, scale=st.sampled_from([0.1, 3.0, 40.0])),
        ("swiglu_forward", "swiglu_backward"),
        dict(n=257, scale=3.0),
    ),
    "gelu": Check(
        check_gelu,
        dict(n=_LONG, scale=st.sampled_from([0.1, 2.0, 8.0])),
        ("gelu_forward", "gelu_backward"),
        dict(n=257, scale=2.0),
    ),
    "attention": Check(
        _attention,
        dict(
            B=_SMALL,
            lengths=_lengths(),
            KV=_SMALL,
            G=st.sampled_from([1, 2, 3]),
            half=st.sampled_from([1, 2, 3, 4, 8, 9, 16]),
            scale=st.sampled_from([0.5, 1.0, 8.0]),
        ),
        ("attention_forward", "attention_backward"),
        dict(B=2, lengths=(5, 7), KV=2, G=2, half=4, scale=1.0),
    ),
    "attention_view": Check(
        check_attention_view,
        dict(B=_FEW, S=st.sampled_from([1, 2, 7, 8, 9, 33]), KV=_SMALL, D=st.sampled_from([2, 8, 32])),
        ("attention_forward",),
        dict(B=2, S=7, KV=2, D=8),
    ),
    "cached_attention": Check(
        _cached_attention,
        dict(
            B=_SMALL,
            lengths=st.sampled_from([(1, 1), (1, 2), (3, 3), (2, 17), (5, 16), (1, 255), (3, 257), (30, 30), (9, 520)]),
            KV=_SMALL,
            G=st.sampled_from([1, 2, 3, 7, 25]),
            half=st.sampled_from([1, 2, 4, 8, 9, 16]),
            scale=st.sampled_from([0.5, 1.0, 8.0]),
        ),
        ("cached_attention",),
        dict(B=2, lengths=(5, 7), KV=2, G=2, half=4, scale=1.0),
    ),
    "cached_attention_int8": Check(
        _cached_attention_int8,
        dict(
            B=_SMALL,
            lengths=st.sampled_from([(1, 1), (1, 2), (3, 3), (2, 17), (5, 16), (1, 255), (3, 257), (30, 30), (9, 520)]),
            KV=_SMALL,
            G=st.sampled_from([1, 2, 3, 7, 25]),
            D=st.sampled_from([1, 2, 7, 16, 33, 64, 600]),
            scale=st.sampled_from([0.5, 1.0, 8.0]),
        ),
        ("cached_attention_int8",),
        dict(B=2, lengths=(5, 270), KV=2, G=2, D=8, scale=1.0),
    ),
    "cross_entropy": Check(
        check_cross_entropy,
        dict(N=_ROWS, V=_LONG, scale=st.sampled_from([0.1, 3.0, 30.0])),
        ("cross_entropy_forward", "cross_entropy_backward"),
        dict(N=9, V=33, scale=3.0),
    ),
    "adamw": Check(
        check_adamw,
        dict(n=_LONG, step=st.sampled_from([1, 2, 10, 1000]), grad_scale=st.sampled_from([1.0, 0.3])),
        ("adamw_",),
        dict(n=257, step=2, grad_scale=0.3),
    ),
    "sum_squares": Check(
        check_sum_squares, dict(n=st.sampled_from([1, 3, 17, 20000])), ("sum_squares",), dict(n=20000)
    ),
    "masks": Check(
        check_masks,
        dict(rows=_FEW, cols=_WIDTH),
        ("mask_apply", "mask_apply_", "sparse_pack", "sparse_unpack"),
        dict(rows=3, cols=33),
    ),
    "noise": Check(
        check_noise,
        dict(count=st.sampled_from([1, 3, 4, 5, 33]), start=st.sampled_from([0, 1, 2, 3, 4, 1021, 2**34 - 200])),
        ("normal", "perturb", "perturb_", "perturb_both"),
        dict(count=33, start=3),
    ),
    "linear_both": Check(check_linear_both, dict(N=_ROWS, C=_WIDTH, M=_WIDTH), ("linear_both",), dict(N=9, C=33, M=17)),
    "int4_quantize": Check(
        check_int4_quantize,
        dict(rows=_FEW, groups=_SMALL, group_size=_GROUP),
        ("int4_quantize", "int4_dequantize"),
        dict(rows=3, groups=2, group_size=64),
    ),
    "int4_linear": Check(
        check_int4_linear,
        dict(N=_ROWS, groups=_SMALL, M=st.sampled_from([1, 2, 7, 8, 9]), group_size=_GROUP),
        ("int4_linear_forward", "int4_linear_backward"),
        dict(N=5, groups=2, M=9, group_size=64),
    ),
    "int8_linear": Check(
        check_int8_linear,
        dict(N=_FEW, groups=_SMALL, M=st.sampled_from([1, 2, 7, 8, 9]), group_size=_GROUP),
        ("int8_quantize", "int4_int8_linear"),
        dict(N=3, groups=2, M=9, group_size=64),
    ),
    "int4_tile": Check(
        check_int4_tile,
        dict(N=st.integers(1, 70), groups=st.integers(1, 5), M=st.integers(1, 50), group_size=_GROUP),
        ("int4_tile", "int4_tile_linear"),
        dict(N=9, groups=3, M=21, group_size=64),
    ),
    "nf4_quantize": Check(
        check_nf4_quantize,
        dict(rows=_FEW, blocks=_SMALL, block=_GROUP),
        ("nf4_quantize", "nf4_dequantize"),
        dict(rows=3, blocks=2, block=64),
    ),
    "nf4_linear": Check(
        check_nf4_linear,
        dict(N=_ROWS, blocks=_SMALL, M=st.sampled_from([1, 2, 7, 8, 9]), block=_GROUP),
        ("nf4_linear_forward", "nf4_linear_backward"),
        dict(N=5, blocks=2, M=9, block=64),
    ),
    "absmax": Check(
        check_absmax,
        dict(n=st.sampled_from([1, 2, 85, 86, 171, 500])),
        ("absmax_quantize", "absmax_dequantize"),
        dict(n=171),
    ),
    "q8": Check(
        check_q8,
        dict(rows=_FEW, blocks=_SMALL),
        ("q8_quantize", "q8_dequantize"),
        dict(rows=3, blocks=2),
    ),
    "q8_product": Check(
        check_q8_product,
        dict(N=_ROWS, blocks=st.integers(1, 10), M=st.sampled_from([1, 2, 7, 8, 9])),
        ("q8_int8_linear",),
        dict(N=9, blocks=3, M=5),
    ),
    "half": Check(check_half, dict(n=_LONG), ("half_round", "half_widen"), dict(n=257)),
    "half_linear": Check(
        check_half_linear,
        dict(N=_ROWS, C=_WIDTH, M=_WIDTH),
        ("half_linear_forward", "half_linear_backward"),
        dict(N=9, C=33, M=17),
    ),
    "sparse_linear": Check(
        check_sparse_linear,
        dict(
            N=_ROWS,
            blocks=st.integers(1, 20),
            M=st.sampled_from([1, 2, 4, 5, 8, 9]),
            density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
        ),
        ("sparse_linear_forward", "sparse_linear_backward"),
        dict(N=4, blocks=9, M=9, density=0.5),
    ),
    "partials": Check(
        check_partials,
        dict(N=_ROWS, blocks=st.integers(1, 10), M=st.sampled_from([1, 2, 7, 8, 9])),
        ("int4_int8_partials",),
        dict(N=3, blocks=3, M=5),
    ),
}
for _check in CHECKS.values():
    _check.draw["seed"] = _SEED
    _check.typical["seed"] = 7
