/* Four-bit weights: quantize, dequantize, and the integer product with int8 activations.
 *
 * A block is 32 columns: 16 bytes, byte j = code j | code j + 16 << 4; a weight reads as scale * (code - 8).
 * The integer sum of a block is exact, so every instruction set gives the same; what differs between them is block_sums,
 * which avx2/int4.c and neon/int4.c replace. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

#define BLOCK 32
#ifndef ME_PRODUCT
#define ME_PRODUCT ME_KERNEL
#endif
#define TOKENS 4  /* rows of x that share one unpacking of the weights */

#ifndef ME_BLOCK_SUMS
typedef struct { int8_t code[8 * BLOCK]; } me_codes;

/* Codes of `count` <= 8 blocks, the other blocks zero. */
INLINE void unpack(me_codes *u, const uint8_t *q, int64_t count) {
    memset(u, 0, sizeof *u);
    for (int64_t b = 0; b < count; b++)
        for (int j = 0; j < 16; j++) {
            u->code[b * BLOCK + j] = (int8_t)(q[b * 16 + j] & 15);
            u->code[b * BLOCK + j + 16] = (int8_t)(q[b * 16 + j] >> 4);
        }
}

/* Lane b: sum over block b of code * x. */
INLINE vi block_sums(const me_codes *u, const int8_t *x, int64_t count) {
    vi sums = v_seti(0);
    for (int64_t b = 0; b < count; b++) {
        int32_t sum = 0;
        for (int j = 0; j < BLOCK; j++) sum += u->code[b * BLOCK + j] * x[b * BLOCK + j];
        sums[b] = sum;
    }
    return sums;
}
#endif

INLINE vi load_ints(const int32_t *p, int64_t count) {
    vi v = v_seti(0);
    if (count == LANES) memcpy(&v, p, sizeof v);
    else
        for (int l = 0; l < LANES; l++) v[l] = l < count ? p[l] : 0;
    return v;
}

/* Scales of `count` blocks from block b on; `shift` = log2(group / 32), groups of several blocks repeat theirs. */
INLINE vf block_scales(const uint16_t *scales, int64_t b, int64_t count, int shift) {
    uint16_t s[LANES] = {0};
    if (count == LANES && shift == 0) return v_half(scales + b);
    if (count == LANES && shift == 1) {
        memcpy(s, scales + b / 2, 4 * sizeof *s);
        return __builtin_shuffle(v_half(s), (vi){0, 0, 1, 1, 2, 2, 3, 3});
    }
    if (count == LANES) {
        memcpy(s, scales + b / 4, 2 * sizeof *s);
        return __builtin_shuffle(v_half(s), (vi){0, 0, 0, 0, 1, 1, 1, 1});
    }
    for (int64_t l = 0; l < count; l++) s[l] = scales[(b + l) >> shift];
    return v_half(s);
}

/* `tokens` <= TOKENS rows of x against one row of weights; each row's sum has the same order whatever `tokens` is. */
INLINE void dot_rows(const struct me_int4_int8 *a, int64_t n, int tokens, int64_t o) {
    int64_t blocks = a->in / BLOCK;
    int shift = a->group == 32 ? 0 : a->group == 64 ? 1 : 2;
    const uint8_t *q = a->q + o * a->in / 2;
    const uint16_t *s = a->s + o * (a->in / a->group);
    vf sum[TOKENS];
    for (int t = 0; t < tokens; t++) sum[t] = v_set(0);
    for (int64_t b = 0; b < blocks; b += LANES) {
        int64_t count = blocks - b < LANES ? blocks - b : LANES;
        me_codes u;
        unpack(&u, q + b * 16, count);
        vf scales = block_scales(s, b, count, shift);
        for (int t = 0; t < tokens; t++) {
            int64_t at = (n + t) * blocks + b;
            vi part = block_sums(&u, a->xq + at * BLOCK, count) - load_ints(a->xsums + at, count);
            vf xscales = count == LANES ? v_load(a->xscales + at) : v_load_part(a->xscales + at, count, 0);
            sum[t] = v_fma(__builtin_convertvector(part, vf), scales * xscales, sum[t]);
        }
    }
    for (int t = 0; t < tokens; t++) a->y[(n + t) * a->out + o] = v_sum(sum[t]);
}

/* y = sum over blocks of xscale * scale * (integer sum of the block); items are rows of the weight */
ME_PRODUCT(int4_int8_linear) {
    const struct me_int4_int8 *a = args;
    int64_t n = 0;
    for (; n + TOKENS <= a->N; n += TOKENS)
        for (int64_t o = begin; o < end; o++) dot_rows(a, n, TOKENS, o);
    for (; n < a->N; n++)
        for (int64_t o = begin; o < end; o++) dot_rows(a, n, 1, o);
}

