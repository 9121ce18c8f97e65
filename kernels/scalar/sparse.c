/* Products with a pruned weight that stays packed: a bit a column says what was kept, and only that is stored.
 *
 *     for o, n:  sum = 0, at = starts[o];  for k: if bit k of row o: sum = fma(values[at++], x[n][k], sum);  y[n][o] = sum
 *
 * with sixteen sums side by side, k mod 16. Two bytes of the mask and the next values become sixteen lanes, zeros where
 * nothing was kept; how many bits are set is how far the values move on (eight lanes drawn):
 *
 *     mask of row o   0b01100101 | next byte ..                values of row o   v0 v1 v2 v3 | v4 ..  (+4)
 *     lanes           v0 0 v1 0 0 v2 v3 0  *  x0 x1 x2 x3 x4 x5 x6 x7  -> one multiply-add
 *
 * Pruned weights are multiplied as zeros: an infinity in x makes NaN, as with the dense weight. Up to three rows of x take
 * the lanes as they are made. More of them first make some rows of the weight dense, in a scratch that stays in the
 * second-level cache, and multiply by that: the same sums in the same order.
 *
 * Per 16 weights and row of x with AVX-512: a load of the mask, one of values, an expansion, a multiply-add, a count, an
 * addition; AVX2 has a table lookup, a permutation and a choice twice in the place of the expansion. The expansion is the
 * limit: from the cache 15.2 G weights/s with AVX-512 and 12.5 with AVX2, whatever the density, one core of an AMD EPYC
 * (Zen 4), 576 x 576, best of 400 calls of this function, 2026-11-23. So it pays where the dense weight waits for memory:
 *
 *     minedge bench --only sparse,sparse-cached,sparse-rows --threads 1, same core beside other work, times dense in the same run
 *     kept of 4096 x 4096, from memory, one row    90%     70%     50%     30%
 *     float32 against float32                      1.29    1.52    1.88    2.13    faster at every density measured
 *     float16 against float16                              0.81    0.88    1.04    faster below 35%
 *     float16 against float32                              1.99    2.17    2.63
 *     from the cache (576 x 576): 0.80 to 0.87 of dense float32, 0.5 to 0.6 of dense float16; 64 rows: 0.8 to 0.9 of either
 *
 * 2:4 is 50% and takes this path: its mask has as many bits as two 2-bit positions would, and counting them is not the limit. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"
#include <stdlib.h>

#define ROWS 4
#define TOKENS 3
#define WIDE (2 * LANES)
#define STRETCH 64              /* columns between two looks at how many values are left */
#define PART_BYTES (256 << 10)  /* of dense rows, while all rows of x pass by */

#ifndef ME_SPARSE_SPREAD
/* lane j = the next value where bit j of byte is set, else 0. Others of these may read up to eight values. */
INLINE vf spread(const float *p, unsigned byte) {
    vf w;
    for (int j = 0; j < LANES; j++) {
        w[j] = byte >> j & 1 ? *p : 0;
        p += byte >> j & 1;
    }
    return w;
}
INLINE vf spread_half(const uint16_t *p, unsigned byte) {
    uint16_t w[LANES];
    for (int j = 0; j < LANES; j++) {
        w[j] = byte >> j & 1 ? *p : 0;
        p += byte >> j & 1;
    }
    return v_half(w);
}
INLINE int64_t count(unsigned byte) { return __builtin_popcount(byte); }
#endif

/* Sixteen lanes: two vectors, or one where avx512/sparse.c says so. sixteen() may read as many values. */
#ifndef ME_SPARSE_WIDE
#define ROWS_OF_THREE 2  /* rows of the weight for three of x: 12 sums */
typedef struct { vf low, high; } vw;
INLINE vw w_zero(void) { return (vw){v_set(0), v_set(0)}; }
INLINE vw w_load(const float *p) { return (vw){v_load(p), v_load(p + LANES)}; }
INLINE vw w_load_low(const float *p) { return (vw){v_load(p), v_set(0)}; }
INLINE void w_store(float *p, vw w) { v_store(p, w.low); v_store(p + LANES, w.high); }
INLINE void w_store_low(float *p, vw w) { v_store(p, w.low); }
INLINE vw w_fma(vw a, vw b, vw c) { return (vw){v_fma(a.low, b.low, c.low), v_fma(a.high, b.high, c.high)}; }
INLINE float w_sum(vw w) { return v_sum(w.low + w.high); }
/* s[r][t] += w[r] * x[t]: one half after the other, so that three of x and one of w are in registers at a time */
INLINE void w_tile(const int rows, const int tokens, vw s[ROWS][TOKENS], const float *w, const float *x, int64_t in) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++, w += LANES, x += LANES) {
        vf now[TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) now[t] = v_load(x + t * in);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vf wide = v_load(w + r * in);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                if (h) s[r][t].high = v_fma(wide, now[t], s[r][t].high);
                else s[r][t].low = v_fma(wide, now[t], s[r][t].low);
            }
        }
    }
}
INLINE int64_t count_all(unsigned mask) { return count(mask & 255) + count(mask >> 8); }
INLINE vw sixteen(const int half, const char *p, unsigned mask) {
    if (half) {
        const uint16_t *h = (const uint16_t *)p;
        return (vw){spread_half(h, mask & 255), spread_half(h + count(mask & 255), mask >> 8)};
    }
    const float *f = (const float *)p;
    return (vw){spread(f, mask & 255), spread(f + count(mask & 255), mask >> 8)};
}
#endif

