/* Entries that pruning removed are set to zero: bit i % 8 of byte i / 8 is 1 where entry i is kept.
 *
 *     for i:  out[i] = bits[i / 8] >> i % 8 & 1 ? weight[i] : 0
 *
 *     byte of the mask  0b01100101, in all eight lanes     weight  w0 w1 w2 w3 w4 w5 w6 w7
 *     & 1 2 4 .. 128, != 0: lanes of ones or zeros          out     w0 0  w2 0  0  w5 w6 0
 *
 * Per 8 weights: two loads, a broadcast, two ands, a comparison, a store. It reads and writes 8 bytes a weight, so memory
 * is the limit: training a pruned matrix pays this at each use. Products that read only what is kept: sparse.c.
 * 65,536 weights, one core of an AMD EPYC (Zen 4), AVX2, best of nine, 2026-11-23: 64 GB/s read and written, where a loop that adds 1
 * moves 90 in the second-level cache and 23.4 in memory. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* out = bit ? weight : 0, also where weight is NaN or -0; tasks begin at multiples of 8 */
ME_KERNEL(mask_apply) {
    const struct me_mask *a = args;
    const vi lane_bit = {1, 2, 4, 8, 16, 32, 64, 128};
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES) {
        vi kept = (v_seti(a->bits[i / 8]) & lane_bit) != 0;
        v_store(a->out + i, (vf)(kept & (vi)v_load(a->weight + i)));
    }
    for (; i < end; i++) a->out[i] = a->bits[i / 8] >> (i % 8) & 1 ? a->weight[i] : 0.0f;
}