/* partials[n][o][b] = sum over block b of xq * (code - 8) */
ME_PRODUCT(int4_int8_partials) {
    const struct me_int4_int8 *a = args;
    int64_t blocks = a->in / BLOCK;
    for (int64_t n = 0; n < a->N; n++)
        for (int64_t o = begin; o < end; o++)
            for (int64_t b = 0; b < blocks; b += LANES) {
                int64_t count = blocks - b < LANES ? blocks - b : LANES, at = n * blocks + b;
                me_codes u;
                unpack(&u, a->q + o * a->in / 2 + b * 16, count);
                vi part = block_sums(&u, a->xq + at * BLOCK, count) - load_ints(a->xsums + at, count);
                memcpy(a->partials + (n * a->out + o) * blocks + b, &part, (size_t)count * sizeof(int32_t));
            }
}

#ifndef ME_INT4_PRODUCTS_ONLY
/* d = the entry of largest magnitude (the first of equals, a NaN before all) / -8; code = trunc(x / d + 8.5) within 0..15 */
ME_KERNEL(int4_quantize) {
    const struct me_int4 *a = args;
    int64_t G = a->group, groups = a->in / G;
    for (int64_t g = begin * groups; g < end * groups; g++) {
        const float *x = a->w + g * G;
        float top = 0, signed_top = x[0];
        for (int64_t j = 0; j < G; j++) {
            float magnitude = __builtin_fabsf(x[j]);
            if (magnitude != magnitude) {
                signed_top = x[j];
                break;
            }
            if (magnitude > top) top = magnitude, signed_top = x[j];
        }
        float d = signed_top / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        a->s_out[g] = float_to_half(d);
        for (int64_t j = 0; j < G; j++) {
            float code = x[j] * inverse + 8.5f;  /* inverse may be infinite in a group of denormals: codes saturate */
            code = code != code ? 8.0f : code;
            uint8_t q = (uint8_t)(code < 0 ? 0 : code > 15 ? 15 : (int)code);
            uint8_t *byte = a->q_out + (g * G + j) / BLOCK * 16 + j % 16;
            *byte = (uint8_t)(j % BLOCK < 16 ? q : *byte | q << 4);
        }
    }
}

/* weight = scale * (code - 8) */
ME_KERNEL(int4_dequantize) {
    const struct me_int4 *a = args;
    int64_t blocks = a->in / BLOCK, per_group = a->group / BLOCK;
    for (int64_t b = begin * blocks; b < end * blocks; b++) {
        const uint8_t *q = a->q + b * 16;
        float scale = half_to_float(a->s[b / per_group]), *w = a->w_out + b * BLOCK;
        for (int j = 0; j < 16; j++) {
            w[j] = (float)((int)(q[j] & 15) - 8) * scale;
            w[j + 16] = (float)((int)(q[j] >> 4) - 8) * scale;
        }
    }
}

/* d = max|x| / 127 per block; xq = x / d, halves away from zero; what is not a number becomes 0 */
ME_KERNEL(int8_quantize) {
    const struct me_int8 *a = args;
    int64_t blocks = a->in / BLOCK;
    for (int64_t b = begin * blocks; b < end * blocks; b++) {
        const float *x = a->x + b * BLOCK;
        vf top = v_set(0), sum = v_set(0), sign = (vf)v_seti(INT32_MIN);
        for (int j = 0; j < BLOCK; j += LANES) {
            vf magnitude = (vf)((vi)v_load(x + j) & ~(vi)sign);
            top = v_max(top, magnitude);
            sum += magnitude;
        }
        float d = v_largest(top), total = v_sum(sum), inverse;
        if (total != total) d = total;  /* a NaN may get lost in a maximum, never in a sum of magnitudes */
        d /= 127.0f;
        inverse = d != 0 ? 1.0f / d : 0.0f;
        a->xscales[b] = d;
        for (int j = 0; j < BLOCK; j += LANES) {
            vf x8 = v_load(x + j) * v_set(inverse);
            x8 = v_select((vi)(x8 == x8), x8, v_set(0));
            x8 = v_min(v_set(127), v_max(v_set(-127), x8));
            vi q = __builtin_convertvector(x8 + (vf)((vi)v_set(0.5f) | ((vi)x8 & (vi)sign)), vi);
            for (int l = 0; l < LANES; l++) a->xq[b * BLOCK + j + l] = (int8_t)q[l];
        }
    }
}
#endif
