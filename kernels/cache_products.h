/* Products of a few rows with the keys or values of a cache, which are widened in registers.
 *
 *     for (r < rows) for (j < columns) for (k < K) c[r][j] += a[r][k] * b[k][j]
 *
 * float32, float16: b[k] are 16 columns side by side, the next 16 lie b_next numbers on. Each result is one chain of fused
 * multiply-adds in the order of k, whatever the number of rows. Instructions per vector of eight numbers (AVX2): a load, a
 * conversion (float16), a multiply-add a row, and for each four or two vectors one broadcast of a[r][k] a row.
 * cache_codes.h has the products of an int8 cache; scalar/attention_decode.c the figures and limits. */
#ifndef MINEDGE_CACHE_PRODUCTS_H
#define MINEDGE_CACHE_PRODUCTS_H
#include "internal.h"
#include "vec.h"

#if defined(ME_AVX512)
#define WIDE_ROWS 6  /* rows whose sums fit the registers four vectors wide */
#else
#define WIDE_ROWS 3
#endif

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* What to ask for meanwhile: a little with every step of the inner loop, so that it has come when its turn is there. While keys
 * are multiplied the values come, while values are multiplied the next span's keys: 16 or 32 KB, which wait in the second-level
 * cache. A processor's own prefetching stops at the end of each of these pieces. */
struct ahead { const char *at; int64_t step; };

INLINE struct ahead ask(const void *p, int64_t bytes, int64_t steps) { return (struct ahead){p, (bytes + steps - 1) / steps}; }
INLINE const char *fetch_next(const char *at, int64_t step) {
    __builtin_prefetch(at, 0, 2);
    return at + step;
}

/* Rows go in even groups of up to 6, eight as 4 + 4; CALL(rows, vectors, j) computes 8 * vectors columns from j on. */
#define GROUP(n, vectors, j) \
    switch (n) { \
    case 6: CALL(6, vectors, j); break; \
    case 5: CALL(5, vectors, j); break; \
    case 4: CALL(4, vectors, j); break; \
    case 3: CALL(3, vectors, j); break; \
    case 2: CALL(2, vectors, j); break; \
    default: CALL(1, vectors, j); \
    }
#if WIDE_ROWS == 6
#define WIDE_GROUP(n, j) GROUP(n, 4, j)
#else
#define WIDE_GROUP(n, j) \
    switch (n) { \
    case 3: CALL(3, 4, j); break; \
    case 2: CALL(2, 4, j); break; \
    default: CALL(1, 4, j); \
    }
#endif

#if !defined(ME_AVX2) && !defined(ME_NEON)
static __attribute__((noinline)) void halves(vf *out, const uint16_t *b) { *out = v_half(b); }  /* too long for every tile */
#endif
INLINE vf load_half(const uint16_t *b) {
#if defined(ME_AVX2) || defined(ME_NEON)
    return v_half(b);
#else
    vf out;
    halves(&out, b);
    return out;
#endif
}

INLINE vf load_number(const int dtype, const char *b, int64_t at) {
    return dtype == ME_FLOAT32 ? v_load((const float *)b + at) : load_half((const uint16_t *)b + at);
}

INLINE void float_tile(const int rows, const int vectors, const int dtype, float *restrict c, int64_t c_row,
                       const float *restrict a, int64_t a_row, const char *b, int64_t b_k, int64_t b_next, int64_t K, int add,
                       struct ahead *next) {
    vf s[6][4];
    const char *at = next->at;
    const int64_t step = next->step;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) s[r][i] = v_set(0);
    for (int64_t k = 0; k < K; k++) {
        vf x[4];
        at = fetch_next(at, step);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) x[i] = load_number(dtype, b, k * b_k + i / 2 * b_next + i % 2 * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf y = v_set(a[r * a_row + k]);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++) s[r][i] = v_fma(y, x[i], s[r][i]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++) {
            float *to = c + r * c_row + i * LANES;
            v_store(to, add ? v_load(to) + s[r][i] : s[r][i]);
        }
    next->at = at;
}

/* Steps of the inner loop that a product takes, of groups of up to `wide` rows at 32 columns at once. */
INLINE int64_t steps_of(int64_t rows, int64_t columns, int64_t K, int64_t wide) {
    int64_t groups = (rows + 5) / 6, each = (rows + groups - 1) / groups;
    return groups * (each <= wide ? columns / 32 + columns / 16 % 2 : columns / 16) * K;
}

/* c = (add ? c : 0) + a b; columns a multiple of 16 */
INLINE void float_product_of(const int dtype, int64_t rows, int64_t columns, float *c, int64_t c_row, const float *a, int64_t a_row,
                          const void *b_, int64_t b_k, int64_t b_next, int64_t K, int add, struct ahead *next) {
    const char *b = b_;
    const int size = dtype == ME_FLOAT32 ? 4 : 2;
    int64_t groups = (rows + 5) / 6, each = (rows + groups - 1) / groups;
    for (int64_t r = 0; r < rows; r += each, c += each * c_row, a += each * a_row) {
        int64_t n = smaller(each, rows - r), j = 0;
#define CALL(R, V, j) float_tile(R, V, dtype, c + (j), c_row, a, a_row, b + (j) / 16 * b_next * size, b_k, b_next, K, add, next)
        if (n <= WIDE_ROWS)
            for (; j + 32 <= columns; j += 32) WIDE_GROUP(n, j)
        for (; j < columns; j += 16) GROUP(n, 2, j)
#undef CALL
    }
}

/* One copy of each, for keys and values alike. */
static void float_product(int dtype, int64_t rows, int64_t columns, float *c, int64_t c_row, const float *a, int64_t a_row,
                          const void *b, int64_t b_k, int64_t b_next, int64_t K, int add, struct ahead *next) {
    if (dtype == ME_FLOAT32) float_product_of(ME_FLOAT32, rows, columns, c, c_row, a, a_row, b, b_k, b_next, K, add, next);
    else float_product_of(ME_FLOAT16, rows, columns, c, c_row, a, a_row, b, b_k, b_next, K, add, next);
}

#endif
