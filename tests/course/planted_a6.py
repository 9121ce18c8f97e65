"""Errors planted in the solution of a6: each loses points and is named."""

from __future__ import annotations

from tests.course.planted import Planted

__all__ = ["HIDDEN", "PLANTED"]

O, I = "int4_ops.py", "int4.py"
WHERE = "    where = np.abs(x).argmax(axis=-1)[..., None]  # the first of equals"
D = "    d = np.take_along_axis(x, where, axis=-1) / np.float32(-8)"
CODES = "        codes = x * inverse + np.float32(8.5)"
INVERSE = """        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        codes = x"""
CLIP = "np.clip(np.trunc(codes), 0, 15)"
PACKED = "    packed = q[..., :16] | (q[..., 16:] << 4)"
RESHAPED = "astype(np.uint8).reshape(out_features, -1, BLOCK)"
PACK = """    blocks = codes.reshape(len(codes), -1, 32)
    packed: Any = blocks[..., :16] | (blocks[..., 16:] << 4)
    return packed.reshape(len(codes), -1)
"""
UNPACK = """    blocks = qweight.reshape(len(qweight), -1, 16)
    return np.concatenate([blocks & 0x0F, blocks >> 4], axis=-1).reshape(len(qweight), -1)
"""
SIGNED = "np.concatenate([blocks & 0x0F, blocks >> 4], axis=-1).astype(np.int8) - np.int8(8)"
READ = """    codes = _codes(qweight).astype(np.float32)
"""
SCALED = "    return (groups * scales.astype(np.float32)[..., None]).reshape(codes.shape)"
BACK = "    return dout @ int4_dequantize(*cache).astype(dout.dtype)"
ABS = "    d = np.abs(blocks).max(axis=-1) / np.float32(127)"
AWAY = "    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)"
XB = "    xb = xq.astype(np.int32).reshape(xq.shape[0], -1, BLOCK)"
WB = "    wb = _codes(qweight).astype(np.int32).reshape(qweight.shape[0], -1, BLOCK)"
SUMS = '    return np.einsum("nbi,obi->nob", xb, wb)'
PARTIALS = "    partial = int4_int8_partials(xq, qweight).astype(np.float32)  # (N, out, blocks)"
WSCALES = "    wscales = np.repeat(scales.astype(np.float32), group_size // BLOCK, axis=1)  # (out, blocks)"
EINSUM = '"nob,ob,nb->no", partial, wscales, xscales, optimize=True'
LINEAR = "    xq, xscales = int8_quantize(x.reshape(-1, x.shape[-1]))"
SEARCH = "            codes = np.clip(np.nan_to_num(np.trunc(x / d + np.float32(8.5)), nan=8.0), 0, 15)"
SQUARE = "            error = np.square(x - d * (codes - 8), dtype=np.float64).sum(-1)"
BETTER = "        better = error < best_error  # False for NaN"
KEEP = "        best_error = np.where(better, error, best_error)\n"

