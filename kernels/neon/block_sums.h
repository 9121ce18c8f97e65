/* unpack and block_sums of scalar/int4.c for NEON, with or without the dot product instruction (ME_DOTPROD). */
#include "../vec.h"

#define ME_BLOCK_SUMS
typedef struct { int8x16_t low[8], high[8]; } me_codes;

/* low[b] = codes 0..15 of block b, high[b] = codes 16..31 */
INLINE void unpack(me_codes *u, const uint8_t *q, int64_t count) {
    for (int b = 0; b < 8; b++) {
        uint8x16_t bytes = b < count ? vld1q_u8(q + 16 * b) : vdupq_n_u8(0);
        u->low[b] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
        u->high[b] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    }
}

/* Lane b: sum over block b of code * x. */
INLINE vi block_sums(const me_codes *u, const int8_t *x, int64_t count) {
    vi sums = v_seti(0);
    for (int b = 0; b < 8; b++) {
        if (b >= count) break;
        int8x16_t x0 = vld1q_s8(x + 32 * b), x1 = vld1q_s8(x + 32 * b + 16);
#if defined(ME_DOTPROD)
        int32x4_t s = vdotq_s32(vdotq_s32(vdupq_n_s32(0), u->low[b], x0), u->high[b], x1);
#else
        /* two products of 15 * 128 fit int16 */
        int16x8_t p0 = vmlal_s8(vmull_s8(vget_low_s8(u->low[b]), vget_low_s8(x0)), vget_high_s8(u->low[b]), vget_high_s8(x0));
        int16x8_t p1 = vmlal_s8(vmull_s8(vget_low_s8(u->high[b]), vget_low_s8(x1)), vget_high_s8(u->high[b]), vget_high_s8(x1));
        int32x4_t s = vaddq_s32(vpaddlq_s16(p0), vpaddlq_s16(p1));
#endif
        sums[b] = vaddvq_s32(s);
    }
    return sums;
}
