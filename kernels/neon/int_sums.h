/* The integer sums of int_product.h for NEON: the baseline's widening multiplies, sdot (ME_DOTPROD), smmla (ME_I8MM).
 * Widening sums hold two products in 16 bits: at most 2 * 15 * 128 (int4), 2 * 128 * 127 (int8, |x| <= 127).
 * Held to the scalar kernels' bits on emulated processors; no speed was ever measured on ARM hardware. */
#include "../vec.h"

/* Four partial sums of 32 products. */
INLINE int32x4_t dot32(int8x16_t w0, int8x16_t w1, int8x16_t x0, int8x16_t x1) {
#if defined(ME_DOTPROD)
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w0, x0), w1, x1);
#else
    int16x8_t p0 = vmlal_s8(vmull_s8(vget_low_s8(w0), vget_low_s8(x0)), vget_high_s8(w0), vget_high_s8(x0));
    int16x8_t p1 = vmlal_s8(vmull_s8(vget_low_s8(w1), vget_low_s8(x1)), vget_high_s8(w1), vget_high_s8(x1));
    return vaddq_s32(vpaddlq_s16(p0), vpaddlq_s16(p1));
#endif
}

typedef union { vi v; int32x4_t half[2]; } vi_halves;

/* sums[t][h], lane r: sum over the block of code * x[t] for row 8 h + r of the tile. */
INLINE void tile_sums(vi sums[][2], const uint8_t *codes, const int8_t *const x[], const int tokens) {
#if defined(ME_DOTPROD)
    /* sdot: four columns of four rows times four columns of x, which one of its lanes holds. 512 weights and one row of x:
     * 16 x (load, and, shift, 2 sdot), 2 loads, 4 zeros: 86 instructions. */
    int32x4_t s[4][4];
    int8x16_t xs[4][2];
    for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < 4; i++) s[t][i] = vdupq_n_s32(0);
        for (int i = 0; i < 2; i++) xs[t][i] = vld1q_s8(x[t] + 16 * i);
    }
#define ME_PIECE(p) \
    for (int i = 0; i < 4; i++) { \
        uint8x16_t v = vld1q_u8(codes + 64 * p + 16 * i); \
        int8x16_t c0 = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))), c1 = vreinterpretq_s8_u8(vshrq_n_u8(v, 4)); \
        for (int t = 0; t < tokens; t++) \
            s[t][i] = vdotq_laneq_s32(vdotq_laneq_s32(s[t][i], c0, xs[t][0], p), c1, xs[t][1], p); \
    }
    ME_PIECE(0) ME_PIECE(1) ME_PIECE(2) ME_PIECE(3)  /* a lane's number has to be written out */
#undef ME_PIECE
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < 2; h++) {
            vi_halves out = {.half = {s[t][2 * h], s[t][2 * h + 1]}};
            sums[t][h] = out.v;
        }
#else
    /* smlal: four columns of two rows times four columns of x, twice. A 16-bit lane takes eight products: at most
     * 8 * 15 * 128 = 15,360. 512 weights and one row of x: 16 x (load, and, shift, 4 smlal), 8 spread loads, 16 to add up. */
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < 2; h++) {
            int16x8_t s[4];
            for (int p = 0; p < 4; p++) {
                int32_t x0, x1;
                memcpy(&x0, x[t] + 4 * p, 4);
                memcpy(&x1, x[t] + 16 + 4 * p, 4);
                int8x8_t low = vreinterpret_s8_s32(vdup_n_s32(x0)), high = vreinterpret_s8_s32(vdup_n_s32(x1));
                for (int i = 0; i < 2; i++) {
                    uint8x16_t v = vld1q_u8(codes + 64 * p + 32 * h + 16 * i);
                    int8x16_t c0 = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))), c1 = vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
                    s[2 * i] = p ? vmlal_s8(s[2 * i], vget_low_s8(c0), low) : vmull_s8(vget_low_s8(c0), low);
                    s[2 * i + 1] = p ? vmlal_s8(s[2 * i + 1], vget_high_s8(c0), low) : vmull_s8(vget_high_s8(c0), low);
                    s[2 * i] = vmlal_s8(s[2 * i], vget_low_s8(c1), high);
                    s[2 * i + 1] = vmlal_s8(s[2 * i + 1], vget_high_s8(c1), high);
                }
            }
            vi_halves out;
            for (int i = 0; i < 2; i++) out.half[i] = vpaddq_s32(vpaddlq_s16(s[2 * i]), vpaddlq_s16(s[2 * i + 1]));
            sums[t][h] = out.v;
        }
#endif
}

