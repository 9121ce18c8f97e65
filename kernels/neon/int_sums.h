/* The integer sums of int_product.h for NEON: the baseline's widening multiplies, sdot (ME_DOTPROD), smmla (ME_I8MM).
 * Widening sums hold two products in 16 bits: at most 2 * 15 * 128 (int4), 2 * 128 * 127 (int8, |x| <= 127). */
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

/* The 32 codes of one block. */
INLINE void load_codes(int8x16_t c[2], const int bytes, const uint8_t *q) {
    if (bytes == 16) {
        uint8x16_t v = vld1q_u8(q);
        c[0] = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
        c[1] = vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
    } else {
        c[0] = vld1q_s8((const int8_t *)q);
        c[1] = vld1q_s8((const int8_t *)q + 16);
    }
}

typedef union { vi v; int32x4_t half[2]; } vi_halves;

/* sums[t][i], lane r: sum over block b + i of code * x[t] for row q[r]; the second block only where `two` */
INLINE void row_pair_sums(vi sums[][2], const int bytes, const uint8_t *const q[8], int64_t b, int two, const int8_t *const x[],
                          const int tokens) {
    for (int i = 0; i <= two; i++) {
        int32x4_t s[4][8];
        for (int r = 0; r < 8; r++) {
            int8x16_t c[2];
            load_codes(c, bytes, q[r] + (b + i) * bytes);
            for (int t = 0; t < tokens; t++) {
                const int8_t *xb = x[t] + (b + i) * 32;
                s[t][r] = dot32(c[0], c[1], vld1q_s8(xb), vld1q_s8(xb + 16));
            }
        }
        for (int t = 0; t < tokens; t++) {
            vi_halves out;
            for (int h = 0; h < 2; h++)
                out.half[h] = vpaddq_s32(vpaddq_s32(s[t][4 * h], s[t][4 * h + 1]), vpaddq_s32(s[t][4 * h + 2], s[t][4 * h + 3]));
            sums[t][i] = out.v;
        }
    }
}

#if defined(ME_DOTPROD)
#define ME_TILES
#define TILE_ROWS 4

INLINE int64_t tile_code_bytes(const int bytes) { (void)bytes; return 32; }

INLINE void unpack_row(uint8_t *codes, const int bytes, const uint8_t *q, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        int8x16_t c[2];
        load_codes(c, bytes, q + b * bytes);
        vst1q_s8((int8_t *)codes + b * 32, c[0]);
        vst1q_s8((int8_t *)codes + b * 32 + 16, c[1]);
    }
}

/* sum[r], lane l: sum over one block of the codes of row r times row l of x */
INLINE void block_tile(vi_halves sum[TILE_ROWS], const int8_t *const row[TILE_ROWS], const struct me_x8 *x) {
#if defined(ME_I8MM)
    /* smmla: 2 x 8 by 8 x 2; acc[p][m] = rows 2p, 2p + 1 of the weight against rows 2m, 2m + 1 of x */
    int32x4_t acc[2][4];
    for (int p = 0; p < 2; p++)
        for (int m = 0; m < 4; m++) acc[p][m] = vdupq_n_s32(0);
    for (int k = 0; k < 4; k++) {  /* eight columns */
        int8x16_t w[2], xs[4];
        for (int p = 0; p < 2; p++) w[p] = vcombine_s8(vld1_s8(row[2 * p] + 8 * k), vld1_s8(row[2 * p + 1] + 8 * k));
        for (int h = 0; h < 2; h++) {
            int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(x->code[2 * k] + 16 * h));
            int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(x->code[2 * k + 1] + 16 * h));
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
    for (int r = 0; r < TILE_ROWS; r++) sum[r].half[0] = sum[r].half[1] = vdupq_n_s32(0);
#pragma GCC unroll 2
    for (int c = 0; c < 2; c++) {  /* sixteen columns */
        int8x16_t w[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++) w[r] = vld1q_s8(row[r] + 16 * c);
        for (int h = 0; h < 2; h++) {
            const int8_t *at = x->code[4 * c] + 16 * h;
            for (int r = 0; r < TILE_ROWS; r++) {
                sum[r].half[h] = vdotq_laneq_s32(sum[r].half[h], vld1q_s8(at), w[r], 0);
                sum[r].half[h] = vdotq_laneq_s32(sum[r].half[h], vld1q_s8(at + 32), w[r], 1);
                sum[r].half[h] = vdotq_laneq_s32(sum[r].half[h], vld1q_s8(at + 64), w[r], 2);
                sum[r].half[h] = vdotq_laneq_s32(sum[r].half[h], vld1q_s8(at + 96), w[r], 3);
            }
        }
    }
#endif
}

/* y[r][g], lane l: the product of weight row r with row l of group g of x, all blocks */
INLINE void tile_sums(vf y[TILE_ROWS][2], const int bytes, const uint8_t *codes, const float *ws, const struct me_x8 *x, const int groups,
                      int64_t blocks) {
    for (int r = 0; r < TILE_ROWS; r++)
        for (int g = 0; g < groups; g++) y[r][g] = v_set(0);
    for (int64_t b = 0; b < blocks; b++) {
        const int8_t *row[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++) row[r] = (const int8_t *)codes + (r * blocks + b) * 32;
        for (int g = 0; g < groups; g++) {
            const struct me_x8 *xb = x + g * blocks + b;
            vi_halves sum[TILE_ROWS];
            vi offset = v_seti(0);
            block_tile(sum, row, xb);
            if (bytes == 16) memcpy(&offset, xb->sum, sizeof offset);  /* int8 codes are signed here: nothing to take off */
            for (int r = 0; r < TILE_ROWS; r++) {
                vi part = sum[r].v - offset;
                y[r][g] = v_fma(__builtin_convertvector(part, vf), v_set(ws[b * TILE_ROWS + r]) * v_load(xb->scale), y[r][g]);
            }
        }
    }
}
#endif