/* The same where the array of values ends less than sixteen further on, at `end`, or lies behind already. */
static vw last_sixteen(const int half, const char *p, const char *end, unsigned mask) {
    char few[WIDE * sizeof(float)] = {0};
    if (p < end) memcpy(few, p, end - p < (int64_t)sizeof few ? (size_t)(end - p) : sizeof few);
    return sixteen(half, few, mask);
}

/* The mask of sixteen columns, or of the last eight of a row. */
INLINE unsigned mask_of(const uint8_t *bits, const int whole) { return whole ? bits[0] | (unsigned)bits[1] << 8 : bits[0]; }

/* Where row o's values begin; whatever starts says, it lies inside the array. */
INLINE const char *start_of(const struct me_sparse *a, const int half, int64_t o) {
    int64_t at = a->starts[o];
    return (const char *)a->values + (half ? 2 : 4) * (at < 0 ? 0 : at > a->kept ? a->kept : at);
}

/* One step of dots(): sixteen columns, or eight. */
INLINE void step_of(const int rows, const int tokens, const int half, const int careful, const int whole, vw s[ROWS][TOKENS],
                    const char *p[ROWS], const char *end, const uint8_t *bits, int64_t step, const float *x) {
    vw now[TOKENS];
    const int64_t in = 8 * step;
#pragma GCC unroll 3
    for (int t = 0; t < tokens; t++) now[t] = whole ? w_load(x + t * in) : w_load_low(x + t * in);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        unsigned mask = mask_of(bits + r * step, whole);
        vw w = careful ? last_sixteen(half, p[r], end, mask) : sixteen(half, p[r], mask);
        p[r] += (half ? 2 : 4) * count_all(mask);
#pragma GCC unroll 3
        for (int t = 0; t < tokens; t++) s[r][t] = w_fma(w, now[t], s[r][t]);
    }
}

/* y[t][r] for r < rows, t < tokens, both constants, of rows o.. of the weight */
INLINE void dots(const int rows, const int tokens, const int half, const struct me_sparse *a, int64_t o, int64_t n) {
    const int64_t step = a->in / 8, size = half ? 2 : 4;
    const float *x = a->x + n * a->in;
    const uint8_t *bits = a->bits + o * step, *const all = bits + step;
    const char *p[ROWS], *const end = (const char *)a->values + size * a->kept;
    vw s[ROWS][TOKENS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        p[r] = start_of(a, half, o + r);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) s[r][t] = w_zero();
    }
    while (bits < all) {
        const uint8_t *stop = all - bits > STRETCH / 8 ? bits + STRETCH / 8 : all;
        int careful = 0;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) careful |= end - p[r] < STRETCH * size;
        for (; careful && bits + 1 < stop; bits += 2, x += WIDE) step_of(rows, tokens, half, 1, 1, s, p, end, bits, step, x);
        for (; bits + 1 < stop; bits += 2, x += WIDE) step_of(rows, tokens, half, 0, 1, s, p, end, bits, step, x);
        if (bits < stop) step_of(rows, tokens, half, 1, 0, s, p, end, bits++, step, x);
    }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) a->y[(n + t) * a->out + o + r] = w_sum(s[r][t]);
}

