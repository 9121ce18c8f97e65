/* The integer sums of int_product.h with AVX2.
 *
 * maddubs multiplies unsigned bytes with signed ones and adds neighbours in 16 bits, saturating; so
 *   int4: codes 0..15 unsigned: a pair is at most 2 * 15 * 128 = 3,840, and eight pairs, 30,720, still fit 16 bits;
 *   int8: |w| times x with w's sign: at most 2 * 128 * 127 = 32,512 (|x| <= 127, as int8_quantize makes it).
 *
 * 4096 x 4096, one core of an AMD EPYC (Zen 3, 3.7 GHz), the best of 100 runs beside other work, 2026-11-23:
 *   one row    int4, groups of 32 or 128: 26 GB/s of codes and scales from memory, 29 from cache; int8: 25 and 43. The
 *              limit is the memory's: plain reads of the same arrays came at 33 GB/s.
 *   64 rows    int4 250 GFLOP/s, int8 127. The limit is two multiplications a cycle: 8 maddubs, 1 madd and 2 of floats
 *              for 256 products are 343 for int4.
 * benchmarks/packed_kernels.py times the ops that these belong to; the machine should have nothing else to do. */
#include "../vec.h"

/* Eight vectors of four int32 (or, before madd, eight int16) per half -> lane r: the sum of half h of p[r]. */
INLINE void add_halves(vi out[2], const __m256i p[8]) {
    __m256i a[4], b[2];
    for (int i = 0; i < 4; i++)
        a[i] = _mm256_add_epi16(_mm256_unpacklo_epi32(p[2 * i], p[2 * i + 1]), _mm256_unpackhi_epi32(p[2 * i], p[2 * i + 1]));
    for (int i = 0; i < 2; i++) {
        b[i] = _mm256_add_epi16(_mm256_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm256_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
        b[i] = _mm256_madd_epi16(b[i], _mm256_set1_epi16(1));
    }
    out[0] = (vi)_mm256_permute2x128_si256(b[0], b[1], 0x20);
    out[1] = (vi)_mm256_permute2x128_si256(b[0], b[1], 0x31);
}

/* sums[t][i], lane r: sum over block b + i of code * x[t] for row q[r]; the second block only where `two`.
 * int4, per 8 rows x 2 blocks: 8 x (load, and, shift, and, 2 maddubs, add) + 22 = 78 instructions for 512 weights. */
INLINE void row_pair_sums(vi sums[][2], const int bytes, const uint8_t *const q[8], int64_t b, int two, const int8_t *const x[],
                          const int tokens) {
    if (bytes == 16) {
        const __m256i low = _mm256_set1_epi8(15);
        __m256i p[4][8], x0[4], x1[4];
        for (int t = 0; t < tokens; t++) {
            __m256i first = _mm256_loadu_si256((const __m256i *)(x[t] + b * 32));
            __m256i second = two ? _mm256_loadu_si256((const __m256i *)(x[t] + b * 32 + 32)) : _mm256_setzero_si256();
            x0[t] = _mm256_permute2x128_si256(first, second, 0x20);  /* columns 0..15 of both blocks */
            x1[t] = _mm256_permute2x128_si256(first, second, 0x31);
        }
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            const uint8_t *at = q[r] + b * 16;
            __m256i v = two ? _mm256_loadu_si256((const __m256i *)at) : _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)at));
            __m256i c0 = _mm256_and_si256(v, low), c1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
            for (int t = 0; t < tokens; t++)
                p[t][r] = _mm256_add_epi16(_mm256_maddubs_epi16(c0, x0[t]), _mm256_maddubs_epi16(c1, x1[t]));
        }
        /* each 16-bit sum has 4 products here and 16 before madd: at most 16 * 15 * 128 = 30,720 */
        for (int t = 0; t < tokens; t++) add_halves(sums[t], p[t]);
        return;
    }
    for (int i = 0; i <= two; i++)
        for (int t = 0; t < tokens; t++) {
            __m256i xb = _mm256_loadu_si256((const __m256i *)(x[t] + (b + i) * 32)), p[8], a[4], c[2];
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                __m256i w = _mm256_loadu_si256((const __m256i *)(q[r] + (b + i) * 32));
                p[r] = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(xb, w));
                p[r] = _mm256_madd_epi16(p[r], _mm256_set1_epi16(1));
            }
            for (int k = 0; k < 4; k++)
                a[k] = _mm256_add_epi32(_mm256_unpacklo_epi32(p[2 * k], p[2 * k + 1]), _mm256_unpackhi_epi32(p[2 * k], p[2 * k + 1]));
            for (int k = 0; k < 2; k++)
                c[k] = _mm256_add_epi32(_mm256_unpacklo_epi64(a[2 * k], a[2 * k + 1]), _mm256_unpackhi_epi64(a[2 * k], a[2 * k + 1]));
            sums[t][i] = (vi)_mm256_add_epi32(_mm256_permute2x128_si256(c[0], c[1], 0x20), _mm256_permute2x128_si256(c[0], c[1], 0x31));
        }
}

