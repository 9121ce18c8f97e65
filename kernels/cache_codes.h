/* Products of a few rows with the keys or values of an int8 cache: sums of integers, exact, so their order is nobody's business.
 *
 *     for (r < rows) for (j < columns) for (k < K) c[r][j] += a[r][k] * b[k][j]
 *
 * Two k's lie side by side, so that one instruction multiplies and adds both:
 *
 *     b   (0,0) (1,0) (0,1) (1,1) ... (0,15) (1,15)    (2,0) (3,0) ...      (k, j) as int8
 *     a   (r,0) (r,1) (r,2) (r,3) ...                                       (r, k) as int16
 *
 * Per sixteen numbers (AVX2): a load that widens to 16 bits and, a row, madd and add: 2 instructions for 16 products, where
 * floats take 2 and two conversions of two instructions each. Figures and limits: scalar/attention_decode.c. */
#ifndef MINEDGE_CACHE_CODES_H
#define MINEDGE_CACHE_CODES_H
#include "cache_products.h"

#if defined(ME_AVX512)
#define WIDE_PAIRS 6
#else
#define WIDE_PAIRS 0 /* the chain is one add, and two vectors do */
#endif

/* Eight columns of two k's, widened. */
#if defined(ME_AVX2)
typedef __m256i pairs;
INLINE pairs load_pairs(const int8_t *b) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)b)); }
/* s + a[0] * first + a[1] * second */
INLINE vi add_pairs(vi s, pairs x, const int16_t *a) {
    int32_t both;
    memcpy(&both, a, 4);
#if defined(ME_AVX512)
    return (vi)_mm256_dpwssd_epi32((__m256i)s, x, _mm256_set1_epi32(both));
#else
    return s + (vi)_mm256_madd_epi16(x, _mm256_set1_epi32(both));
#endif
}
#elif defined(ME_NEON)
typedef struct { int16x8_t first, second; } pairs;
INLINE pairs load_pairs(const int8_t *b) {
    int8x8x2_t x = vld2_s8(b);
    return (pairs){vmovl_s8(x.val[0]), vmovl_s8(x.val[1])};
}
INLINE vi add_pairs(vi s, pairs x, const int16_t *a) {
    union { vi v; int32x4_t half[2]; } h = {s};
    h.half[0] = vmlal_n_s16(h.half[0], vget_low_s16(x.first), a[0]);
    h.half[1] = vmlal_n_s16(h.half[1], vget_high_s16(x.first), a[0]);
    h.half[0] = vmlal_n_s16(h.half[0], vget_low_s16(x.second), a[1]);
    h.half[1] = vmlal_n_s16(h.half[1], vget_high_s16(x.second), a[1]);
    return h.v;
}
#else
typedef struct { vi first, second; } pairs;
INLINE pairs load_pairs(const int8_t *b) {
    return (pairs){{b[0], b[2], b[4], b[6], b[8], b[10], b[12], b[14]}, {b[1], b[3], b[5], b[7], b[9], b[11], b[13], b[15]}};
}
INLINE vi add_pairs(vi s, pairs x, const int16_t *a) { return s + x.first * v_seti(a[0]) + x.second * v_seti(a[1]); }
#endif

INLINE void pair_tile(const int rows, const int vectors, int32_t *restrict c, int64_t c_row, const int16_t *restrict a,
                      int64_t a_row, const int8_t *b, int64_t b_pair, int64_t b_next, int64_t K, struct ahead *next) {
    vi s[6][4];
    const char *at = next->at;
    const int64_t step = next->step;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) s[r][i] = v_seti(0);
    for (int64_t k = 0; k < K; k += 2) {
        pairs x[4];
        at = fetch_next(at, step);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) x[i] = load_pairs(b + k / 2 * b_pair + i / 2 * b_next + i % 2 * 16);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++) s[r][i] = add_pairs(s[r][i], x[i], a + r * a_row + k);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) memcpy(c + r * c_row + i * LANES, &s[r][i], sizeof s[r][i]);
    next->at = at;
}

/* c = a b; columns a multiple of 16, K even; b_pair: bytes from two k's to the next two */
static void pair_product(int64_t rows, int64_t columns, int32_t *c, int64_t c_row, const int16_t *a, int64_t a_row,
                         const int8_t *b, int64_t b_pair, int64_t b_next, int64_t K, struct ahead *next) {
    int64_t groups = (rows + 5) / 6, each = (rows + groups - 1) / groups;
    for (int64_t r = 0; r < rows; r += each, c += each * c_row, a += each * a_row) {
        int64_t n = smaller(each, rows - r), j = 0;
#define CALL(R, V, j) pair_tile(R, V, c + (j), c_row, a, a_row, b + (j) / 16 * b_next, b_pair, b_next, K, next)
#if WIDE_PAIRS
        for (; j + 32 <= columns; j += 32) GROUP(n, 4, j)
#endif
        for (; j < columns; j += 16) GROUP(n, 2, j)
#undef CALL
    }
}

/* codes[0..n) ~ x / d, halves away from zero, |code| <= levels, of the first `seen` numbers; zeros beyond. Returns d =
 * max|x| / levels; NaN, and codes of zero, where an x is NaN. n a multiple of 8 */
INLINE float round16(int16_t *codes, const float *x, int64_t seen, int64_t n, int32_t levels) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7}, magnitude = v_seti(0x7fffffff);
    vf top = v_set(0), most = v_set((float)levels);
    vi odd = v_seti(0);
    for (int64_t j = 0; j < n; j += LANES) {
        vf v = (vf)((vi)v_load(x + j) & magnitude & (lane < v_seti((int32_t)(seen - j))));
        odd |= v != v;
        top = v_max(v, top);
    }
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= odd[i];
    float d = any ? NAN : v_largest(top) / (float)levels, inverse = d != 0 ? 1.0f / d : 0;
    for (int64_t j = 0; j < n; j += LANES) {
        vf v = v_load(x + j) * v_set(inverse);
        v = (vf)((vi)v & (v == v) & (lane < v_seti((int32_t)(seen - j))));
        vf half = (vf)(((vi)v & ~magnitude) | (vi)v_set(0.5f));
        vi c = __builtin_convertvector(v_max(-most, v_min(most, v)) + half, vi);
        typedef int16_t v16 __attribute__((vector_size(16)));
        v16 narrow = __builtin_convertvector(c, v16);
        memcpy(codes + j, &narrow, sizeof narrow);
    }
    return d;
}

#endif
