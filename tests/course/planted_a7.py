"""Errors planted in the solution of a7: each loses points and is named. Those in step 3 are in its AVX2 half."""

from __future__ import annotations

from tests.course.planted import Planted

__all__ = ["HIDDEN", "PLANTED"]

F = "int4_ladder.c"
LOW = "                part += ((q[j] & 15) - 8) * x[j];\n"
HIGH = "                part += ((q[j] >> 4) - 8) * x[j + BYTES];\n"
SUM = "            sum += p->scales[o * p->blocks + b] * p->xscales[b] * (float)part;"
LOOP = """    for (int64_t o = begin; o < end; o++) {
        float sum = 0;
        for (int64_t b = 0; b < p->blocks; b++) {
"""
ZERO = "        float sum = 0;\n"
PART = "            int32_t part = 0;\n"
STORE = "        p->y[o] = sum;\n"
CORRECTION = "            int32_t part0 = -8 * p->xsums[b], part1 = part0"
REST = """        p->y[o] = s0, p->y[o + 1] = s1, p->y[o + 2] = s2, p->y[o + 3] = s3;
    }
    product_scalar(p, o, end);
"""
MADDUBS = "_mm256_sub_epi16(_mm256_maddubs_epi16(codes, x), eight_x)"
PAIRS = "_mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1)"
Q = "const uint8_t *q = p->q + (o * p->blocks + b) * BYTES;"
X = "            __m256i x = _mm256_loadu_si256((const __m256i *)(p->x + b * BLOCK));\n"
JOIN = "        if (started[t]) pthread_join(thread[t], 0);\n"
SHARE = "(struct share){p, p->rows * t / threads, p->rows * (t + 1) / threads}"

PLANTED = [
    Planted(
        "nibble_order_swapped", F, (LOW, HIGH),
        (LOW.replace("x[j]", "x[j + BYTES]"), HIGH.replace("x[j + BYTES]", "x[j]")),
    ),
    Planted(
        "nibble_order_swapped", F, PAIRS,
        PAIRS.replace("(bytes), _mm_srli_epi16(bytes, 4)", "(_mm_srli_epi16(bytes, 4)), bytes"),
    ),
    Planted(
        "neighbours_in_a_byte", F, (LOW, HIGH),
        (LOW.replace("x[j]", "x[2 * j]"), HIGH.replace("x[j + BYTES]", "x[2 * j + 1]")),
    ),
    Planted("offset_forgotten", F, (LOW, HIGH), (LOW.replace(" - 8", ""), HIGH.replace(" - 8", ""))),
    Planted("offset_forgotten", F, MADDUBS, "_mm256_maddubs_epi16(codes, x)"),
    Planted("offset_once_a_block", F, CORRECTION, CORRECTION.replace("-8 * p->xsums[b]", "-8")),
    Planted("sum_of_x_not_times_eight", F, CORRECTION, CORRECTION.replace("-8 * p", "-p")),
    Planted("offset_added", F, CORRECTION, CORRECTION.replace("-8", "8")),
    Planted("high_nibble_sign_extended", F, HIGH, HIGH.replace("(q[j] >> 4)", "(((int8_t)q[j]) >> 4)")),
    Planted("high_nibbles_left_out", F, HIGH, ""),
    Planted(
        "x_taken_as_unsigned", F, MADDUBS,
        "_mm256_sub_epi16(_mm256_maddubs_epi16(x, codes), _mm256_maddubs_epi16(x, eights))",
    ),
    Planted(
        "minus_128_clipped", F, "            __m256i eight_x",
        "            x = _mm256_max_epi8(x, _mm256_set1_epi8(-127));\n            __m256i eight_x",
    ),
    Planted(
        "sums_in_int8", F, (LOW, HIGH),
        (
            "                part += (int8_t)(((q[j] & 15) - 8) * x[j]);\n",
            "                part += (int8_t)(((q[j] >> 4) - 8) * x[j + BYTES]);\n",
        ),
    ),
    Planted("weight_scale_forgotten", F, SUM, "            sum += p->xscales[b] * (float)part;"),
    Planted("activation_scale_forgotten", F, SUM, SUM.replace("p->xscales[b] * ", "")),
    Planted("scales_of_the_first_row", F, SUM, SUM.replace("o * p->blocks + b", "b")),
    Planted("activation_scale_of_the_first_block", F, SUM, SUM.replace("p->xscales[b]", "p->xscales[0]")),
    Planted(
        "one_scale_a_row", F, (SUM, STORE),
        ("            sum += (float)part;", "        p->y[o] = sum * p->scales[o * p->blocks] * p->xscales[0];\n"),
    ),
    Planted(
        "sum_not_reset", F, LOOP,
        LOOP.replace("    for", "    float sum = 0;\n    for", 1).replace("        float sum = 0;\n", "", 1),
    ),
    Planted("part_not_reset", F, (ZERO, PART), (ZERO + "        int32_t part = 0;\n", "")),
    Planted("adds_to_what_was_there", F, STORE, "        p->y[o] += sum;\n"),
    Planted("last_rows_left_out", F, REST, REST.replace("    product_scalar(p, o, end);\n", "")),
    Planted("last_block_left_out", F, LOOP, LOOP.replace("b < p->blocks", "b < p->blocks - 1")),
    Planted(
        "range_ignored", F, LOOP,
        "    (void)begin, (void)end;\n" + LOOP.replace("= begin; o < end", "= 0; o < p->rows"),
    ),
    Planted(
        "rows_from_zero", F, (Q, SUM), (Q.replace("(o *", "((o - begin) *"), SUM.replace("[o *", "[(o - begin) *")),
    ),
    Planted(
        "rows_lost_between_threads", F, SHARE,
        "(struct share){p, p->rows / threads * t, p->rows / threads * (t + 1)}",
    ),
    Planted("outside_the_arrays", F, HIGH, HIGH.replace("x[j + BYTES]", "x[j + BYTES + 1]")),
    Planted("outside_the_arrays", F, X, X + "            (void)*(volatile const int8_t *)(p->x + (b + 1) * BLOCK);\n"),
    Planted(
        "outside_the_arrays", F, SHARE,
        "(struct share){p, p->rows * t / threads, p->rows * (t + 1) / threads + 4096}",
    ),
    Planted("not_waited_for", F, JOIN, JOIN.replace("pthread_join(thread[t], 0)", "pthread_detach(thread[t])")),
]  # fmt: skip

