/* Eight-bit weights, one float16 scale per 32: read them. Products: int_product.c.
 *
 *     q  [ 32 int8 of block 0 | 32 of block 1 | ... ]      s  [ float16 of block 0 | of block 1 | ... ]      rows one after the other
 *
 * The loop below is the loop: compiled for AVX2 a block of 32 weights takes 47 instructions, 4 widenings to 32 bits, 4 conversions,
 * 4 products and 4 stores among them. One core of an AMD EPYC (Zen 4), from the cache, 2026-11-23, best of nine: 0.084 ns a weight. Limit:
 * 5.1 bytes a weight, mostly written: 0.057 ns at the 89.7 GB/s of y = x + 1 in the second-level cache in that run. */
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
