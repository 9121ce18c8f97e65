"""The Numba tier: compiled loops for float32, made at first use, cached on disk; no C compiler needed."""

from minedge.ops.numba_ops.attention import attention_backward, attention_forward
from minedge.ops.numba_ops.attention_decode import cached_attention
from minedge.ops.numba_ops.int4 import (
    int4_dequantize,
    int4_int8_linear,
    int4_int8_partials,
    int4_linear_backward,
    int4_linear_forward,
    int4_quantize,
    int8_quantize,
)
from minedge.ops.numba_ops.layers import (
    bias_backward,
    bias_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
    rms_norm_backward,
    rms_norm_forward,
    rotary_backward,
    rotary_forward,
    swiglu_backward,
    swiglu_forward,
)
from minedge.ops.numba_ops.loss import cross_entropy_backward, cross_entropy_forward
from minedge.ops.numba_ops.masks import mask_apply, mask_apply_, sparse_pack, sparse_unpack
from minedge.ops.numba_ops.nf4 import (
    nf4_dequantize,
    nf4_linear_backward,
    nf4_linear_forward,
    nf4_quantize,
)
from minedge.ops.numba_ops.noise import linear_both, normal, perturb, perturb_, perturb_both
from minedge.ops.numba_ops.optim import adamw_, sum_squares
from minedge.ops.numba_ops.q8 import q8_int8_linear

__all__ = [
    "adamw_",
    "attention_backward",
    "attention_forward",
    "bias_backward",
    "bias_forward",
    "cached_attention",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "int4_dequantize",
    "int4_int8_linear",
    "int4_int8_partials",
    "int4_linear_backward",
    "int4_linear_forward",
    "int4_quantize",
    "int8_quantize",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_both",
    "linear_forward",
    "mask_apply",
    "mask_apply_",
    "nf4_dequantize",
    "nf4_linear_backward",
    "nf4_linear_forward",
    "nf4_quantize",
    "normal",
    "perturb",
    "perturb_",
    "perturb_both",
    "q8_int8_linear",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "sparse_pack",
    "sparse_unpack",
    "sum_squares",
    "swiglu_backward",
    "swiglu_forward",
]
