"""The specification tier: every op in NumPy, written to be read. The other tiers are held equal to it."""

from minedge.ops.numpy_ops.attention import attention_backward, attention_forward
from minedge.ops.numpy_ops.attention_decode import cached_attention, cached_attention_int8
from minedge.ops.numpy_ops.half import half_linear_backward, half_linear_forward, half_round, half_widen
from minedge.ops.numpy_ops.int4 import (
    int4_dequantize,
    int4_int8_linear,
    int4_int8_partials,
    int4_linear_backward,
    int4_linear_forward,
    int4_quantize,
    int8_quantize,
)
from minedge.ops.numpy_ops.int4_tiles import int4_tile, int4_tile_linear
from minedge.ops.numpy_ops.layers import (
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
from minedge.ops.numpy_ops.loss import cross_entropy_backward, cross_entropy_forward
from minedge.ops.numpy_ops.masks import mask_apply, mask_apply_, sparse_pack, sparse_unpack
from minedge.ops.numpy_ops.nf4 import (
    absmax_dequantize,
    absmax_quantize,
    nf4_dequantize,
    nf4_linear_backward,
    nf4_linear_forward,
    nf4_quantize,
)
from minedge.ops.numpy_ops.noise import linear_both, normal, perturb, perturb_, perturb_both
from minedge.ops.numpy_ops.optim import adamw_, sum_squares
from minedge.ops.numpy_ops.q8 import q8_dequantize, q8_int8_linear, q8_quantize
from minedge.ops.numpy_ops.sparse import sparse_linear_backward, sparse_linear_forward

__all__ = [
    "absmax_dequantize",
    "absmax_quantize",
    "adamw_",
    "attention_backward",
    "attention_forward",
    "bias_backward",
    "bias_forward",
    "cached_attention",
    "cached_attention_int8",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "half_linear_backward",
    "half_linear_forward",
    "half_round",
    "half_widen",
    "int4_dequantize",
    "int4_int8_linear",
    "int4_int8_partials",
    "int4_linear_backward",
    "int4_linear_forward",
    "int4_quantize",
    "int4_tile",
    "int4_tile_linear",
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
    "q8_dequantize",
    "q8_int8_linear",
    "q8_quantize",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "sparse_linear_backward",
    "sparse_linear_forward",
    "sparse_pack",
    "sparse_unpack",
    "sum_squares",
    "swiglu_backward",
    "swiglu_forward",
]
