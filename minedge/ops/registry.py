"""Which op must exist in which tier. The table is data: `minedge doctor` prints it, and a fallback it does not name
fails the tests.

native  the tier has its own implementation
blas    the tier's own checks around NumPy's matrix product
numpy   the specification stands in, on purpose
"""

from __future__ import annotations

__all__ = ["OPS", "TIERS"]

TIERS = ("numpy", "numba", "c")

_LAYERS = tuple(
    f"{layer}_{way}"
    for layer in ("embedding", "bias", "rms_norm", "layer_norm", "rotary", "swiglu", "gelu")
    for way in ("forward", "backward")
)
_ATTENTION = ("attention_forward", "attention_backward", "cached_attention")
_LOSS = ("cross_entropy_forward", "cross_entropy_backward")
_OPTIM = ("adamw_", "sum_squares")
_NOISE = ("normal", "perturb", "perturb_", "perturb_both")
_INT4 = ("int4_quantize", "int4_dequantize", "int8_quantize", "int4_int8_partials", "int4_int8_linear")
_NF4 = ("nf4_quantize", "nf4_dequantize")
_Q8 = ("q8_int8_linear",)
_HALF = ("half_widen", "half_linear_forward", "half_linear_backward")
_ABSMAX = ("absmax_quantize", "absmax_dequantize")
_SPARSE = ("sparse_linear_forward", "sparse_linear_backward")
_MASKS = ("mask_apply", "mask_apply_", "sparse_pack", "sparse_unpack")
_PRODUCTS = (
    "linear_both",
    *(f"{weight}linear_{way}" for weight in ("", "int4_", "nf4_") for way in ("forward", "backward")),
)

OPS: dict[str, dict[str, str]] = {
    name: {"numpy": "native", "numba": "native", "c": "native"}
    for name in (*_LAYERS, *_ATTENTION, *_LOSS, *_OPTIM, *_NOISE, *_INT4, *_NF4, *_Q8, *_MASKS)
}
# Float matrix products: the numba tier leaves them to NumPy's BLAS, which is native code already.
OPS.update({name: {"numpy": "native", "numba": "blas", "c": "native"} for name in _PRODUCTS})
# NF4's block scales are one number for 64 weights: NumPy is fast enough for them everywhere.
OPS.update({name: {"numpy": "native", "numba": "numpy", "c": "numpy"} for name in _ABSMAX})
# Eight-bit weights and sixteen-bit floats are made once: NumPy is fast enough for that. Numba knows no float16, and
# packed pruned weights are for memory and the c tier's speed.
OPS.update({name: {"numpy": "native", "numba": "numpy", "c": "numpy"} for name in ("q8_quantize", "half_round")})
OPS.update({name: {"numpy": "native", "numba": "numpy", "c": "native"} for name in ("q8_dequantize", *_HALF, *_SPARSE)})
# The same numbers in another order, for the c tier's kernels.
OPS.update({name: {"numpy": "native", "numba": "numpy", "c": "native"} for name in ("int4_tile", "int4_tile_linear")})
# An int8 cache is the engine's; elsewhere its specification is enough.
OPS["cached_attention_int8"] = {"numpy": "native", "numba": "numpy", "c": "native"}
