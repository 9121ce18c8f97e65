/* The inner loop of every float matrix product: up to 6 x 16 results stay in registers while k runs.
 * Each result is one chain of multiply-adds in the order of k, whatever tile it falls into, added to c at its end. Loop, count,
 * figures and limit: scalar/gemm.c. */
#ifndef MINEDGE_TILE_H
#define MINEDGE_TILE_H
#include "vec.h"

#define TILE_ROWS 6      /* 6 x 2 vectors of sums, 2 of b and 1 of a fill AVX2's sixteen registers */
#define TILE_COLUMNS 16

/* c[r][j] = (add ? c[r][j] : 0) + sum_k a[r * a_row + k * a_k] * b[k * b_k + j] for r < rows, j < 16; rows is a constant */
INLINE void tile(const int rows, float *restrict c, int64_t c_row, const float *restrict a, int64_t a_row, int64_t a_k,
                 const float *restrict b, int64_t b_k, int64_t K, int add) {
#if defined(ME_AVX512)
    /* One register a row, 7 instructions where AVX2 has 20 for 96 multiply-adds. Zen 4 does 16 a cycle either way: 109 to
     * 112 GFLOP/s with both, of 118; attention, which has more beside its products, came out 1.06 times as fast. */
    __m512 s[TILE_ROWS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) s[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k++) {
        __m512 now = _mm512_loadu_ps(b + k * b_k);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) s[r] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_row + k * a_k]), now, s[r]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        if (add) s[r] = _mm512_add_ps(_mm512_loadu_ps(c + r * c_row), s[r]);
        _mm512_storeu_ps(c + r * c_row, s[r]);
    }
#else
    vf s[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        s[r][0] = s[r][1] = v_set(0);
    }
    for (int64_t k = 0; k < K; k++) {
        vf b0 = v_load(b + k * b_k), b1 = v_load(b + k * b_k + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf x = v_set(a[r * a_row + k * a_k]);
            s[r][0] = v_fma(x, b0, s[r][0]);
            s[r][1] = v_fma(x, b1, s[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        v_store(c + r * c_row, add ? v_load(c + r * c_row) + s[r][0] : s[r][0]);
        v_store(c + r * c_row + LANES, add ? v_load(c + r * c_row + LANES) + s[r][1] : s[r][1]);
    }
#endif
}

/* panel[k][0..16) = x[i * x_row + k] for i < n <= 16, zeros beyond n */
INLINE void pack_panel(float *panel, const float *x, int64_t x_row, int64_t n, int64_t K) {
    int64_t k = 0;
    if (n == TILE_COLUMNS)
        for (; k + 8 <= K; k += 8) {
            vf left[8], right[8];
            transpose8(left, x + k, x_row);
            transpose8(right, x + 8 * x_row + k, x_row);
            for (int j = 0; j < 8; j++) {
                v_store(panel + (k + j) * TILE_COLUMNS, left[j]);
                v_store(panel + (k + j) * TILE_COLUMNS + 8, right[j]);
            }
        }
    for (; k < K; k++)
        for (int64_t i = 0; i < TILE_COLUMNS; i++) panel[k * TILE_COLUMNS + i] = i < n ? x[i * x_row + k] : 0;
}

#endif
