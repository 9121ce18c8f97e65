/* scalar/sparse.c with a table lookup in the place of the loop: four floats, or eight 16-bit ones, at a time. */
#include "isa.h"
#include "../internal.h"
#include "../sparse_tables.h"
#include "../vec.h"

#define ME_SPARSE_SPREAD

static const uint8_t quads[16][16] __attribute__((aligned(16))) = {ME_16(ME_QUADS, 0)};
static const uint8_t pairs[256][16] __attribute__((aligned(16))) = {ME_256(ME_PAIRS)};
static const uint8_t set[256] = {ME_256(ME_BITS)};  /* NEON counts bits in vector registers: a lookup is nearer */

/* lane j = the next value where bit j of byte is set, else 0; bytes beyond the table's register read as 0 */
INLINE vf spread(const float *p, unsigned byte) {
    vf_halves w;
    const uint8_t *low = (const uint8_t *)p, *high = (const uint8_t *)(p + set[byte & 15]);
    w.half[0] = vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(low), vld1q_u8(quads[byte & 15])));
    w.half[1] = vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(high), vld1q_u8(quads[byte >> 4])));
    return w.v;
}

INLINE vf spread_half(const uint16_t *p, unsigned byte) {
    uint16_t w[LANES];
    vst1q_u16(w, vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8((const uint8_t *)p), vld1q_u8(pairs[byte]))));
    return v_half(w);
}

INLINE int64_t count(unsigned byte) { return set[byte]; }

#include "../scalar/sparse.c"
