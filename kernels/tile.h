/* The inner loop of every float matrix product: ROWS x 16 results stay in registers while k runs.
 * Each result is one chain of multiply-adds in the order of k, whatever tile it falls into. */
#ifndef MINEDGE_TILE_H
#define MINEDGE_TILE_H
#include "vec.h"

#define TILE_ROWS 6      /* 6 x 2 vectors of sums, 2 of b and 1 of a fill AVX2's sixteen registers */
#define TILE_COLUMNS 16

/* c[r][j] = (add ? c[r][j] : 0) + sum_k a[r * a_row + k * a_k] * b[k * b_k + j] for r < rows, j < 16; rows is a constant */
INLINE void tile(const int rows, float *restrict c, int64_t c_row, const float *restrict a, int64_t a_row, int64_t a_k,
                 const float *restrict b, int64_t b_k, int64_t K, int add) {
    vf s[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        s[r][0] = add ? v_load(c + r * c_row) : v_set(0);
        s[r][1] = add ? v_load(c + r * c_row + LANES) : v_set(0);
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
        v_store(c + r * c_row, s[r][0]);
        v_store(c + r * c_row + LANES, s[r][1]);
    }
}

#endif
