/* Entries that pruning removed are set to zero: bit i % 8 of byte i / 8 is 1 where entry i is kept. */
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
