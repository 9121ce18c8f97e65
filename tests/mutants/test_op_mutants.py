"""Planted bugs in the ops: each must be caught by the very property that tests/ops checks, or that property proves
nothing.
"""

from __future__ import annotations

import warnings

import pytest
from op_checks import CHECKS, RATIOS
from planting import Mutant, mutated_ops

import minedge.ops

MUTANTS = [
    Mutant(
        "kept values in the wrong order",
        "sparse",
        "sparse_unpack(kept, ",
        "sparse_unpack(kept[::-1], ",
        "sparse_linear",
    ),
    Mutant(
        "pruned weights' signs lost in backward", "sparse", "rows] @ weight\n", "rows] @ abs(weight)\n", "sparse_linear"
    ),
    Mutant(
        "no 1/sqrt(D) in attention's backward",
        "attention",
        " / np.sqrt(D).astype(q.dtype)\n    dq",
        "\n    dq",
        "attention",
    ),
    Mutant("causal mask sees one key too many", "attention", "+ (S - T)\n", "+ (S - T) + 1\n", "attention"),
    Mutant("causal mask forgets the cache before it", "attention", "+ (S - T)\n", "\n", "attention"),
    Mutant(
        "a query over a cache sees its future",
        "attention_decode",
        "k[:, : past + t + 1], v[:, : past + t + 1]",
        "k, v",
        "cached_attention",
    ),
    Mutant(
        "int8: a query's scale forgotten",
        "attention_decode",
        "s = d_q[:, t, :, :, None] * heads",
        "s = heads",
        "cached_attention_int8",
    ),
    Mutant(
        "int8: weights in 8 bits",
        "attention_decode",
        "[:, :, None], 32767)",
        "[:, :, None], 127)",
        "cached_attention_int8",
    ),
    Mutant(
        "int8: spans join without their tops",
        "attention_decode",
        "factors = np.exp(np.stack(tops) - np.max(tops, axis=0))",
        "factors = np.ones_like(np.stack(tops))",
        "cached_attention_int8",
    ),
    Mutant(
        "int8: a query sees its future",
        "attention_decode",
        "        seen = S - T + t + 1\n",
        "        seen = S\n",
        "cached_attention_int8",
    ),
    Mutant(
        "int8: the query's codes overflow a wide head's sum",
        "attention_decode",
        'np.einsum("bkgd,bskd->bkgs", codes[:, t], k[:, :seen].astype(np.int64))',
        'np.einsum("bkgd,bskd->bkgs", codes[:, t], k[:, :seen].astype(np.int64)).astype(np.int16)',
        "cached_attention_int8",
    ),
    Mutant("softmax's backward without the sum", "attention", "(dp - delta[..., None])", "dp", "attention"),
    Mutant(
        "dk forgets to add the heads of a group",
        "attention",
        '"bkgts,btkgd->bskd", ds, q5,',
        '"bkgts,btkgd->bskd", ds[:, :, :1], q5[:, :, :, :1],',
        "attention",
    ),
    Mutant(
        "dv forgets to add the heads of a group",
        "attention",
        '"bkgts,btkgd->bskd", p, dout5,',
        '"bkgts,btkgd->bskd", p[:, :, :1], dout5[:, :, :, :1],',
        "attention",
    ),
    Mutant("rotary turns the wrong way", "layers", "first * c - second * s", "first * c + second * s", "rotary"),
    Mutant(
        "rotary's backward turns on",
        "layers",
        "rotary_forward(dout, cos, -sin)",
        "rotary_forward(dout, cos, sin)",
        "rotary",
    ),
    Mutant(
        "RMSNorm's backward sums where it should average", "layers", "dn - n * np.mean(", "dn - n * np.sum(", "rms_norm"
    ),
    Mutant(
        "RMSNorm adds eps outside the root",
        "layers",
        "1.0 / np.sqrt(np.mean(x * x, axis=-1) + eps)",
        "1.0 / (np.sqrt(np.mean(x * x, axis=-1)) + eps)",
        "rms_norm",
    ),
    Mutant(
        "LayerNorm by E[x^2] - E[x]^2",
        "layers",
        "np.mean(centred * centred, axis=-1)",
        "(np.mean(x * x, axis=-1) - mean * mean)",
        "layer_norm",
    ),
    Mutant("LayerNorm's backward keeps the mean", "layers", " - dn.mean(axis=-1, keepdims=True)", "", "layer_norm"),
    Mutant(
        "a token used twice gets one gradient",
        "layers",
        "np.add.at(dweight, ids.ravel(), dout.reshape(-1, shape[1]))",
        "dweight[ids.ravel()] = dout.reshape(-1, shape[1])",
        "embedding",
    ),
    Mutant("silu's derivative is its sigmoid", "layers", "s * (1.0 + gate * (1.0 - s))", "s", "swiglu"),
    Mutant("GELU's inner derivative without the 3", "layers", "3.0 * GELU_CUBIC", "GELU_CUBIC", "gelu"),
    Mutant(
        "GELU's derivative 1% too large in one term",
        "layers",
        "0.5 * x * (1.0 - t * t)",
        "0.505 * x * (1.0 - t * t)",
        "gelu",
    ),
    Mutant(
        "dweight averaged over rows",
        "layers",
        "dweight = dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1])",
        "dweight = dout.reshape(-1, dout.shape[-1]).T @ x.reshape(-1, x.shape[-1]) / len(x)",
        "linear",
    ),
    Mutant("dbias misses the last row", "layers", "dout, dout.reshape(-1, dout.shape[-1])", "dout, dout[:-1]", "bias"),
    Mutant("softmax without its target", "loss", "targets] -= 1.0", "targets] -= 0.0", "cross_entropy"),
    Mutant("loss gradient forgets the weights", "loss", "(dloss * weights)", "(dloss + 0 * weights)", "cross_entropy"),
    Mutant(
        "loss weighs every row alike", "loss", "np.sum(weights", "np.sum(weights * 0 + weights.mean()", "cross_entropy"
    ),
    Mutant("AdamW without bias correction", "optim", "m / (1.0 - beta1**step)", "m", "adamw"),
    Mutant("AdamW counts steps from 0", "optim", "v / (1.0 - beta2**step)", "v / (1.0 - beta2 ** (step + 1))", "adamw"),
    Mutant(
        "decay not scaled by the learning rate",
        "optim",
        "param -= lr * weight_decay * param\n",
        "param -= weight_decay * param\n",
        "adamw",
    ),
    Mutant("gradient scale forgotten", "optim", "grad * param.dtype.type(grad_scale)", "grad", "adamw"),
    Mutant("squares added up in float32", "optim", "x.ravel().astype(np.float64)", "x.ravel()", "sum_squares"),
    Mutant(
        "nibbles swapped when packing",
        "int4",
        "q[..., :16] | (q[..., 16:] << 4)",
        "q[..., 16:] | (q[..., :16] << 4)",
        "int4_quantize",
    ),
    Mutant("codes rounded instead of truncated", "int4", "np.trunc(codes)", "np.rint(codes)", "int4_quantize"),
    Mutant(
        "magnitude instead of signed maximum",
        "int4",
        "where, axis=-1) /",
        "where, axis=-1).__abs__() /",
        "int4_quantize",
    ),
    Mutant(
        "scale rounded before it is inverted",
        "int4",
        "d = np.take_along_axis(x, where, axis=-1) / np.float32(-8)",
        "d = (np.take_along_axis(x, where, axis=-1) / np.float32(-8)).astype(np.float16).astype(np.float32)",
        "int4_quantize",
    ),
    Mutant(
        "codes read without the 8",
        "int4",
        "astype(np.int8) - np.int8(8)",
        "astype(np.int8) - np.int8(7)",
        "int4_linear",
    ),
    Mutant(
        "scales spread over the wrong groups",
        "int4",
        "group_size // BLOCK, axis=1)",
        "group_size // BLOCK, axis=1)[:, ::-1]",
        "int8_linear",
    ),
    Mutant(
        "activations rounded half to even",
        "int4",
        "np.trunc(scaled + np.copysign(np.float32(0.5), scaled))",
        "np.rint(scaled)",
        "int8_linear",
    ),
    Mutant(
        "even code in the low nibble",
        "nf4",
        "codes[:, ::2] << 4 | codes[:, 1::2]",
        "codes[:, ::2] | codes[:, 1::2] << 4",
        "nf4_quantize",
    ),
    Mutant("a digit of the codebook", "nf4", "0.33791524171829224", "0.33791424171829224", "nf4_quantize"),
    Mutant(
        "midpoints taken upwards",
        "nf4",
        "np.searchsorted(MIDPOINTS, scaled.reshape(len(x), -1))",
        'np.searchsorted(MIDPOINTS, scaled.reshape(len(x), -1), side="right")',
        "nf4_quantize",
    ),
    Mutant(
        "divided instead of multiplied",
        "nf4",
        "scaled = x * (F32(1) / np.maximum(absmax[rows], SMALLEST))[..., None]",
        "scaled = x / np.maximum(absmax[rows], SMALLEST)[..., None]",
        "nf4_quantize",
    ),
    Mutant("signed maximum", "nf4", "np.abs(x).max(axis=-1)", "x.max(axis=-1)", "nf4_quantize"),
    Mutant(
        "denormal blocks divided by themselves",
        "nf4",
        "np.maximum(absmax[rows], SMALLEST)",
        "absmax[rows]",
        "nf4_quantize",
    ),
    Mutant(
        "scales spread over the wrong blocks",
        "nf4",
        "blocks *= absmax[..., None]",
        "blocks *= absmax[:, ::-1, None]",
        "nf4_quantize",
    ),
    Mutant("mean not taken off", "nf4", "absmax.reshape(-1) - offset", "absmax.reshape(-1)", "absmax"),
    Mutant(
        "mean not put back",
        "nf4",
        "nested[position // NESTED_BLOCK] + offset",
        "nested[position // NESTED_BLOCK]",
        "absmax",
    ),
    Mutant("nested blocks of 64", "nf4", "NESTED_BLOCK = 256", "NESTED_BLOCK = 64", "absmax"),
    Mutant("six decades of the map", "nf4", "10.0 ** (exponent - 6)", "10.0 ** (exponent - 6.02)", "absmax"),
    Mutant("8-bit codes truncated", "nf4", "/ 2\nNEAREST", "/ 1\nNEAREST", "absmax"),
    Mutant("8-bit halves towards zero", "q8", "np.abs(scaled - whole) >= 0.5", "np.abs(scaled - whole) > 0.5", "q8"),
    Mutant("8-bit weights truncated", "q8", "np.abs(scaled - whole) >= 0.5", "np.abs(scaled - whole) >= 1", "q8"),
    Mutant("8-bit scale of the largest, not of the size", "q8", "np.abs(x).max(axis=-1)", "x.max(axis=-1)", "q8"),
    Mutant("8-bit scale by 128", "q8", "/ F32(127)", "/ F32(128)", "q8"),
    Mutant("8-bit scale of another group", "q8", "(F32)[..., None]", "(F32)[:, ::-1, None]", "q8"),
    Mutant("8-bit without scales", "q8", "scales.astype(F32), xs", "1 + 0 * scales.astype(F32), xs", "q8_product"),
    Mutant("8-bit product in 16 bits", "q8", "xb, wb)", "xb.astype(np.int16), wb.astype(np.int16))", "q8_product"),
    Mutant("8-bit product, another row's activations", "q8", "xscales, opt", "xscales[::-1], opt", "q8_product"),
    Mutant("bfloat16 cut off, not rounded", "half", "np.uint32(0x7FFF) +", "np.uint32(0) *", "half"),
    Mutant("bfloat16 ties go up", "half", "(bits >> np.uint32(16) & np.uint32(1))", "np.uint32(1)", "half"),
    Mutant(
        "bfloat16's NaN rounds to infinity", "half", "np.where(np.isnan(weight), quiet, rounded)", "rounded", "half"
    ),
    Mutant("bfloat16 read into the lower half", "half", "<< np.uint32(16)).view", "<< np.uint32(15)).view", "half"),
    Mutant("16-bit product reversed", "half", "= x @ half_widen", "= x[..., ::-1] @ half_widen", "half_linear"),
    Mutant("16-bit backward takes off", "half", "dx += dout", "dx -= dout", "half_linear"),
    Mutant("partial sums in 16 bits", "int4", "xb, wb)", "xb, wb).astype(np.int16).astype(np.int32)", "partials"),
    Mutant(
        "mask bits read from the other end", "masks", 'count=n, bitorder="little"', 'count=n, bitorder="big"', "masks"
    ),
    Mutant(
        "pruning by multiplication keeps NaN",
        "masks",
        "np.where(_unpack(bits, weight.shape), weight, weight.dtype.type(0))",
        "weight * _unpack(bits, weight.shape)",
        "masks",
    ),
    Mutant(
        "unpacking leaves the last weight out",
        "masks",
        "out[mask] = values",
        "out[mask] = values\n    out.flat[-1] = 0",
        "masks",
    ),
    Mutant("Philox with nine rounds", "noise", "\nROUNDS = 10", "\nROUNDS = 9", "noise"),
    Mutant(
        "noise starts one number late", "noise", "first, last = start // 4,", "first, last = (start + 1) // 4,", "noise"
    ),
    Mutant("uniform numbers without the half step", "noise", "* STEP + HALF_STEP", "* STEP + STEP", "noise"),
    Mutant("both looks at w + scale z", "noise", "x[1] @ minus.T", "x[1] @ plus.T", "linear_both"),
    Mutant("noise update forgets the decay", "noise", "part *= decay_factor", "part *= 1", "noise"),
]


@pytest.fixture(autouse=True)
def _keep_the_record_of_real_errors():
    before = dict(RATIOS)
    yield
    RATIOS.clear()
    RATIOS.update(before)


@pytest.mark.parametrize("name", sorted({mutant.check for mutant in MUTANTS}))
def test_property_holds_where_nothing_is_planted(name):
    CHECKS[name].run(minedge.ops.get("numpy"), **CHECKS[name].typical)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_property_notices(mutant):
    check = CHECKS[mutant.check]
    with warnings.catch_warnings(), pytest.raises((AssertionError, IndexError, ValueError)) as caught:
        warnings.simplefilter("ignore")
        check.run(mutated_ops(mutant, minedge.ops.get("numpy")), **check.typical)
    assert "adapt the mutant" not in str(caught.value), str(caught.value)
