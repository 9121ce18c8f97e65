/* Products with a pruned weight that stays packed: a bit a column says what was kept, and only that is stored.
 *
 *     for o, n:  sum = 0, at = starts[o];  for k: if bit k of row o: sum = fma(values[at++], x[n][k], sum);  y[n][o] = sum
 *
 * with eight sums side by side, k mod 8, as for 16-bit weights (half.c). A byte of the mask and the next values become
 * eight lanes, zeros where nothing was kept; how many bits are set is how far the values move on:
 *
 *     mask of row o   0b01100101 | next byte ..                values of row o   v0 v1 v2 v3 | v4 ..  (+4)
 *     lanes           v0 0 v1 0 0 v2 v3 0   x0 x1 x2 x3 x4 x5 x6 x7  -> one multiply-add
 *
 * Pruned weights are multiplied as zeros: an infinity in x makes NaN, as with the dense weight. Up to three rows of x take
 * the lanes as they are made. More of them first make some rows of the weight dense, in a scratch that stays in the second-level
 * cache, and multiply by that: the same sums in the same order. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"
#include <stdlib.h>

#define ROWS 4
#define TOKENS 3
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

/* The kept values of a row from `p` on. `half`: they are float16. */
INLINE vf eight(const int half, const char *p, unsigned byte) {
    return half ? spread_half((const uint16_t *)p, byte) : spread((const float *)p, byte);
}

/* The same where the array of values ends less than eight further on, at `end`, or lies behind already. */
static vf last_eight(const int half, const char *p, const char *end, unsigned byte) {
    char few[LANES * sizeof(float)] = {0};
    if (p < end) memcpy(few, p, end - p < (int64_t)sizeof few ? (size_t)(end - p) : sizeof few);
    return eight(half, few, byte);
}

/* Where row o's values begin; whatever starts says, it lies inside the array. */
INLINE const char *start_of(const struct me_sparse *a, const int half, int64_t o) {
    int64_t at = a->starts[o];
    return (const char *)a->values + (half ? 2 : 4) * (at < 0 ? 0 : at > a->kept ? a->kept : at);
}

/* y[t][r] for r < rows, t < tokens, both constants, of rows o.. of the weight */
INLINE void dots(const int rows, const int tokens, const int half, const struct me_sparse *a, int64_t o, int64_t n) {
    const int64_t in = a->in, step = in / 8, size = half ? 2 : 4;
    const float *x = a->x + n * in;
    const uint8_t *bits = a->bits + o * step, *const all = bits + step;
    const char *p[ROWS], *const end = (const char *)a->values + size * a->kept;
    vf s[ROWS][TOKENS];
    for (int r = 0; r < rows; r++) {
        p[r] = start_of(a, half, o + r);
        for (int t = 0; t < tokens; t++) s[r][t] = v_set(0);
    }
    while (bits < all) {
        const uint8_t *stop = all - bits > STRETCH / 8 ? bits + STRETCH / 8 : all;
        int careful = 0;
        for (int r = 0; r < rows; r++) careful |= end - p[r] < STRETCH * size;
        if (careful) {
            for (; bits < stop; bits++, x += LANES)
                for (int r = 0; r < rows; r++) {
                    vf w = last_eight(half, p[r], end, bits[r * step]);
                    p[r] += size * count(bits[r * step]);
                    for (int t = 0; t < tokens; t++) s[r][t] = v_fma(w, v_load(x + t * in), s[r][t]);
                }
            continue;
        }
        for (; bits < stop; bits++, x += LANES) {
            vf now[TOKENS];
#pragma GCC unroll 3
            for (int t = 0; t < tokens; t++) now[t] = v_load(x + t * in);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                unsigned byte = bits[r * step];
                vf w = eight(half, p[r], byte);
                p[r] += size * count(byte);
#pragma GCC unroll 3
                for (int t = 0; t < tokens; t++) s[r][t] = v_fma(w, now[t], s[r][t]);
            }
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) a->y[(n + t) * a->out + o + r] = v_sum(s[r][t]);
}

/* Columns from..to-1 of a row, both multiples of 8. */
INLINE void row_of(const int half, float *w, const struct me_sparse *a, int64_t row, int64_t from, int64_t to) {
    const int64_t size = half ? 2 : 4;
    const uint8_t *bits = a->bits + row * (a->in / 8), *const first = bits + from / 8, *const all = bits + to / 8;
    const char *p = start_of(a, half, row), *const end = (const char *)a->values + size * a->kept;
    for (; first - bits >= 8; bits += 8) {
        uint64_t word;
        memcpy(&word, bits, sizeof word);
        p += size * __builtin_popcountll(word);
    }
    for (; bits < first; bits++) p += size * count(*bits);
    while (bits < all) {
        const uint8_t *stop = all - bits > STRETCH / 8 ? bits + STRETCH / 8 : all;
        const int careful = end - p < STRETCH * size;
        for (; bits < stop; bits++, w += LANES) {
            v_store(w, careful ? last_eight(half, p, end, *bits) : eight(half, p, *bits));
            p += size * count(*bits);
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
    vf s[ROWS][TOKENS];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) s[r][t] = v_set(0);
    for (int64_t k = 0; k < in; k += LANES) {
        vf now[TOKENS];
#pragma GCC unroll 3
        for (int t = 0; t < tokens; t++) now[t] = v_load(x + t * in + k);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vf wide = v_load(w + r * in + k);
#pragma GCC unroll 3
            for (int t = 0; t < tokens; t++) s[r][t] = v_fma(wide, now[t], s[r][t]);
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) y[t * out + r] = v_sum(s[r][t]);
}

/* Rows o0..o1-1 of the weight, dense in w, and every row of x. */
INLINE void many(const struct me_sparse *a, const float *w, int64_t o0, int64_t o1) {
    for (int64_t n = 0; n < a->N;) {
        const float *x = a->x + n * a->in;
        float *y = a->y + n * a->out;
        const int three = n + TOKENS <= a->N;
        int64_t o = o0;
        for (; o + ROWS <= o1; o += ROWS) {
            if (three) dense_dots(ROWS, TOKENS, y + o, a->out, x, w + (o - o0) * a->in, a->in);
            else dense_dots(ROWS, 1, y + o, a->out, x, w + (o - o0) * a->in, a->in);
        }
        for (; o < o1; o++) {
            if (three) dense_dots(1, TOKENS, y + o, a->out, x, w + (o - o0) * a->in, a->in);
            else dense_dots(1, 1, y + o, a->out, x, w + (o - o0) * a->in, a->in);
        }
        n += three ? TOKENS : 1;
    }
}

INLINE void few(const int half, const struct me_sparse *a, int64_t begin, int64_t end) {
    int64_t o = begin;
    for (; o + ROWS <= end; o += ROWS) {
        if (a->N == TOKENS) dots(ROWS, TOKENS, half, a, o, 0);
        else for (int64_t n = 0; n < a->N; n++) dots(ROWS, 1, half, a, o, n);
    }
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
