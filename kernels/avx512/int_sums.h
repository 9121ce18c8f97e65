/* Many rows of x: the tiles of int_product.h with AVX-512. Few rows: int_few.h.
 *
 * One instruction, vpdpbusd, takes four columns of sixteen rows of x:
 *
 *     for t in 0..15: sum[t] += w[4k] * x[t][4k] + w[4k+1] * x[t][4k+1] + w[4k+2] * x[t][4k+2] + w[4k+3] * x[t][4k+3]
 *
 *     struct me_x16, code[k]    [t0: 4k .. 4k+3 | t1: 4k .. 4k+3 | .. | t15]    64 bytes, signed
 *     codes of a weight row     [4k .. 4k+3] to all sixteen lanes               unsigned: code (int4), code + 128 (int8)
 *
 * and adds in 32 bits: nothing can saturate, as 32 * 255 * 128 is far below 2^31, and int8 costs what int4 costs (AVX2 takes
 * two products of 16-bit sums for it). A sum starts at -offset * sum of x's block, offset 8 or 128, so nothing is taken off
 * at its end. Blocks then enter the float result in their order by one fused multiply-add each, as everywhere.
 *
 * A block of one weight row and sixteen rows of x, 512 products: 8 broadcasts, 8 vpdpbusd, a copy of the start, conversion,
 * multiplication by the scales, multiply-add: 20 instructions, and 1/8 of 10 loads. Zen 4 does one multiplication of 512 bits
 * a cycle, of any kind: ten of them here, so the limit is 379 GFLOP/s at 3.7 GHz.
 * 64 rows of x, one core of an AMD EPYC (Zen 4, 3.7 GHz) beside other work, best of alternating runs with AVX2's kernel,
 * 2026-11-23, AVX2's in brackets: 4096 x 4096 int4, groups of 32: 289 GFLOP/s (222); groups of 128: 252 (169); int8: 231 (86);
 * 256 x 4096, which stays in the cache: int4 316 (236), int8 313 (124). What is missing: weights are unpacked once for every
 * few groups of x, and x is turned over. */
#include "../vec.h"

#define ME_OWN_FEW
#define ME_OWN_TILES
#define ME_MANY
#define MANY_ROWS 8
#define MANY_DIGITS 1
#define MANY_FLIP 128

/* Four codes as one number. */
INLINE int32_t four(const uint8_t *p) { int32_t v; memcpy(&v, p, 4); return v; }

/* y[r][g], lane l: the product of weight row r with row l of group g of x, all blocks; two groups lie as struct me_x16. */
INLINE void many_sums(vf y[MANY_ROWS][2], const int bytes, const uint8_t *codes, const float *ws, const struct me_x8 *x,
                      const int groups, int64_t blocks) {
    (void)bytes;
    if (groups == 1) {
        for (int r = 0; r < MANY_ROWS; r++) y[r][0] = v_set(0);
        for (int64_t b = 0; b < blocks; b++) {
            __m256i sum[MANY_ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < MANY_ROWS; r++)
                sum[r] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_load_si256((const __m256i *)x[b].sum));
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                __m256i xs = _mm256_load_si256((const __m256i *)x[b].code[k]);
#pragma GCC unroll 8
                for (int r = 0; r < MANY_ROWS; r++)
                    sum[r] = _mm256_dpbusd_epi32(sum[r], _mm256_set1_epi32(four(codes + ((b * 8 + k) * MANY_ROWS + r) * 4)), xs);
            }
#pragma GCC unroll 8
            for (int r = 0; r < MANY_ROWS; r++)
                y[r][0] = v_fma(__builtin_convertvector((vi)sum[r], vf), v_set(ws[b * MANY_ROWS + r]) * v_load(x[b].scale),
                                y[r][0]);
        }
        return;
    }
    const struct me_x16 *x16 = (const struct me_x16 *)x;
    __m512 s[MANY_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < MANY_ROWS; r++) s[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        __m512i sum[MANY_ROWS], start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_load_si512(x16[b].sum));
        __m512 scale = _mm512_load_ps(x16[b].scale);
#pragma GCC unroll 8
        for (int r = 0; r < MANY_ROWS; r++) sum[r] = start;
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            __m512i xs = _mm512_load_si512(x16[b].code[k]);
#pragma GCC unroll 8
            for (int r = 0; r < MANY_ROWS; r++)
                sum[r] = _mm512_dpbusd_epi32(sum[r], _mm512_set1_epi32(four(codes + ((b * 8 + k) * MANY_ROWS + r) * 4)), xs);
        }
#pragma GCC unroll 8
        for (int r = 0; r < MANY_ROWS; r++)
            s[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(_mm512_set1_ps(ws[b * MANY_ROWS + r]), scale), s[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MANY_ROWS; r++) memcpy(y[r], &s[r], sizeof s[r]);
}