#define ME_TILES
#ifndef TILE_ROWS
#define TILE_ROWS 4
#endif

/* The compiler knows that sums may be taken in any order, and would make all products first, far more than there are
 * registers: a value that passes here has to be ready. 1.4 times the speed of tile_sums. */
#define KEEP(v) __asm__("" : "+x"(v))

/* int8 as two int4 digits: code + 128 = 16 * high + low, high and low in 0..15, so that both fit the 16-bit sums. */
INLINE int64_t tile_code_bytes(const int bytes) { return bytes == 16 ? 32 : 64; }

INLINE void unpack_row(uint8_t *codes, const int bytes, const uint8_t *q, int64_t blocks) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t b = 0; b < blocks; b++) {
        if (bytes == 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)(q + b * 16));
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1);
            _mm256_storeu_si256((__m256i *)(codes + b * 32), _mm256_and_si256(both, low));
        } else {
            __m256i v = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(q + b * 32)), _mm256_set1_epi8((char)128));
            _mm256_storeu_si256((__m256i *)(codes + b * 64), _mm256_and_si256(v, low));
            _mm256_storeu_si256((__m256i *)(codes + b * 64 + 32), _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
        }
    }
}

/* y[r][g], lane l: the product of weight row r with row l of group g of x, all blocks.
 * int4, per row and group: 8 x (maddubs, add) + madd, sub, convert, multiply, fma: 21 instructions for 256 products, and
 * a third of a load each. */
INLINE void tile_sums(vf y[TILE_ROWS][2], const int bytes, const uint8_t *codes, const float *ws, const struct me_x8 *x, const int groups,
                      int64_t blocks) {
    const int64_t row = blocks * tile_code_bytes(bytes);
    for (int r = 0; r < TILE_ROWS; r++)
        for (int g = 0; g < groups; g++) y[r][g] = v_set(0);
    for (int64_t b = 0; b < blocks; b++) {
        __m256i sum[TILE_ROWS][2];
        for (int digit = 0; digit < (bytes == 16 ? 1 : 2); digit++) {
            const uint8_t *at = codes + b * tile_code_bytes(bytes) + digit * 32;
            __m256i p[TILE_ROWS][2];
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++)
#pragma GCC unroll 8
                for (int r = 0; r < TILE_ROWS; r++) {
                    int32_t four;
                    memcpy(&four, at + r * row + 4 * k, 4);
                    __m256i w = _mm256_set1_epi32(four);
#pragma GCC unroll 2
                    for (int g = 0; g < groups; g++) {
                        __m256i two = _mm256_maddubs_epi16(w, _mm256_load_si256((const __m256i *)x[g * blocks + b].code[k]));
                        p[r][g] = k ? _mm256_add_epi16(p[r][g], two) : two;
                        KEEP(p[r][g]);
                    }
                }
            for (int r = 0; r < TILE_ROWS; r++)
                for (int g = 0; g < groups; g++) {
                    __m256i wide = _mm256_madd_epi16(p[r][g], _mm256_set1_epi16(digit ? 16 : 1));
                    sum[r][g] = digit ? _mm256_add_epi32(sum[r][g], wide) : wide;
                }
        }
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 2
            for (int g = 0; g < groups; g++) {
                const struct me_x8 *xb = x + g * blocks + b;
                vi part = (vi)sum[r][g] - (vi)_mm256_load_si256((const __m256i *)xb->sum);
                y[r][g] = v_fma(__builtin_convertvector(part, vf), v_set(ws[b * TILE_ROWS + r]) * v_load(xb->scale), y[r][g]);
            }
    }
}