/* Columns from..to-1 of a row: from a multiple of 16, to of 8. */
INLINE void row_of(const int half, float *w, const struct me_sparse *a, int64_t row, int64_t from, int64_t to) {
    const int64_t size = half ? 2 : 4;
    const uint8_t *bits = a->bits + row * (a->in / 8), *const first = bits + from / 8, *const all = bits + to / 8;
    const char *p = start_of(a, half, row), *const end = (const char *)a->values + size * a->kept;
    for (; first - bits >= 8; bits += 8) {
        uint64_t word;
        memcpy(&word, bits, sizeof word);
        p += size * __builtin_popcountll(word);
    }
    for (; bits < first; bits++) p += size * count_all(*bits);
    while (bits < all) {
        const uint8_t *stop = all - bits > STRETCH / 8 ? bits + STRETCH / 8 : all;
        const int careful = end - p < STRETCH * size;
        for (; bits + 1 < stop; bits += 2, w += WIDE) {
            unsigned mask = mask_of(bits, 1);
            w_store(w, careful ? last_sixteen(half, p, end, mask) : sixteen(half, p, mask));
            p += size * count_all(mask);
        }
        if (bits < stop) {
            w_store_low(w, last_sixteen(half, p, end, *bits));
            p += size * count_all(*bits++);
        }
    }
}

static void read_row(float *w, const void *weight, int64_t row, int64_t from, int64_t to) {
    const struct me_sparse *a = weight;
    if (a->half) row_of(1, w, a, row, from, to);
    else row_of(0, w, a, row, from, to);
}

/* dots() of rows that have been made dense */
INLINE void dense_dots(const int rows, const int tokens, float *y, int64_t out, const float *x, const float *w, int64_t in) {
    vw s[ROWS][TOKENS];
    int64_t k = 0;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) s[r][t] = w_zero();
    for (; k + WIDE <= in; k += WIDE) w_tile(rows, tokens, s, w + k, x + k, in);
    if (k < in)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) s[r][t] = w_fma(w_load_low(w + r * in + k), w_load_low(x + t * in + k), s[r][t]);
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) y[t * out + r] = w_sum(s[r][t]);
}

/* Rows o0..o1-1 of the weight, dense in w, and every row of x. */
INLINE void many(const struct me_sparse *a, const float *w, int64_t o0, int64_t o1) {
    const int64_t in = a->in;
    for (int64_t n = 0; n < a->N;) {
        const float *x = a->x + n * in;
        float *y = a->y + n * a->out;
        const int three = n + TOKENS <= a->N;
        int64_t o = o0;
        if (three)
            for (; o + ROWS_OF_THREE <= o1; o += ROWS_OF_THREE)
                dense_dots(ROWS_OF_THREE, TOKENS, y + o, a->out, x, w + (o - o0) * in, in);
        else
            for (; o + ROWS <= o1; o += ROWS) dense_dots(ROWS, 1, y + o, a->out, x, w + (o - o0) * in, in);
        for (; o < o1; o++) {
            if (three) dense_dots(1, TOKENS, y + o, a->out, x, w + (o - o0) * in, in);
            else dense_dots(1, 1, y + o, a->out, x, w + (o - o0) * in, in);
        }
        n += three ? TOKENS : 1;
    }
}

INLINE void few(const int half, const struct me_sparse *a, int64_t begin, int64_t end) {
    int64_t o = begin;
    if (a->N == TOKENS)
        for (; o + ROWS_OF_THREE <= end; o += ROWS_OF_THREE) dots(ROWS_OF_THREE, TOKENS, half, a, o, 0);
    for (; o + ROWS <= end; o += ROWS)
        for (int64_t n = 0; n < a->N; n++) dots(ROWS, 1, half, a, o, n);
    for (; o < end; o++)
        for (int64_t n = 0; n < a->N; n++) dots(1, 1, half, a, o, n);
}

/* items are rows of the weight */
ME_KERNEL(sparse_linear) {
    const struct me_sparse *a = args;
    if (a->N <= TOKENS) {
        if (a->half) few(1, a, begin, end);
        else few(0, a, begin, end);
        return;
    }
    int64_t step = PART_BYTES / (int64_t)sizeof(float) / (a->in + 1) / ROWS * ROWS + ROWS;
    float *w = aligned_alloc(64, (size_t)(step * a->in * (int64_t)sizeof(float) + 63) / 64 * 64);
    if (w == NULL) {
        *a->failed = 1;
        return;
    }
    for (int64_t o0 = begin; o0 < end; o0 += step) {
        int64_t o1 = o0 + step < end ? o0 + step : end;
        for (int64_t o = o0; o < o1; o++) read_row(w + (o - o0) * a->in, a, o, 0, a->in);
        many(a, w, o0, o1);
    }
    free(w);
}

/* dout weight: scalar/gemm.c on panels that are filled from the values */
ME_KERNEL(sparse_gemm) {
    struct me_gemm g = *(const struct me_gemm *)args;
    g.read = read_row;
    g.gemm(&g, begin, end);
}
