"""Wrong ideas about the int4 product, each as the function that computes what it gives."""

from __future__ import annotations

import numpy as np

from minedge.course.properties import Misconception

F32 = np.float32
OUTSIDE = F32(12345)


def halves(q):
    return np.concatenate([q & 15, q >> 4], -1).astype(np.int64)


def swapped(q):
    return np.concatenate([q >> 4, q & 15], -1).astype(np.int64)


def neighbours(q):
    return np.stack([q & 15, q >> 4], -1).reshape(*q.shape[:2], 32).astype(np.int64)


def sign_extended(q):
    return np.concatenate([q & 15, q.view(np.int8) >> 4], -1).astype(np.int64)


def low_only(q):
    return np.concatenate([(q & 15).astype(np.int64), np.full(q.shape, 8)], -1)


def rows_of(
    q,
    scales,
    x,
    xscales,
    codes=halves,
    offset=8,
    once=0,
    activations=lambda x: x.astype(np.int64),
    rows=None,
    ws=True,
    xs=True,
    one_scale=False,
    blocks=None,
    wrap=None,
):
    """y with one idea changed."""
    w, a = codes(q) - offset, activations(x)
    products = w * a[None]
    if wrap is not None:
        products = products.astype(wrap).astype(np.int64)
    part = (products.sum(-1) - once).astype(np.float64)
    if blocks is not None:
        part = part[:, :blocks]
    s = scales.astype(np.float64)[:, : part.shape[1]] if rows is None else scales.astype(np.float64)[rows(len(q))]
    s, t = (s if ws else np.ones_like(s)), (xscales[: part.shape[1]] if xs else np.ones(part.shape[1]))
    if one_scale:
        return part.sum(1) * s[:, 0] * t[0]
    return (part * s * t).sum(1)


def wrong(which=lambda rows, begin, end: range(begin, end), fill=np.nan, **changed):
    """Both calls' answers with one idea changed; `which` rows are computed, the others stay as they were."""

    def answer(q, scales, x, xscales, begin=0, end=None, step="", count=0):
        end = len(q) if end is None else end
        y = np.full(len(q), OUTSIDE)
        y[begin:end] = fill
        values = rows_of(q, scales, x, xscales, **changed)
        for o in which(len(q), begin, end):
            y[o] = values[o]
        return {"y": y.astype(F32), "y_at_start": y.astype(F32)}

    return answer


def shares_dropped(q, scales, x, xscales, count):
    done = len(q) // count * count
    return wrong(lambda rows, begin, end: range(done))(q, scales, x, xscales)


def shifted(q, scales, x, xscales, begin, end, step=""):
    y = np.full(len(q), OUTSIDE)
    y[begin:end] = rows_of(q, scales, x, xscales)[: end - begin]
    return {"y": y.astype(F32), "y_at_start": y.astype(F32)}


def running(q, scales, x, xscales, begin=0, end=None, **rest):
    """Each row on top of those before it in the range."""
    end, values = len(q) if end is None else end, rows_of(q, scales, x, xscales)
    y = np.full(len(q), OUTSIDE)
    y[begin:end] = np.cumsum(values[begin:end])
    return {"y": y.astype(F32), "y_at_start": y.astype(F32)}


def carried(q, scales, x, xscales, begin=0, end=None, **rest):
    """Each block's integers on top of those before it in the row."""
    end = len(q) if end is None else end
    part = ((halves(q) - 8) * x.astype(np.int64)[None]).sum(-1).cumsum(1)
    y = np.full(len(q), OUTSIDE)
    y[begin:end] = (part * scales.astype(np.float64) * xscales).sum(1)[begin:end]
    return {"y": y.astype(F32), "y_at_start": y.astype(F32)}


def scale_row_zero(q, scales, x, xscales, **rest):
    return wrong()(q, np.broadcast_to(scales[:1], scales.shape), x, xscales, **rest)


def xscale_first(q, scales, x, xscales, **rest):
    return wrong()(q, scales, x, np.full_like(xscales, xscales[0]), **rest)


def saturated(q, scales, x, xscales, **rest):
    """maddubs with x as the unsigned operand: bytes of x above 127 count as 128..255."""
    return wrong(activations=lambda x: x.view(np.uint8).astype(np.int64))(q, scales, x, xscales, **rest)


def clipped_to_127(q, scales, x, xscales, **rest):
    """-128 brought into -127..127, so that it has an opposite."""
    return wrong(activations=lambda x: np.maximum(x.astype(np.int64), -127))(q, scales, x, xscales, **rest)


ALL = ("product", "threads")

