/* The integer sums of int_product.h as plain loops; no tiles: a compiler's vectors gain nothing from them. */
#include "../vec.h"

/* sums[t][i], lane r: sum over block b + i of code * x[t] for row q[r]; the second block only where `two` */
INLINE void row_pair_sums(vi sums[][2], const int bytes, const uint8_t *const q[8], int64_t b, int two, const int8_t *const x[],
                          const int tokens) {
    for (int i = 0; i <= two; i++)
        for (int r = 0; r < LANES; r++) {
            int8_t code[32];
            const uint8_t *at = q[r] + (b + i) * bytes;
            if (bytes == 32) memcpy(code, at, sizeof code);
            else
                for (int j = 0; j < 16; j++) code[j] = (int8_t)(at[j] & 15), code[j + 16] = (int8_t)(at[j] >> 4);
            for (int t = 0; t < tokens; t++) {
                int32_t sum = 0;
                for (int j = 0; j < 32; j++) sum += code[j] * x[t][(b + i) * 32 + j];
                sums[t][i][r] = sum;
            }
        }
}