PLANTED = [
    Planted("sign_of_the_maximum_lost", O, D, "    d = np.abs(x).max(axis=-1, keepdims=True) / np.float32(8)"),
    Planted("scale_over_seven", O, D, "    d = np.abs(x).max(axis=-1, keepdims=True) / np.float32(7)"),
    Planted("scale_not_negated", O, D, D.replace("(-8)", "(8)")),
    Planted("scale_from_the_mean", O, D, "    d = np.abs(x).mean(axis=-1, keepdims=True) / np.float32(8)"),
    Planted("scale_from_the_mean", O, D, "    d = np.abs(x).mean(axis=-1, keepdims=True) / np.float32(-8)"),
    Planted("scale_from_the_largest_value", O, WHERE, "    where = x.argmax(axis=-1)[..., None]"),
    Planted(
        "one_scale_a_row", O, WHERE + "\n" + D,
        """    flat = x.reshape(len(x), 1, -1)
    d = np.take_along_axis(flat, np.abs(flat).argmax(axis=-1)[..., None], axis=-1) / np.float32(-8)
    d = np.broadcast_to(d, (*x.shape[:2], 1))""",
    ),
    Planted(
        "one_scale_for_all", O, WHERE + "\n" + D,
        "    d = np.full((*x.shape[:2], 1), x.flat[np.abs(x).argmax()] / np.float32(-8), np.float32)",
    ),
    Planted("read_by_columns", O, "np.ascontiguousarray(weight, dtype", "np.ascontiguousarray(weight.T, dtype"),
    Planted("scale_kept_in_float32", O, "        scales = d[..., 0].astype(np.float16)", "        scales = d[..., 0]"),
    Planted("inverse_stored", O, "scales = d[..., 0].astype", "scales = inverse[..., 0].astype"),
    Planted("inverse_stored", O, "    return q.reshape(x.shape), d", "    return q.reshape(x.shape), inverse"),
    Planted("rounds_down", O, CODES, "        codes = x * inverse + np.float32(8)"),
    Planted("halves_to_even", O, CODES, "        codes = np.rint(x * inverse) + np.float32(8)"),
    Planted(
        "halves_away_from_zero", O, CODES,
        "        codes = np.trunc(x * inverse + np.copysign(np.float32(0.5), x * inverse)) + np.float32(8)",
    ),
    Planted(
        "inverse_of_the_rounded_scale", O, INVERSE,
        "        d = d.astype(np.float16).astype(np.float32)\n" + INVERSE,
    ),
    Planted("not_clipped", O, CLIP, "np.maximum(np.trunc(codes), 0)"),
    Planted("sixteen_wraps_to_zero", O, CLIP, "(np.maximum(np.trunc(codes), 0).astype(np.int64) & 15)"),
    Planted("code_without_the_eight", O, CLIP, "((np.trunc(codes).astype(np.int64) - 8) & 15)"),
    Planted("smallest_code_is_one", O, CLIP, "np.clip(np.trunc(codes), 1, 15)"),
    Planted("zero_group_is_code_zero", O, CLIP, "np.clip(np.where(d == 0, 0, np.trunc(codes)), 0, 15)"),
    Planted("nibble_order_swapped", O, PACKED, "    packed = q[..., 16:] | (q[..., :16] << 4)"),
    Planted("neighbours_in_a_byte", O, PACKED, "    packed = q[..., ::2] | (q[..., 1::2] << 4)"),
    Planted(
        "packed_by_group", O, RESHAPED + "\n" + PACKED,
        "astype(np.uint8)\n    packed = q[..., : group_size // 2] | (q[..., group_size // 2 :] << 4)",
    ),
    Planted("nibble_order_swapped", I, PACK, PACK.replace(":16] | (blocks[..., 16:]", "16:] | (blocks[..., :16]")),
    Planted("neighbours_in_a_byte", I, PACK, "    return codes[:, 0::2] | (codes[:, 1::2] << 4)\n"),
    Planted(
        "nibble_order_swapped", I, UNPACK,
        UNPACK.replace("[blocks & 0x0F, blocks >> 4]", "[blocks >> 4, blocks & 15]"),
    ),
    Planted(
        "neighbours_in_a_byte", I, UNPACK,
        "    return np.stack([qweight & 15, qweight >> 4], axis=-1).reshape(len(qweight), -1)\n",
    ),
    Planted("high_nibble_not_shifted", I, UNPACK, UNPACK.replace("blocks >> 4", "blocks & 0xF0")),
    Planted("halves_of_the_row", I, UNPACK, "    return np.concatenate([qweight & 15, qweight >> 4], axis=1)\n"),
    Planted(
        "nibble_order_swapped", O, SIGNED,
        SIGNED.replace("[blocks & 0x0F, blocks >> 4]", "[blocks >> 4, blocks & 15]"),
    ),
    Planted("neighbours_in_a_byte", O, SIGNED, SIGNED.replace("concatenate", "stack")),
    Planted("offset_forgotten", O, SIGNED, SIGNED.replace(" - np.int8(8)", "")),
    Planted("minus_eight_in_uint8", O, SIGNED, SIGNED.replace(".astype(np.int8) - np.int8(8)", " - np.uint8(8)")),
    Planted("offset_forgotten", O, READ, READ.replace("np.float32)", "np.float32) + 8")),
    Planted("offset_of_seven_and_a_half", O, READ, READ.replace("np.float32)", "np.float32) + np.float32(0.5)")),
    Planted(
        "scales_tiled", O, SCALED,
        "    return codes * np.tile(scales.astype(np.float32), (1, group_size))",
    ),
    Planted("codes_not_scaled", O, SCALED, "    return groups.reshape(codes.shape)"),
    Planted("gradient_through_the_transpose", O, BACK, BACK.replace("(*cache)", "(*cache).T")),
    Planted("gradient_of_the_codes", O, BACK, "    return dout @ _codes(cache[0]).astype(dout.dtype)"),
    Planted("steps_of_128", O, ABS, ABS.replace("127", "128")),
    Planted("int8_halves_to_even", O, AWAY, "    q = np.rint(scaled).astype(np.int8)"),
    Planted("int8_rounds_towards_zero", O, AWAY, "    q = scaled.astype(np.int8)"),
    Planted("int8_halves_up", O, AWAY, "    q = np.floor(scaled + np.float32(0.5)).astype(np.int8)"),
    Planted("int8_one_scale_a_row", O, ABS, ABS + "\n    d = np.broadcast_to(d.max(-1, keepdims=True), d.shape)"),
    Planted("int8_sign_not_dropped", O, ABS, ABS.replace("np.abs(blocks)", "blocks")),
    Planted(
        "offset_forgotten", O, WB,
        WB.replace("np.int32)", "np.int32) + 8", 1).replace("8.resh", "8).resh").replace("= _c", "= (_c"),
    ),
    Planted("nibble_order_swapped", O, WB, WB + "\n    wb = np.roll(wb, 16, axis=-1)"),
    Planted(
        "int8_overflows", O, SUMS,
        """    product = xq.reshape(len(xq), 1, -1, 32) * _codes(qweight).reshape(1, len(qweight), -1, 32)
    return np.einsum("nobi->nob", product).astype(np.int32)""",
    ),
    Planted(
        "int16_overflows", O, SUMS,
        SUMS.replace("xb, wb)", "xb.astype(np.int16), wb.astype(np.int16)).astype(np.int32)"),
    ),
    Planted("summed_over_blocks", O, SUMS, SUMS.replace("->nob", "->no")),
    Planted("activation_scale_forgotten", O, EINSUM, '"nob,ob->no", partial, wscales, optimize=True'),
    Planted("weight_scale_forgotten", O, EINSUM, '"nob,nb->no", partial, xscales, optimize=True'),
    Planted("scales_tiled", O, WSCALES, "    wscales = np.tile(scales.astype(np.float32), (1, group_size // BLOCK))"),
    Planted("activations_not_rounded", O, LINEAR, "    return x @ int4_dequantize(qweight, scales, group_size).T"),
    Planted("worst_candidate", I, BETTER, "        better = error > best_error"),
    Planted(
        "absolute_error", I, SQUARE,
        "            error = np.abs(x - d * (codes - 8), dtype=np.float64).sum(-1)",
    ),
    Planted("signed_error", I, SQUARE, "            error = (x.astype(np.float64) - d * (codes - 8)).sum(-1)"),
    Planted(
        "codes_not_rounded_again", I, SEARCH,
        "            codes = _unpack(qweight).reshape(x.shape).astype(np.float32)",
    ),
    Planted(
        "one_choice_a_row", I, BETTER,
        "        better = np.broadcast_to((error.sum(-1) < best_error.sum(-1))[:, None], error.shape)",
    ),
    Planted("compared_with_the_first_only", I, KEEP, ""),
]  # fmt: skip

