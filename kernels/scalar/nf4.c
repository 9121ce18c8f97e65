/* NF4: quantize and dequantize blocks of 16 k weights, and multiply by them. numpy_ops/nf4.py is the rule.
 *
 *     for o, i:  weight[o][i] = absmax[o][i / block] * codebook[code[o][i]];     y = x weight^T,  dx = dout weight
 *
 *     row o    | c0 c1 | c2 c3 | .. | c62 c63 |  32 bytes, the even code in the high nibble      absmax: one float a block
 *
 * Codebook and midpoints come from NumPy: there is one place that says what they are. The sixteen products absmax *
 * codebook[k] of a block are made once; a weight is then one lookup, which avx2/nf4.c does eight at a time.
 *
 * Products are those of gemm.c, bit for bit: read_row stands where gemm.c copies rows of a dense weight into its panels, so
 * 16 x 384 floats are all that is ever unpacked. Per 8 weights: a load, a shift, a mask, two permutations and a choice, a
 * store; with many rows of x that is lost beside their multiply-adds.
 *
 * One core of an AMD EPYC beside other work, AVX2, 2048 x 2048, against unpacking 2^20 weights at a time (what stood here
 * before), medians in alternation, 2026-11-23: 256 rows of x forward 25.2 ms for 29.3, backward 25.0 for 32.2, where the dense weight
 * takes 27; one row 1.2 ms for 4.0. 8192 x 2048 with 64 rows: 2.8 MB beside the model for 12.7, where a dense copy is 67.
 * Unpacking alone, from the cache, on Zen 4: 0.10 ns a weight. Limit: for many rows the matrix product's (gemm.c); for one, 2.4 MB of
 * codes and scales, 0.08 ms at 30 GB/s from memory, which one row unpacked into panels is far from: int4 is the form to decode with. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* absmax = max|x| (NaN if there is one); code = number of midpoints below x / absmax, 15 where that is not a number */
ME_KERNEL(nf4_quantize) {
    const struct me_nf4 *a = args;
    int64_t block = a->block, blocks = a->in / block;
    for (int64_t b = begin * blocks; b < end * blocks; b++) {
        const float *x = a->w + b * block;
        uint8_t *q = a->q_out + b * block / 2;
        vf top = v_set(0), sum = v_set(0);
        for (int64_t j = 0; j < block; j += LANES) {
            vf magnitude = (vf)((vi)v_load(x + j) & v_seti(INT32_MAX));
            top = v_max(top, magnitude);
            sum += magnitude;
        }
        float absmax = v_largest(top), total = v_sum(sum);
        if (total != total) absmax = total;  /* a NaN may get lost in a maximum, never in a sum of magnitudes */
        float inverse = 1.0f / (absmax < 1e-38f ? 1e-38f : absmax);
        a->s_out[b] = absmax;
        for (int64_t j = 0; j < block; j += LANES) {
            vf scaled = v_load(x + j) * v_set(inverse);
            vi code = v_seti(15);
            for (int k = 0; k < 15; k++) code += (vi)(scaled <= v_set(a->table[k]));  /* true is -1 */
            for (int l = 0; l < LANES; l += 2) q[(j + l) / 2] = (uint8_t)(code[l] << 4 | code[l + 1]);
        }
    }
}

#ifndef ME_NF4_READ
/* w[2j] = value[q[j] >> 4], w[2j + 1] = value[q[j] & 15] for n bytes; value = table * scale, once for the block */
INLINE void read_block(float *w, const uint8_t *q, const float *table, float scale, int64_t n) {
    float value[16];
    for (int k = 0; k < 16; k++) value[k] = table[k] * scale;
    for (int64_t j = 0; j < n; j++) {
        w[2 * j] = value[q[j] >> 4];
        w[2 * j + 1] = value[q[j] & 15];
    }
}
#endif

/* weight = absmax * codebook[code], some columns of a row: to and from may lie inside a block */
static void read_row(float *w, const void *weight, int64_t row, int64_t from, int64_t to) {
    const struct me_nf4 *a = weight;
    for (int64_t i = from; i < to;) {
        int64_t b = i / a->block, stop = (b + 1) * a->block < to ? (b + 1) * a->block : to;
        read_block(w + i - from, a->q + (row * a->in + i) / 2, a->table, a->s[row * (a->in / a->block) + b], (stop - i) / 2);
        i = stop;
    }
}

/* items are rows */
ME_KERNEL(nf4_dequantize) {
    const struct me_nf4 *a = args;
    for (int64_t row = begin; row < end; row++) read_row(a->w_out + row * a->in, a, row, 0, a->in);
}

/* x weight^T, or dout weight: scalar/gemm.c on panels that are filled from the codes */
ME_KERNEL(nf4_gemm) {
    struct me_gemm g = *(const struct me_gemm *)args;
    g.read = read_row;
    g.gemm(&g, begin, end);
}
