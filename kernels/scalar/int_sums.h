/* The integer sums of int_product.h as plain loops; no many_sums: a compiler's vectors gain nothing from them. */
#include "../vec.h"

/* sums[t][r / 8], lane r % 8: sum over the block of code * x[t] for row r of the tile */
INLINE void tile_sums(vi sums[][2], const uint8_t *codes, const int8_t *const x[], const int tokens) {
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < 16; r++) {
            int32_t sum = 0;
            for (int p = 0; p < 4; p++)
                for (int j = 0; j < 4; j++) {
                    const uint8_t two = codes[64 * p + 4 * r + j];
                    sum += (two & 15) * x[t][4 * p + j] + (two >> 4) * x[t][16 + 4 * p + j];
                }
            sums[t][r / LANES][r % LANES] = sum;
        }
}

/* sums[t], lane r: sum over block b of code * x[t] for row q[r] of an int8 weight */
INLINE void row_sums(vi sums[], const uint8_t *const q[8], int64_t b, const int8_t *const x[], const int tokens) {
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < LANES; r++) {
            int32_t sum = 0;
            for (int j = 0; j < 32; j++) sum += (int8_t)q[r][b * 32 + j] * x[t][b * 32 + j];
            sums[t][r] = sum;
        }
}
