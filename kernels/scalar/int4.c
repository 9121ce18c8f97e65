/* Four-bit weights: quantize and dequantize them, float products with them, and activations in eight bits. Products with
 * those: int_product.c.
 *
 *     for o, i:  weight[o][i] = scale[o][i / group] * (code[o][i] - 8);     y = x weight^T,  dx = dout weight
 *
 *     a block of 32 columns | c0 c16 | c1 c17 | .. | c15 c31 |  16 bytes, the lower column in the low nibble
 *     scales                  one float16 for 32, 64 or 128 columns of a row
 *
 * The float products, for training over frozen codes, are those of gemm.c, bit for bit: read_row stands where gemm.c copies
 * rows of a dense weight into its panels, so 16 x 384 floats are all that is ever unpacked. Per 16 weights: a load that widens
 * eight bytes, an and or a shift, two subtractions, two conversions, two multiplications, two stores.
 *
 * Quantizing, AVX2, per 32 weights: two exclusive ors and maxima for each eight, then a product, a sum, two bounds and a conversion,
 * ten instructions for the bytes, two divisions for the scale: 100, three a weight. 2048 x 5632 on two cores of an AMD EPYC: 2.7 G
 * weights/s, 0.58 one weight at a time; reading them from memory (10.8 GB/s of float32 here, 31 measured) is not yet the limit.
 *
 * One core of an AMD EPYC beside other work, AVX2, 2048 x 2048, against unpacking 2^20 weights at a time (what stood here
 * before), medians in alternation, 2026-11-23: 256 rows of x forward 23.5 ms for 25.1, backward 29.5 for 32.8, where the dense weight
 * takes 28; one row 1.8 ms for 2.4. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

#define BLOCK 32
#if defined(ME_AVX2)
INLINE vi larger(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
INLINE vi larger(vi a, vi b) { return ((a > b) & a) | (~(a > b) & b); }
#endif

/* The entry of largest magnitude, the first of equals, a NaN before all.
 * A float's bits, read as an integer, order the positive ones; with the sign turned over, the negative ones. The larger of the two
 * maxima is the entry, but where they are equal or beyond infinity's bits (a NaN): then entry by entry. */
static float largest(const float *x, int64_t G) {
    vi up = v_seti(INT32_MIN), down = up, sign = up;
    for (int64_t j = 0; j < G; j += LANES) {
        vi bits = (vi)v_load(x + j);
        up = larger(up, bits);
        down = larger(down, bits ^ sign);
    }
    int32_t above = up[0], below = down[0];
    for (int l = 1; l < LANES; l++) {
        above = up[l] > above ? up[l] : above;
        below = down[l] > below ? down[l] : below;
    }
    int32_t most = above > below ? above : below;
    float top = 0, found = x[0];
    if (above != below && most <= 0x7f800000) {
        memcpy(&found, &most, 4);
        return above > below ? found : -found;
    }
    for (int64_t j = 0; j < G; j++) {
        float magnitude = __builtin_fabsf(x[j]);
        if (magnitude != magnitude) return x[j];
        if (magnitude > top) top = magnitude, found = x[j];
    }
    return found;
}

/* trunc(x / d + 8.5) within 0..15 */
INLINE vi codes(const float *x, vf inverse) {
    vf code = v_load(x) * inverse + v_set(8.5f);  /* inverse may be infinite in a group of denormals: codes saturate */
    code = v_select((vi)(code == code), code, v_set(8));
    return __builtin_convertvector(v_min(v_set(15), v_max(v_set(0), code)), vi);
}

/* 32 codes into 16 bytes: number j is low in byte j, number j + 16 high */
INLINE void put_codes(uint8_t *q, const float *x, vf inverse) {
    vi a = codes(x, inverse) | codes(x + 16, inverse) << 4, b = codes(x + 8, inverse) | codes(x + 24, inverse) << 4;
#if defined(ME_AVX2)
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)a, (__m256i)b), 0xd8);
    _mm_storeu_si128((__m128i *)q, _mm_packus_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#else
    for (int l = 0; l < LANES; l++) q[l] = (uint8_t)a[l], q[l + 8] = (uint8_t)b[l];
#endif
}

/* d = the entry of largest magnitude / -8 */
ME_KERNEL(int4_quantize) {
    const struct me_int4 *a = args;
    int64_t G = a->group, groups = a->in / G;
    for (int64_t g = begin * groups; g < end * groups; g++) {
        const float *x = a->w + g * G;
        float d = largest(x, G) / -8.0f;
        a->s_out[g] = float_to_half(d);
        for (int64_t j = 0; j < G; j += BLOCK) put_codes(a->q_out + (g * G + j) / 2, x + j, v_set(d != 0 ? 1.0f / d : 0.0f));
    }
}

/* weight = scale * (code - 8), whole blocks of a row */
static void read_row(float *w, const void *weight, int64_t row, int64_t from, int64_t to) {
    const struct me_int4 *a = weight;
    int64_t blocks = a->in / BLOCK, per_group = a->group / BLOCK;
    for (int64_t b = row * blocks + from / BLOCK; b < row * blocks + to / BLOCK; b++, w += BLOCK) {
        const uint8_t *q = a->q + b * 16;
        float scale = half_to_float(a->s[b / per_group]);
#if defined(ME_AVX2)  /* eight bytes widened at once: 4.4 times what the compiler makes of the loop below */
        for (int j = 0; j < 16; j += LANES) {
            vi both = (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(q + j)));
            v_store(w + j, __builtin_convertvector((both & v_seti(15)) - v_seti(8), vf) * v_set(scale));
            v_store(w + j + 16, __builtin_convertvector((both >> 4) - v_seti(8), vf) * v_set(scale));
        }
#else
        for (int j = 0; j < 16; j++) {
            w[j] = (float)((int)(q[j] & 15) - 8) * scale;
            w[j + 16] = (float)((int)(q[j] >> 4) - 8) * scale;
        }
#endif
    }
}

/* items are rows */
ME_KERNEL(int4_dequantize) {
    const struct me_int4 *a = args;
    for (int64_t row = begin; row < end; row++) read_row(a->w_out + row * a->in, a, row, 0, a->in);
}

/* x weight^T, or dout weight: scalar/gemm.c on panels that are filled from the codes */
ME_KERNEL(int4_gemm) {
    struct me_gemm g = *(const struct me_gemm *)args;
    g.read = read_row;
    g.gemm(&g, begin, end);
}

/* d = max|x| / 127 per block; xq = x / d, halves away from zero; what is not a number becomes 0 */
ME_KERNEL(int8_quantize) {
    const struct me_int8 *a = args;
    int64_t blocks = a->in / BLOCK;
    for (int64_t b = begin * blocks; b < end * blocks; b++) {
        const float *x = a->x + b * BLOCK;
#if defined(ME_QUICK_BLOCK)
        if (quick_block(a->xq + b * BLOCK, a->xscales + b, x)) continue;
#endif
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
