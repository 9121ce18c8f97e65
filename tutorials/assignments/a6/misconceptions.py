"""Wrong ideas about four-bit weights, each as the function that computes what it gives."""

from __future__ import annotations

import numpy as np

from minedge.compress.int4 import MULTIPLIERS
from minedge.course.properties import Misconception
from minedge.ops.numpy_ops import int4 as ops

F32 = np.float32


# --- packing ----------------------------------------------------------------------------------------------------------


def halves(codes):
    blocks = codes.reshape(len(codes), -1, 32)
    return (blocks[..., :16] | blocks[..., 16:] << 4).reshape(len(codes), -1)


def swapped(codes):
    blocks = codes.reshape(len(codes), -1, 32)
    return (blocks[..., 16:] | blocks[..., :16] << 4).reshape(len(codes), -1)


def neighbours(codes):
    return codes[:, 0::2] | codes[:, 1::2] << 4


def by_group(group):
    def pack(codes):
        blocks = codes.reshape(len(codes), -1, group)
        return (blocks[..., : group // 2] | blocks[..., group // 2 :] << 4).reshape(len(codes), -1)

    return pack


def from_halves(qweight):
    blocks = qweight.reshape(len(qweight), -1, 16)
    return np.concatenate([blocks & 15, blocks >> 4], -1).reshape(len(qweight), -1)


def from_swapped(qweight):
    blocks = qweight.reshape(len(qweight), -1, 16)
    return np.concatenate([blocks >> 4, blocks & 15], -1).reshape(len(qweight), -1)


def from_neighbours(qweight):
    return np.stack([qweight & 15, qweight >> 4], -1).reshape(len(qweight), -1)


def high_not_shifted(qweight):
    blocks = qweight.reshape(len(qweight), -1, 16)
    return np.concatenate([blocks & 15, blocks & 0xF0], -1).reshape(len(qweight), -1)


def whole_row_halves(qweight):
    return np.concatenate([qweight & 15, qweight >> 4], -1)


# --- a6.1 -------------------------------------------------------------------------------------------------------------


def signed_maximum(x):
    where = np.abs(x).argmax(-1)[..., None]
    return np.take_along_axis(x, where, -1) / F32(-8)


def grouped(weight, group):
    return weight.astype(F32).reshape(len(weight), -1, group)


def inverse_of(d):
    return np.where(d != 0, F32(1) / d, F32(0))


def mean_magnitude(x):
    return np.abs(x).mean(-1, keepdims=True)


def plain_mean(x):
    return x.mean(-1, keepdims=True)


def signed_mean_magnitude(x):
    """The mean magnitude with the sign of the value of largest magnitude."""
    return -np.sign(signed_maximum(x)) * mean_magnitude(x)


def quantized(
    weight, group, scale=signed_maximum, code=None, pack=halves, clip=True, low=0, rounded_first=False, zero=8
):
    """int4_quantize with one idea changed."""
    x = weight.astype(F32).reshape(len(weight), -1, group)
    d = np.broadcast_to(scale(x).astype(F32), (*x.shape[:-1], 1))
    if rounded_first:
        d = d.astype(np.float16).astype(F32)
    inverse = np.where(d != 0, F32(1) / d, F32(0))
    raw = np.trunc(x * inverse + F32(8.5)) if code is None else code(x * inverse)
    raw = np.nan_to_num(raw, nan=8.0, posinf=15.0, neginf=0.0)
    raw = np.where(d == 0, zero, raw)
    q = (np.clip(raw, low, 15) if clip else raw).astype(np.int64).astype(np.uint8).reshape(weight.shape)
    return {"qweight": pack(q), "scales": d[..., 0].astype(np.float16)}


def q4(**changed):
    return lambda weight, group_size: quantized(weight, group_size, **changed)


def per_row(weight, group_size):
    d = signed_maximum(weight.astype(F32))
    return quantized(weight, group_size, lambda x: d[:, None])


def whole_matrix(weight, group_size):
    d = signed_maximum(weight.astype(F32).reshape(1, -1))
    return quantized(weight, group_size, lambda x: d[None])


# --- a6.3 to a6.6 -----------------------------------------------------------------------------------------------------


def weight_of(qweight, scales, group_size, codes=from_halves, offset=8, tiled=False, bits=False):
    c = codes(qweight).astype(F32) - F32(offset)
    repeat = scales.shape[1]
    s = np.tile(scales, (1, group_size)) if tiled else np.repeat(scales, c.shape[1] // repeat, axis=1)
    return c * s.astype(F32)


def read(**changed):
    def wrong(qweight, scales, group_size, x=None):
        weight = weight_of(qweight, scales, group_size, **changed)
        return {"weight": weight} if x is None else {"out": x @ weight.T.astype(x.dtype)}

    return wrong


def eight_bits(x, steps=127, rounding=None, size=np.abs, axis_whole=False):
    blocks = x.astype(F32).reshape(*x.shape[:-1], -1, 32)
    d = size(blocks).max(-1)
    if axis_whole:
        d = np.broadcast_to(d.max(-1, keepdims=True), d.shape)
    d = d / F32(steps)
    inverse = np.where(d != 0, F32(1) / d, F32(0))
    v = blocks * inverse[..., None]
    q = np.trunc(v + np.copysign(F32(0.5), v)) if rounding is None else rounding(v)
    return {"xq": np.clip(q, -127, 127).astype(np.int8).reshape(x.shape), "xscales": d.astype(F32)}


def products(xq, qweight, codes=from_halves, offset=8, dtype=np.int64):
    w = (codes(qweight).astype(np.int64) - offset).astype(dtype).reshape(len(qweight), 1, -1, 32)
    xb = xq.astype(dtype).reshape(1, len(xq), -1, 32)
    with np.errstate(over="ignore"):
        product = (w * xb).astype(dtype)
    return {"partial": product.sum(-1, dtype=dtype if dtype != np.int64 else None).swapaxes(0, 1).astype(np.int32)}


def row_sums(xq, qweight):
    return {"partial": products(xq, qweight)["partial"].sum(-1).astype(np.int32)}


def integer_linear(x, qweight, scales, group_size, xs=True, ws=True, tiled=False, exact=False, order=from_halves):
    flat = x.reshape(-1, x.shape[-1])
    xq, xscales = ops.int8_quantize(flat)
    if exact:
        return {"out": x @ weight_of(qweight, scales, group_size).T}
    partial = products(xq, qweight, order)["partial"].astype(F32)
    blocks = group_size // 32
    s = np.tile(scales, (1, blocks)) if tiled else np.repeat(scales, blocks, axis=1)
    terms = partial * (s.astype(F32)[None] if ws else 1) * (xscales[:, None] if xs else 1)
    return {"out": terms.sum(-1).reshape(*x.shape[:-1], -1).astype(F32)}


def searched(
    weight, group_size, error_of=None, keep_codes=False, whole_row=False, worst=False, against_first=False, finer=False
):
    """_mse_rows with one idea changed -> the squared error of each group."""
    x = weight.astype(F32).reshape(len(weight), -1, group_size)
    qweight, scales = ops.int4_quantize(weight, group_size)
    codes0 = from_halves(qweight).reshape(x.shape).astype(np.float64)
    error_of = error_of or (lambda gap: np.square(gap))
    read0 = scales.astype(F32)[..., None] * (codes0 - 8)
    best = np.square(x.astype(np.float64) - read0).sum(-1)  # made before the loop, whatever happens in it
    first, best_scale, best_codes = best.copy(), scales.copy(), codes0.copy()
    for multiplier in MULTIPLIERS:
        exact = scales.astype(F32) * F32(multiplier)
        stored = exact.astype(np.float16)
        d = (exact if finer else stored.astype(F32))[..., None]
        codes = np.clip(np.nan_to_num(np.trunc(x / d + F32(8.5)), nan=8.0), 0, 15)
        codes = codes0 if keep_codes else codes
        error = error_of(x.astype(np.float64) - d * (codes - 8)).sum(-1)
        if whole_row:
            better = np.broadcast_to(error.sum(-1, keepdims=True) < best.sum(-1, keepdims=True), error.shape)
        elif worst:
            better = error > best
        else:
            better = error < (first if against_first else best)
        best = np.where(better, error, best)
        best_scale = np.where(better, stored, best_scale)
        best_codes = np.where(better[..., None], codes, best_codes)
    got = best_scale.astype(F32)[..., None] * (best_codes - 8).astype(F32)
    return {"error": np.square(x.astype(np.float64) - got).sum(-1)}


def search(**changed):
    return lambda weight, group_size: searched(weight, group_size, **changed)


NIBBLES = (
    "Byte j of a block holds code j in its LOW nibble and code j + 16 in its HIGH one; yours are the other way round."
)
PAIRS = (
    "Byte j holds codes j and j + 16 of 32, not the neighbours 2j and 2j + 1: the halves of a block unpack with "
    "one AND and "
    "one shift, in order."
)
OFFSET = (
    "Codes are stored plus 8: the weight is scale * (code - 8). Without the -8 every weight has the scale's own sign."
)
TILED = (
    "A scale belongs to group_size neighbours: each scale is repeated (np.repeat), not the whole row of scales "
    "tiled (np.tile)."
)

MISCONCEPTIONS = [
    Misconception(
        "sign_of_the_maximum_lost", "quantize",
        "m is the value of largest magnitude WITH its sign: d = m / -8 makes it exactly code 0. max|x| / 8 loses "
        "the sign, and "
        "positive maxima clip at +7.",
        q4(scale=lambda x: np.abs(x).max(-1, keepdims=True) / F32(8)),
    ),
    Misconception(
        "scale_over_seven", "quantize",
        "d is a seventh of the largest magnitude in yours. Here it is m / -8, so that all sixteen codes are used.",
        q4(scale=lambda x: np.abs(x).max(-1, keepdims=True) / F32(7)),
    ),
    Misconception(
        "scale_not_negated", "quantize",
        "d = m / -8, with the minus: the largest value must get code 0 (that is -8 d). With m / 8 it would need "
        "+8, which clips.",
        q4(scale=lambda x: -signed_maximum(x)),
    ),
    *(
        Misconception(
            "scale_from_the_mean", "quantize",
            "Your scale comes from the mean magnitude, so that much of the group clips. It comes from the value "
            "of largest "
            "magnitude.",
            q4(scale=lambda x, of=of, by=by: of(x) / F32(by)),
        )
        for of in (mean_magnitude, plain_mean, signed_mean_magnitude)
        for by in (8, -8, 7, 7.5, 15, 1)
    ),
    Misconception(
        "scale_from_the_largest_value", "quantize",
        "You take the largest value; the group's largest MAGNITUDE may be negative. argmax of |x|, then the value "
        "there.",
        q4(scale=lambda x: x.max(-1, keepdims=True) / F32(-8)),
    ),
    Misconception(
        "one_scale_a_row", "quantize",
        "Every group of group_size neighbours has its own scale; you use one for the whole row, so one outlier "
        "spoils it all.",
        per_row,
    ),
    Misconception(
        "one_scale_for_all", "quantize",
        "Every group of group_size neighbours has its own scale; you use one for the whole matrix.",
        whole_matrix,
    ),
    Misconception(
        "read_by_columns", "quantize",
        "A group is neighbours along a ROW; yours go down the columns (a transpose before the reshape?).",
        lambda weight, group_size: quantized(np.ascontiguousarray(weight.T).reshape(weight.shape), group_size),
    ),
    Misconception(
        "scale_kept_in_float32", "quantize",
        "The scale is stored as float16: two bytes for 32 weights. Yours is still float32.",
        lambda weight, group_size: {
            **quantized(weight, group_size), "scales": signed_maximum(grouped(weight, group_size))[..., 0]
        },
    ),
    Misconception(
        "inverse_stored", "quantize",
        "What is kept is d, which the codes are multiplied by; yours is 1/d.",
        lambda weight, group_size: {
            **quantized(weight, group_size),
            "scales": inverse_of(signed_maximum(grouped(weight, group_size))[..., 0]).astype(np.float16),
        },
    ),
    Misconception(
        "rounds_down", "quantize",
        "trunc(x / d + 8) rounds down; it is + 8.5 that makes trunc round to nearest.",
        q4(code=lambda v: np.trunc(v + F32(8))),
    ),
    Misconception(
        "halves_to_even", "quantize",
        "np.rint and np.round take halves to the even code; the rule is trunc(v + 8.5), which takes them up.",
        q4(code=lambda v: np.rint(v) + F32(8)),
    ),
    Misconception(
        "halves_away_from_zero", "quantize",
        "You round halves away from zero, then add 8; trunc(v + 8.5) takes halves UP, also negative ones.",
        q4(code=lambda v: np.trunc(v + np.copysign(F32(0.5), v)) + F32(8)),
    ),
    Misconception(
        "inverse_of_the_rounded_scale", "quantize",
        "1/d is taken before d is rounded to float16; you divide by the stored scale, and some codes near a half "
        "change.",
        q4(rounded_first=True),
    ),
    Misconception(
        "not_clipped", "quantize",
        "The side opposite the largest value can reach code 16, which does not fit four bits: it spills into the "
        "other nibble. "
        "min(15, ...).",
        q4(clip=False),
    ),
    Misconception(
        "sixteen_wraps_to_zero", "quantize",
        "Code 16 cut to four bits is 0, the opposite end: the largest positive weight becomes the most negative "
        "one. min(15, ...).",
        q4(clip=False, pack=lambda codes: halves(codes & 15)),
    ),
    Misconception(
        "code_without_the_eight", "quantize",
        "Codes are stored plus 8, from 0 to 15; yours are signed (two's complement) in four bits.",
        q4(code=lambda v: np.trunc(v + F32(8.5)) - 8, clip=False, zero=0, pack=lambda codes: halves(codes & 15)),
    ),
    Misconception(
        "smallest_code_is_one", "quantize",
        "Your codes stop at 1 (that is -7): the largest magnitude needs code 0, since it is exactly -8 d.",
        q4(low=1),
    ),
    Misconception(
        "zero_group_is_code_zero", "quantize",
        "A group of zeros has codes 8, which read as 0 whatever the scale; yours has codes 0.",
        q4(zero=0),
    ),
    Misconception("nibble_order_swapped", "quantize", NIBBLES, q4(pack=swapped)),
    Misconception("neighbours_in_a_byte", "quantize", PAIRS, q4(pack=neighbours)),
    Misconception(
        "packed_by_group", "quantize",
        "Codes are packed per 32 columns whatever the group size; you pack halves of the whole group.",
        lambda weight, group_size: quantized(weight, group_size, pack=by_group(group_size)),
    ),
    Misconception("nibble_order_swapped", "pack_codes", NIBBLES, lambda codes: {"qweight": swapped(codes)}),
    Misconception("neighbours_in_a_byte", "pack_codes", PAIRS, lambda codes: {"qweight": neighbours(codes)}),
    Misconception("nibble_order_swapped", "unpack_codes", NIBBLES, lambda qweight: {"codes": from_swapped(qweight)}),
    Misconception("neighbours_in_a_byte", "unpack_codes", PAIRS, lambda qweight: {"codes": from_neighbours(qweight)}),
    Misconception(
        "high_nibble_not_shifted", "unpack_codes",
        "The high nibble has to come down by four bits: byte & 0xF0 is sixteen times the code.",
        lambda qweight: {"codes": high_not_shifted(qweight)},
    ),
    Misconception(
        "halves_of_the_row", "unpack_codes",
        "The halves are those of each block of 32 columns, not of the whole row.",
        lambda qweight: {"codes": whole_row_halves(qweight)},
    ),
    Misconception(
        "nibble_order_swapped", "signed_codes", NIBBLES,
        lambda qweight: {"codes": from_swapped(qweight).astype(np.int8) - 8},
    ),
    Misconception(
        "neighbours_in_a_byte", "signed_codes", PAIRS,
        lambda qweight: {"codes": from_neighbours(qweight).astype(np.int8) - 8},
    ),
    Misconception(
        "offset_forgotten", "signed_codes", OFFSET, lambda qweight: {"codes": from_halves(qweight).astype(np.int8)}
    ),
    Misconception(
        "minus_eight_in_uint8", "signed_codes",
        "code - 8 in uint8 wraps around: 3 - 8 is 251. Turn the codes into int8 before you subtract.",
        lambda qweight: {"codes": from_halves(qweight) - np.uint8(8)},
    ),
    Misconception("offset_forgotten", ("dequantize", "linear_forward"), OFFSET, read(offset=0)),
    Misconception(
        "offset_of_seven_and_a_half", ("dequantize", "linear_forward"),
        "The offset is 8, a code of its own, so that 0 is represented exactly; 7.5 would be the middle of 0..15.",
        read(offset=7.5),
    ),
    Misconception("scales_tiled", ("dequantize", "linear_forward"), TILED, read(tiled=True)),
    Misconception(
        "codes_not_scaled", ("dequantize", "linear_forward"),
        "The codes are not multiplied by their group's scale.",
        lambda qweight, scales, group_size, x=None: read()(qweight, np.ones_like(scales), group_size, x),
    ),
    Misconception(
        "gradient_through_the_transpose", "linear_backward",
        "out = x @ weight.T, so dx = dout @ weight, without a transpose.",
        raises="ValueError",
    ),
    Misconception(
        "gradient_of_the_codes", "linear_backward",
        "dx goes through the weight, scales and all; yours goes through the bare codes.",
        lambda dout, cache: {"dx": dout @ (from_halves(cache[0]).astype(np.float64) - 8)},
    ),
    Misconception(
        "steps_of_128", "int8_quantize",
        "int8 is symmetric here: d = max|x| / 127. With 128 the largest positive value does not fit.",
        lambda x: eight_bits(x, steps=128),
    ),
    Misconception(
        "inverse_stored", "int8_quantize",
        "What is kept is d, which the codes are multiplied by; yours is 1/d.",
        lambda x: {"xscales": inverse_of(eight_bits(x)["xscales"])},
    ),
    Misconception(
        "int8_halves_to_even", "int8_quantize",
        "np.rint and np.round take halves to even; here halves go away from zero: trunc(v + copysign(0.5, v)).",
        lambda x: eight_bits(x, rounding=np.rint),
    ),
    Misconception(
        "int8_rounds_towards_zero", "int8_quantize",
        "astype(int8) cuts the fraction off; round first (halves away from zero).",
        lambda x: eight_bits(x, rounding=np.trunc),
    ),
    Misconception(
        "int8_halves_up", "int8_quantize",
        "floor(v + 0.5) takes -2.5 to -2; halves go away from zero, to -3.",
        lambda x: eight_bits(x, rounding=lambda v: np.floor(v + F32(0.5))),
    ),
    Misconception(
        "int8_one_scale_a_row", "int8_quantize",
        "Each block of 32 has its own scale; you use the row's largest value for all of them.",
        lambda x: eight_bits(x, axis_whole=True),
    ),
    Misconception(
        "int8_sign_not_dropped", "int8_quantize",
        "d comes from max|x|, the magnitude; you take the largest value, which may be smaller than the most "
        "negative one.",
        lambda x: eight_bits(x, size=lambda b: b),
    ),
    Misconception("offset_forgotten", "partials", OFFSET, lambda xq, qweight: products(xq, qweight, offset=0)),
    Misconception(
        "nibble_order_swapped", "partials", NIBBLES, lambda xq, qweight: products(xq, qweight, codes=from_swapped)
    ),
    Misconception(
        "int8_overflows", "partials",
        "A product of int8 numbers does not fit int8, and wraps around: go to int32 before you multiply.",
        lambda xq, qweight: products(xq, qweight, dtype=np.int8),
    ),
    Misconception(
        "int16_overflows", "partials",
        "32 * 128 * 8 is 32,768, one more than int16 holds: sum in int32.",
        lambda xq, qweight: products(xq, qweight, dtype=np.int16),
    ),
    Misconception(
        "summed_over_blocks", "partials",
        "There is one sum a block of 32, since each block has its own scales; yours is summed over the whole row.",
        row_sums,
    ),
    Misconception(
        "activation_scale_forgotten", "int8_linear",
        "The activations' own scale of each block is missing: the integers stand for xscale * xq.",
        lambda **case: integer_linear(**case, xs=False),
    ),
    Misconception(
        "weight_scale_forgotten", "int8_linear",
        "The weight's scale of each block is missing.",
        lambda **case: integer_linear(**case, ws=False),
    ),
    Misconception("scales_tiled", "int8_linear", TILED, lambda **case: integer_linear(**case, tiled=True)),
    Misconception(
        "activations_not_rounded", "int8_linear",
        "This is the exact product with float activations. Here x is rounded to int8 first: that is what makes it "
        "an integer product.",
        lambda **case: integer_linear(**case, exact=True),
    ),
    Misconception(
        "worst_candidate", "mse_scales",
        "You keep the candidate with the LARGEST error.",
        search(worst=True),
    ),
    Misconception(
        "absolute_error", "mse_scales",
        "You compare sums of |error|; the rule is the sum of squares, which minds large errors more.",
        search(error_of=np.abs),
    ),
    Misconception(
        "signed_error", "mse_scales",
        "Errors of both signs cancel in your sum: square each before you add them up.",
        search(error_of=lambda gap: gap),
    ),
    Misconception(
        "codes_not_rounded_again", "mse_scales",
        "A new scale needs new codes: you keep the codes of the first scale and only change what they are "
        "multiplied by.",
        search(keep_codes=True),
    ),
    Misconception(
        "one_choice_a_row", "mse_scales",
        "Each group chooses its own scale; you add up the errors of the whole row and choose once.",
        search(whole_row=True),
    ),
    Misconception(
        "compared_with_the_first_only", "mse_scales",
        "You compare each candidate with the first scale and keep the LAST that beats it. Compare with the best "
        "so far, and "
        "remember its error too.",
        search(against_first=True),
    ),
]  # fmt: skip