MISCONCEPTIONS = [
    Misconception(
        "nibble_order_swapped", ALL,
        "Byte j holds code j in its LOW nibble and code j + 16 in its HIGH one; yours are the other way round.",
        wrong(codes=swapped),
    ),
    Misconception(
        "neighbours_in_a_byte", ALL,
        "Byte j holds codes j and j + 16 of the block, so its high nibble meets x[j + 16], not x[2 j + 1].",
        wrong(codes=neighbours),
    ),
    Misconception(
        "offset_forgotten", ALL,
        "A weight is scale * (code - 8); the -8 is missing.",
        wrong(offset=0),
    ),
    Misconception(
        "offset_once_a_block", ALL,
        "sum (code - 8) x is sum code x - 8 sum x. You take 8 off once a block instead of 8 times the sum of x.",
        wrong(offset=0, once=8),
    ),
    Misconception(
        "sum_of_x_not_times_eight", ALL,
        "sum (code - 8) x is sum code x - 8 sum x; you subtract sum x once, without the 8.",
        wrong(offset=1),
    ),
    Misconception(
        "offset_added", ALL,
        "The sign of the correction: sum (code - 8) x = sum code x MINUS 8 sum x.",
        wrong(offset=-8),
    ),
    Misconception(
        "high_nibble_sign_extended", ALL,
        "A shift to the right of a SIGNED byte copies the sign: codes from 8 on come out as code - 16. Read the "
        "codes as uint8_t.",
        wrong(codes=sign_extended),
    ),
    Misconception(
        "high_nibbles_left_out", ALL,
        "Only the low nibbles are multiplied: 16 of the 32 columns of each block are missing.",
        wrong(codes=low_only),
    ),
    Misconception(
        "x_taken_as_unsigned", ALL,
        "x is signed. In maddubs the FIRST operand is the unsigned one: the codes go first, x second.",
        saturated,
    ),
    Misconception(
        "minus_128_clipped", ALL,
        "-128 has no opposite in int8 and came out as -127: keep the sign with x, or take -8 off without |x|.",
        clipped_to_127,
    ),
    Misconception(
        "sums_in_int8", ALL,
        "The products do not fit int8: widen before you multiply (in C, int arithmetic does; a cast back to "
        "int8_t undoes it).",
        wrong(wrap=np.int8),
    ),
    Misconception(
        "weight_scale_forgotten", ALL,
        "The weight's scale of each block is missing.",
        wrong(ws=False),
    ),
    Misconception(
        "activation_scale_forgotten", ALL,
        "The activations' scale of each block, xscales[b], is missing.",
        wrong(xs=False),
    ),
    Misconception(
        "scales_of_the_first_row", ALL,
        "You read scales[b], which belongs to row 0: row o's scales begin at o * blocks.",
        scale_row_zero,
    ),
    Misconception(
        "activation_scale_of_the_first_block", ALL,
        "Each block of x has its own scale: xscales[b], not xscales[0].",
        xscale_first,
    ),
    Misconception(
        "one_scale_a_row", ALL,
        "Each block has scales of its own; you add the integers of all blocks and multiply once.",
        wrong(one_scale=True),
    ),
    Misconception(
        "sum_not_reset", ALL,
        "A row's sum begins with what the row before had: set it to 0 inside the loop over rows.",
        running,
    ),
    Misconception(
        "part_not_reset", ALL,
        "A block's integer sum begins with what the block before had: set it to 0 inside the loop over blocks.",
        carried,
    ),
    Misconception(
        "adds_to_what_was_there", ALL,
        "y is added to, not set: what stood there before (here NaN) stays in the sum. Begin each row at 0.",
        wrong(lambda rows, begin, end: ()),
    ),
    Misconception(
        "last_rows_left_out", "product",
        "Rows that are left over when four go at a time are not computed: call step 1 for the rest.",
        wrong(lambda rows, begin, end: range(begin, begin + (end - begin) // 4 * 4)),
    ),
    Misconception(
        "last_block_left_out", ALL,
        "The last block of each row is missing: b < blocks, not b < blocks - 1.",
        lambda q, scales, x, xscales, **rest: wrong(blocks=len(x) - 1)(q, scales, x, xscales, **rest),
    ),
    Misconception(
        "range_ignored", "product",
        "Only rows begin..end-1 may be written; you compute all of them. Two threads would then write the same rows.",
        wrong(lambda rows, begin, end: range(rows)),
    ),
    Misconception(
        "rows_from_zero", "product",
        "Row `begin` of y got the product of row 0: weights and scales of row o stand at o, not at o - begin.",
        shifted,
    ),
    Misconception(
        "rows_lost_between_threads", "threads",
        "rows / threads rounds down, so rows at the end belong to no thread (all of them where there are more "
        "threads than rows). "
        "Let share t end where share t + 1 begins, and the last one at `rows`.",
        shares_dropped,
    ),
    Misconception(
        "outside_the_arrays", ALL,
        "Your code reads or writes outside its arrays. Look at loads wider than what is left (16 bytes of codes a "
        "block, 32 of "
        "x), at rows past `end`, and at pointers that are not aligned for the load you use (loadu).",
    ),
    Misconception(
        "not_waited_for", "threads",
        "Some rows were not written yet when product_threads returned, or a thread went on after it: join every "
        "thread you "
        "start. Its share has to live as long as it does, too.",
    ),
]  # fmt: skip