SCALAR = """    for (int64_t o = begin; o < end; o++) {
        float sum = 0;
        for (int64_t b = 0; b < p->blocks; b++) {
            const uint8_t *q = p->q + (o * p->blocks + b) * BYTES;
            const int8_t *x = p->x + b * BLOCK;
            int32_t part = 0;
            for (int j = 0; j < BYTES; j++) {
                part += ((q[j] & 15) - 8) * x[j];
                part += ((q[j] >> 4) - 8) * x[j + BYTES];
            }
            sum += p->scales[o * p->blocks + b] * p->xscales[b] * (float)part;
        }
        p->y[o] = sum;
    }
"""
WALK = """    int64_t row = begin;
    while (row != end) {
        double total = 0;
        for (int64_t column = 0; column != 32 * p->blocks; ++column) {
            int64_t block = column / 32, inside = column % 32;
            unsigned byte = p->q[16 * (row * p->blocks + block) + BYTE];
            int code = (int)(HIGH ? byte / 16 : byte % 16) - OFFSET;
            total += (double)(code * p->x[column]) * SCALE * p->xscales[block];
        }
        p->y[row++] = (float)total;
    }
"""


def _walk(byte="inside % 16", high="inside >= 16", offset="8", scale="p->scales[row * p->blocks + block]"):
    return WALK.replace("BYTE]", f"{byte}]").replace("HIGH", high).replace("OFFSET", offset).replace("SCALE", scale)


# The same errors in one loop over columns, with other names.
HIDDEN = [
    Planted("nibble_order_swapped", F, SCALAR, _walk(high="inside < 16")),
    Planted("neighbours_in_a_byte", F, SCALAR, _walk(byte="inside / 2", high="inside % 2")),
    Planted("offset_forgotten", F, SCALAR, _walk(offset="0")),
    Planted("scales_of_the_first_row", F, SCALAR, _walk(scale="p->scales[block]")),
    Planted("weight_scale_forgotten", F, SCALAR, _walk(scale="1")),
]  # fmt: skip