/* sums[t], lane r: sum over block b of code * x[t] for row q[r] of an int8 weight */
INLINE void row_sums(vi sums[], const uint8_t *const q[8], int64_t b, const int8_t *const x[], const int tokens) {
    int32x4_t s[4][8];
    for (int r = 0; r < 8; r++) {
        const int8_t *c = (const int8_t *)q[r] + b * 32;
        for (int t = 0; t < tokens; t++) {
            const int8_t *xb = x[t] + b * 32;
            s[t][r] = dot32(vld1q_s8(c), vld1q_s8(c + 16), vld1q_s8(xb), vld1q_s8(xb + 16));
        }
    }
    for (int t = 0; t < tokens; t++) {
        vi_halves out;
        for (int h = 0; h < 2; h++)
            out.half[h] = vpaddq_s32(vpaddq_s32(s[t][4 * h], s[t][4 * h + 1]), vpaddq_s32(s[t][4 * h + 2], s[t][4 * h + 3]));
        sums[t] = out.v;
    }
}

#if defined(ME_DOTPROD)
#define ME_MANY
#define MANY_ROWS 4
#define MANY_DIGITS 1
#define MANY_FLIP 0

/* sum[r], lane l: sum over one block of the codes of row r times row l of x; codes[k]: columns 4k .. 4k+3 of the four rows */
INLINE void block_tile(vi_halves sum[MANY_ROWS], const int8_t *codes, const struct me_x8 *x) {
#if defined(ME_I8MM)
    /* smmla: 2 x 8 by 8 x 2; acc[p][m] = rows 2p, 2p + 1 of the weight against rows 2m, 2m + 1 of x */
    int32x4_t acc[2][4];
    for (int p = 0; p < 2; p++)
        for (int m = 0; m < 4; m++) acc[p][m] = vdupq_n_s32(0);
    for (int k = 0; k < 4; k++) {  /* eight columns */
        int8x16_t w[2], xs[4];
        int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(codes + 32 * k)), second = vreinterpretq_s32_s8(vld1q_s8(codes + 32 * k + 16));
        w[0] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        w[1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
        for (int h = 0; h < 2; h++) {
            first = vreinterpretq_s32_s8(vld1q_s8(x->code[2 * k] + 16 * h));
            second = vreinterpretq_s32_s8(vld1q_s8(x->code[2 * k + 1] + 16 * h));
            xs[2 * h] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
            xs[2 * h + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
        }
        for (int p = 0; p < 2; p++)
            for (int m = 0; m < 4; m++) acc[p][m] = vmmlaq_s32(acc[p][m], xs[m], w[p]);
    }
    for (int p = 0; p < 2; p++)
        for (int h = 0; h < 2; h++) {
            sum[2 * p].half[h] = vuzp1q_s32(acc[p][2 * h], acc[p][2 * h + 1]);
            sum[2 * p + 1].half[h] = vuzp2q_s32(acc[p][2 * h], acc[p][2 * h + 1]);
        }
#else
    for (int r = 0; r < MANY_ROWS; r++) sum[r].half[0] = sum[r].half[1] = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        const int8x16_t w = vld1q_s8(codes + 16 * k);
        for (int h = 0; h < 2; h++) {
            const int8x16_t xs = vld1q_s8(x->code[k] + 16 * h);
            sum[0].half[h] = vdotq_laneq_s32(sum[0].half[h], xs, w, 0);
            sum[1].half[h] = vdotq_laneq_s32(sum[1].half[h], xs, w, 1);
            sum[2].half[h] = vdotq_laneq_s32(sum[2].half[h], xs, w, 2);
            sum[3].half[h] = vdotq_laneq_s32(sum[3].half[h], xs, w, 3);
        }
    }
#endif
}

/* y[r][g], lane l: the product of weight row r with row l of group g of x, all blocks */
INLINE void many_sums(vf y[MANY_ROWS][2], const int bytes, const uint8_t *codes, const float *ws, const struct me_x8 *x, const int groups,
                      int64_t blocks) {
    for (int r = 0; r < MANY_ROWS; r++)
        for (int g = 0; g < groups; g++) y[r][g] = v_set(0);
    for (int64_t b = 0; b < blocks; b++) {
        for (int g = 0; g < groups; g++) {
            const struct me_x8 *xb = x + g * blocks + b;
            vi_halves sum[MANY_ROWS];
            vi offset = v_seti(0);
            block_tile(sum, (const int8_t *)codes + b * MANY_ROWS * 32, xb);
            if (bytes == 16) memcpy(&offset, xb->sum, sizeof offset);  /* int8 codes are signed here: nothing to take off */
            for (int r = 0; r < MANY_ROWS; r++) {
                vi part = sum[r].v - offset;
                y[r][g] = v_fma(__builtin_convertvector(part, vf), v_set(ws[b * MANY_ROWS + r]) * v_load(xb->scale), y[r][g]);
            }
        }
    }
}
#endif
