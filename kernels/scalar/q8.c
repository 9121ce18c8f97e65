/* Eight-bit weights, one float16 scale per 32: read them. Products: int_product.c. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* weight = scale * code; items are rows */
ME_KERNEL(q8_dequantize) {
    const struct me_q8 *a = args;
    for (int64_t b = begin * a->in / 32; b < end * a->in / 32; b++) {
        float scale = half_to_float(a->s[b]);
        for (int j = 0; j < 32; j++) a->w_out[b * 32 + j] = (float)a->q[b * 32 + j] * scale;
    }
}
