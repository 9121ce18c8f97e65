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

/* items are rows of the weight */
ME_PRODUCT(int4_int8_linear) { int_product(args, 16, begin, end); }

ME_PRODUCT(q8_int8_linear) { int_product(args, 32, begin, end); }

/* partials[n][o][b] = sum over block b of xq * (code - 8) */
ME_PRODUCT(int4_int8_partials) {
    const struct me_int_linear *a = args;
    int64_t blocks = a->in / BLOCK;
    for (int64_t n = 0; n < a->N; n++)
        for (int64_t o = begin; o < end; o += LANES) {
            int64_t rows = at_most(LANES, end - o);
            const uint8_t *q[LANES];
            const int8_t *x[1] = {a->xq + n * a->in};
            for (int r = 0; r < LANES; r++) q[r] = a->q + (o + at_most(r, rows - 1)) * blocks * 16;
            for (int64_t b = 0; b < blocks; b += 2) {
                vi sums[1][2];
                int two = b + 1 < blocks;
                row_pair_sums(sums, 16, q, b, two, x, 1);
                for (int i = 0; i <= two; i++)
                    for (int64_t r = 0; r < rows; r++)
                        a->partials[(n * a->out + o + r) * blocks + b + i] = sums[0][i][r] - a->xsums[n * blocks + b + i];
            }
        }
}
