/* float16 and bfloat16 weights: widen them, and multiply them with float32 activations in float32.
 *
 *     for o, n:  sum = 0;  for k: sum = fma(float(weight[o][k]), x[n][k], sum);  y[n][o] = sum
 *
 * with eight sums side by side, k mod 8 (v_sum adds them up), so that the order is the same for one row of x or many:
 *
 *     weight row o    h0 h1 .. h7 | h8 ..  --convert-->  eight floats, used for 1 or 3 rows of x; 4 rows at a time are
 *     weight row o+1  h0 h1 .. h7 | h8 ..                4 or 12 sums, which wait for one another less than one would
 *
 * Per 8 weights and row of x: 1 fused multiply-add, and 1 conversion for all rows of x together. AVX2, 4096 x 4096, one core
 * of an AMD EPYC (Zen 3, 3.7 GHz), best of many runs beside other work, 2026-11-23: one row 20 GB/s from memory, 55 from
 * cache; 64 rows 108 GFLOP/s. Limit: two multiply-adds a cycle, 118. benchmarks/packed_kernels.py --only half */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

#define ROWS 4
#define TOKENS 3
#define PART_BYTES (256 << 10)  /* of the weight that pass by before the next rows of x: half a second-level cache */

typedef uint16_t vh __attribute__((vector_size(16)));

/* bfloat16 is the upper half of a float32. */
INLINE vf widen(const uint16_t *h, const int bfloat) {
    vh bits;
    if (!bfloat) return v_half(h);
    memcpy(&bits, h, sizeof bits);
    return (vf)(__builtin_convertvector(bits, vu) << 16);
}

INLINE vf widen_part(const uint16_t *h, int64_t n, const int bfloat) {
    uint16_t t[LANES] = {0};
    for (int64_t i = 0; i < n; i++) t[i] = h[i];
    return widen(t, bfloat);
}

/* y[t][r] for r < rows, t < tokens, both constants */
INLINE void dots(const int rows, const int tokens, const int bfloat, float *y, int64_t out, const float *x, const uint16_t *w, int64_t in) {
    vf s[ROWS][TOKENS];
    int64_t k = 0;
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) s[r][t] = v_set(0);
    for (; k + LANES <= in; k += LANES) {
        vf now[TOKENS];
#pragma GCC unroll 3
        for (int t = 0; t < tokens; t++) now[t] = v_load(x + t * in + k);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {  /* 12 sums, 3 of x, 1 of the weight: AVX2's sixteen registers */
            vf wide = widen(w + r * in + k, bfloat);
#pragma GCC unroll 3
            for (int t = 0; t < tokens; t++) s[r][t] = v_fma(wide, now[t], s[r][t]);
        }
    }
    if (k < in)
        for (int r = 0; r < rows; r++)
            for (int t = 0; t < tokens; t++)
                s[r][t] = v_fma(widen_part(w + r * in + k, in - k, bfloat), v_load_part(x + t * in + k, in - k, 0), s[r][t]);
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) y[t * out + r] = v_sum(s[r][t]);
}

/* Three rows of x stay in the first-level cache while a part of the weight passes by; the next three meet it in the second. */
INLINE void half_product(const struct me_half *a, const int bfloat, int64_t begin, int64_t end) {
    int64_t step = PART_BYTES / (2 * (a->in + 1)) / ROWS * ROWS + ROWS;
    for (int64_t o0 = begin; o0 < end; o0 += step) {
        int64_t o1 = o0 + step < end ? o0 + step : end;
        for (int64_t n = 0; n < a->N;) {
            const float *x = a->x + n * a->in;
            float *y = a->y + n * a->out;
            const int three = n + TOKENS <= a->N;
            int64_t o = o0;
            for (; o + ROWS <= o1; o += ROWS) {
                if (three) dots(ROWS, TOKENS, bfloat, y + o, a->out, x, a->weight + o * a->in, a->in);
                else dots(ROWS, 1, bfloat, y + o, a->out, x, a->weight + o * a->in, a->in);
            }
            for (; o < o1; o++) {
                if (three) dots(1, TOKENS, bfloat, y + o, a->out, x, a->weight + o * a->in, a->in);
                else dots(1, 1, bfloat, y + o, a->out, x, a->weight + o * a->in, a->in);
            }
            n += three ? TOKENS : 1;
        }
    }
}

/* items are rows of the weight */
ME_KERNEL(half_linear) {
    const struct me_half *a = args;
    if (a->bfloat) half_product(a, 1, begin, end);
    else half_product(a, 0, begin, end);
}

INLINE void widen_all(float *y, const uint16_t *h, int64_t n, const int bfloat) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store(y + i, widen(h + i, bfloat));
    if (i < n) v_store_part(y + i, widen_part(h + i, n - i, bfloat), n - i);
}

/* y = float(weight), exact; items are numbers */
ME_KERNEL(half_widen) {
    const struct me_half *a = args;
    if (a->bfloat) widen_all(a->y + begin, a->weight + begin, end - begin, 1);
    else widen_all(a->y + begin, a->weight + begin, end - begin, 0);
}

static void read_row(float *w, const void *weight, int64_t row, int64_t from, int64_t to) {
    const struct me_half *a = weight;
    if (a->bfloat) widen_all(w, a->weight + row * a->in + from, to - from, 1);
    else widen_all(w, a->weight + row * a->in + from, to - from, 0);
}

/* dout weight: scalar/gemm.c on panels that are filled with widened rows */
ME_KERNEL(half_gemm) {
    struct me_gemm g = *(const struct me_gemm *)args;
    g.read = read_row;
    g.gemm(&g, begin, end);
}