QUANTIZE = """    x = np.ascontiguousarray(weight, dtype=np.float32).reshape(out_features, -1, group_size)
    where = np.abs(x).argmax(axis=-1)[..., None]  # the first of equals
    d = np.take_along_axis(x, where, axis=-1) / np.float32(-8)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        codes = x * inverse + np.float32(8.5)  # a group of denormals has inverse = inf: codes saturate, as in GGML
        scales = d[..., 0].astype(np.float16)
    codes = np.nan_to_num(codes, nan=8.0, posinf=15.0, neginf=0.0)
    q = np.clip(np.trunc(codes), 0, 15).astype(np.uint8).reshape(out_features, -1, BLOCK)
    packed = q[..., :16] | (q[..., 16:] << 4)
    return packed.reshape(out_features, in_features // 2), scales
"""
LOOPS = """    f32 = np.float32
    all_bytes = np.zeros((out_features, in_features // 2), np.uint8)
    all_scales = np.zeros((out_features, in_features // group_size), np.float16)
    for r, row in enumerate(weight):
        for g in range(in_features // group_size):
            part = [f32(v) for v in row[g * group_size : (g + 1) * group_size]]
            top = PICK
            step = f32(top) / f32(DIVISOR)
            all_scales[r, g] = step
            with np.errstate(all="ignore"):
                turn = f32(1) / step if step != 0 else f32(0)
                for k, v in enumerate(part):
                    position = v * turn + f32(OFFSET)
                    code = 8 if np.isnan(position) else int(max(f32(0), min(f32(15), position)))
                    column = g * group_size + k
                    byte, high = column // 32 * 16 + column % 16, HIGH
                    all_bytes[r, byte] |= code << (4 if high else 0)
    return all_bytes, all_scales
"""


def _loops(pick="max(part, key=abs)", divisor="-8", offset="8.5", high="column % 32 >= 16"):
    parts = {"PICK": pick, "DIVISOR": divisor, "OFFSET": offset, "HIGH": high}
    text = LOOPS
    for name, value in parts.items():
        text = text.replace(name, value)
    return text


# The same errors as loops over scalars.
HIDDEN = [
    Planted("sign_of_the_maximum_lost", O, QUANTIZE, _loops(pick="max(map(abs, part))", divisor="8")),
    Planted("scale_not_negated", O, QUANTIZE, _loops(divisor="8")),
    Planted("rounds_down", O, QUANTIZE, _loops(offset="8")),
    Planted("scale_from_the_largest_value", O, QUANTIZE, _loops(pick="max(part)")),
    Planted("nibble_order_swapped", O, QUANTIZE, _loops(high="column % 32 < 16")),
    Planted("scale_from_the_mean", O, D, "    d = x.mean(axis=-1, keepdims=True) / np.float32(-8)"),
    Planted("scale_from_the_mean", O, D, "    d = np.abs(x).mean(axis=-1, keepdims=True)"),
    Planted("scale_from_the_mean", O, QUANTIZE, _loops(pick="np.mean(np.abs(np.array(part)))", divisor="8")),
]  # fmt: skip
