/* The integer sums of int_product.h with AVX2.
 *
 * maddubs multiplies unsigned bytes with signed ones and adds neighbours in 16 bits, saturating; so
 *   int4: codes 0..15 unsigned: a pair is at most 2 * 15 * 128 = 3,840, and eight pairs, 30,720, still fit 16 bits;
 *   int8: |w| times x with w's sign: at most 2 * 128 * 127 = 32,512 (|x| <= 127, as int8_quantize makes it).
 *
 * One core of an AMD EPYC (Zen 4, 3.7 GHz), 2026-11-23:
 *   one row    int4 in tiles, groups of 32 or 128, best of runs: 36 GB/s of codes and scales from the second-level cache, 20 to
 *              23 from memory, which is the limit there (eight rows stored one after the other: 26, and 21 to 24).
 *   64 rows    int4 in tiles 190 to 212 GFLOP/s. The limit is two multiplications a cycle: 8 maddubs, 1 madd and 2 of floats,
 *              11 instructions for 256 products: 343 for int4. */
#include "../vec.h"

/* sums[t][h], lane r: sum over the block of code * x[t] for row 8 h + r of the tile. A vector holds four columns of eight rows;
 * its 16-bit sums take eight products of two before madd: at most 16 * 15 * 128 = 30,720. 512 weights and one row of x: 8 x
 * (load, and, shift, and), 8 x (broadcast, 2 maddubs, 2 adds), less the first 2 adds, 2 madd: 72 instructions. */
INLINE void tile_sums(vi sums[][2], const uint8_t *codes, const int8_t *const x[], const int tokens) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i s[4][2];
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(codes + 64 * p + 32 * h));
            __m256i c0 = _mm256_and_si256(v, low), c1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                int32_t x0, x1;
                memcpy(&x0, x[t] + 4 * p, 4);
                memcpy(&x1, x[t] + 16 + 4 * p, 4);
                __m256i two = _mm256_add_epi16(_mm256_maddubs_epi16(c0, _mm256_set1_epi32(x0)),
                                               _mm256_maddubs_epi16(c1, _mm256_set1_epi32(x1)));
                s[t][h] = p ? _mm256_add_epi16(s[t][h], two) : two;
            }
        }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) sums[t][h] = (vi)_mm256_madd_epi16(s[t][h], _mm256_set1_epi16(1));
}

/* sums[t], lane r: sum over block b of code * x[t] for row q[r] of an int8 weight */
INLINE void row_sums(vi sums[], const uint8_t *const q[8], int64_t b, const int8_t *const x[], const int tokens) {
    for (int t = 0; t < tokens; t++) {
        __m256i xb = _mm256_loadu_si256((const __m256i *)(x[t] + b * 32)), p[8], a[4], c[2];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            __m256i w = _mm256_loadu_si256((const __m256i *)(q[r] + b * 32));
            p[r] = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(xb, w));
            p[r] = _mm256_madd_epi16(p[r], _mm256_set1_epi16(1));
        }
        for (int k = 0; k < 4; k++)
            a[k] = _mm256_add_epi32(_mm256_unpacklo_epi32(p[2 * k], p[2 * k + 1]), _mm256_unpackhi_epi32(p[2 * k], p[2 * k + 1]));
        for (int k = 0; k < 2; k++)
            c[k] = _mm256_add_epi32(_mm256_unpacklo_epi64(a[2 * k], a[2 * k + 1]), _mm256_unpackhi_epi64(a[2 * k], a[2 * k + 1]));
        sums[t] = (vi)_mm256_add_epi32(_mm256_permute2x128_si256(c[0], c[1], 0x20), _mm256_permute2x128_si256(c[0], c[1], 0x31));
    }
}

#define ME_MANY
#ifndef MANY_ROWS
#define MANY_ROWS 4
#endif
/* int8 as two int4 digits: code + 128 = 16 * high + low, high and low in 0..15, so that both fit the 16-bit sums. */
#define MANY_DIGITS 2
#define MANY_FLIP 128

/* The compiler knows that sums may be taken in any order, and would make all products first, far more than there are
 * registers: a value that passes here has to be ready. 1.4 times the speed of many_sums. */
#define KEEP(v) __asm__("" : "+x"(v))

/* y[r][g], lane l: the product of weight row r with row l of group g of x, all blocks.
 * int4, per row and group: 8 x (maddubs, add) + madd, sub, convert, multiply, fma: 21 instructions for 256 products, and
 * a third of a load each. */
INLINE void many_sums(vf y[MANY_ROWS][2], const int bytes, const uint8_t *codes, const float *ws, const struct me_x8 *x, const int groups,
                      int64_t blocks) {
    for (int r = 0; r < MANY_ROWS; r++)
        for (int g = 0; g < groups; g++) y[r][g] = v_set(0);
    for (int64_t b = 0; b < blocks; b++) {
        __m256i sum[MANY_ROWS][2];
        for (int digit = 0; digit < (bytes == 16 ? 1 : 2); digit++) {
            const uint8_t *at = codes + (b * (bytes == 16 ? 1 : 2) + digit) * MANY_ROWS * 32;
            __m256i p[MANY_ROWS][2];
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++)
#pragma GCC unroll 8
                for (int r = 0; r < MANY_ROWS; r++) {
                    int32_t four;
                    memcpy(&four, at + (k * MANY_ROWS + r) * 4, 4);
                    __m256i w = _mm256_set1_epi32(four);
#pragma GCC unroll 2
                    for (int g = 0; g < groups; g++) {
                        __m256i two = _mm256_maddubs_epi16(w, _mm256_load_si256((const __m256i *)x[g * blocks + b].code[k]));
                        p[r][g] = k ? _mm256_add_epi16(p[r][g], two) : two;
                        KEEP(p[r][g]);
                    }
                }
            for (int r = 0; r < MANY_ROWS; r++)
                for (int g = 0; g < groups; g++) {
                    __m256i wide = _mm256_madd_epi16(p[r][g], _mm256_set1_epi16(digit ? 16 : 1));
                    sum[r][g] = digit ? _mm256_add_epi32(sum[r][g], wide) : wide;
                }
        }
#pragma GCC unroll 8
        for (int r = 0; r < MANY_ROWS; r++)
#pragma GCC unroll 2
            for (int g = 0; g < groups; g++) {
                const struct me_x8 *xb = x + g * blocks + b;
                vi part = (vi)sum[r][g] - (vi)_mm256_load_si256((const __m256i *)xb->sum);
                y[r][g] = v_fma(__builtin_convertvector(part, vf), v_set(ws[b * MANY_ROWS + r]) * v_load(xb->scale), y[r][g]);
            }
    }
}
