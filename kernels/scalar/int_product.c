/* Products of int4 and int8 weights with int8 activations; ../int_product.h says how, int_sums.h has the inner loops. */
#ifndef ME_ISA
#include "isa.h"
#include "../internal.h"
#include "int_sums.h"
#endif
#include "../int_product.h"

#ifndef ME_PRODUCT
#define ME_PRODUCT ME_KERNEL
#endif

/* items are rows of the weight; int4: a task begins at a multiple of 16 */
ME_PRODUCT(int4_int8_linear) { int_product(args, 16, begin, end); }

ME_PRODUCT(q8_int8_linear) { int_product(args, 32, begin, end); }

/* partials[n][o][b] = sum over block b of xq * (code - 8); the weight is stored by rows */
ME_PRODUCT(int4_int8_partials) {
    const struct me_int_linear *a = args;
    const int64_t blocks = a->in / BLOCK;
    for (int64_t o = begin; o < end; o += TILE)
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t codes[TILE_BLOCK];
            const int64_t rows = at_most(TILE, end - o);
            tile_codes(codes, a->q + (o * blocks + b) * 16, blocks * 16, rows, 1);
            for (int64_t n = 0; n < a->N; n++) {
                const int8_t *x[1] = {a->xq + n * a->in + b * BLOCK};
                vi sums[1][2];
                tile_sums(sums, codes, x, 1);
                for (int64_t r = 0; r < rows; r++)
                    a->partials[(n * a->out + o + r) * blocks + b] = sums[0][r / LANES][r % LANES] - a->xsums[n * blocks + b];
            }
        }
}
