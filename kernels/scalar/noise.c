/* The generator of MeZO's perturbations, specification version 1 (minedge/ops/numpy_ops/noise.py): the bits are the interface.
 * Every operation below is rounded on its own, in the stated order; v_fma must not appear in this file.
 * Eight counters are mixed at a time, one per lane, which gives 32 numbers. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* Philox4x32-10, one round:
 *     h0:l0 = 0xD2511F53 * c0    h1:l1 = 0xCD9E8D57 * c2
 *     c = (h1 ^ c1 ^ key0, l1, h0 ^ c3 ^ key1, l0)
 * Here for the counters first .. first + 7, one per lane; key[2 r], key[2 r + 1] are those of round r. */
#if defined(ME_AVX2)
/* Counters stand in the low halves of 64-bit lanes, even ones in a, odd ones in b: the multiplication reads only low halves
 * and leaves high:low of the product in place, so a round is two multiplications, two shifts and four xors. Measured
 * 1.8 times as fast as the eight-lane form below. */
INLINE void philox(vu out[4], const struct me_noise *n, const uint32_t key[20], uint32_t first) {
    const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
    __m256i c[2][4];
    for (int i = 0; i < 2; i++) {
        c[i][0] = _mm256_add_epi32(_mm256_set1_epi32((int)first), _mm256_setr_epi32(i, 0, i + 2, 0, i + 4, 0, i + 6, 0));
        c[i][1] = _mm256_set1_epi32((int)n->tensor);
        c[i][2] = _mm256_set1_epi32((int)n->step);
        c[i][3] = _mm256_set1_epi32((int)n->sample);
    }
#pragma GCC unroll 10
    for (int r = 0; r < 10; r++)
        for (int i = 0; i < 2; i++) {
            __m256i p0 = _mm256_mul_epu32(c[i][0], m0), p1 = _mm256_mul_epu32(c[i][2], m1);
            __m256i x1 = _mm256_xor_si256(c[i][1], _mm256_set1_epi32((int)key[2 * r]));
            __m256i x3 = _mm256_xor_si256(c[i][3], _mm256_set1_epi32((int)key[2 * r + 1]));
            c[i][0] = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), x1);
            c[i][1] = p1;
            c[i][2] = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), x3);
            c[i][3] = p0;
        }
    for (int k = 0; k < 4; k++) out[k] = (vu)_mm256_blend_epi32(c[0][k], _mm256_slli_epi64(c[1][k], 32), 0xaa);
}
#else
/* High and low half of the 64-bit product of each lane with m. */
INLINE void multiply(vu a, uint32_t m, vu *high, vu *low) {
    *low = a * v_setu(m);
    for (int l = 0; l < LANES; l++) (*high)[l] = (uint32_t)((uint64_t)a[l] * m >> 32);
}

INLINE void philox(vu c[4], const struct me_noise *n, const uint32_t key[20], uint32_t first) {
    c[0] = v_setu(first) + (vu){0, 1, 2, 3, 4, 5, 6, 7};
    c[1] = v_setu(n->tensor);
    c[2] = v_setu(n->step);
    c[3] = v_setu(n->sample);
    for (int r = 0; r < 10; r++) {
        vu high0, low0, high1, low1;
        multiply(c[0], 0xD2511F53u, &high0, &low0);
        multiply(c[2], 0xCD9E8D57u, &high1, &low1);
        c[0] = high1 ^ c[1] ^ v_setu(key[2 * r]);
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ v_setu(key[2 * r + 1]);
        c[3] = low0;
    }
}
#endif

/* The keys of the ten rounds: each adds the golden ratio and sqrt(3) - 1, in units of 2^-32. */
INLINE void round_keys(uint32_t key[20], const struct me_noise *n) {
    for (uint32_t r = 0; r < 10; r++) {
        key[2 * r] = n->key0 + r * 0x9E3779B9u;
        key[2 * r + 1] = n->key1 + r * 0xBB67AE85u;
    }
}

static const float log2_c[6] = {0x1.7155acp+0f, -0x1.713832p-1f, 0x1.eada34p-2f, -0x1.784f4ap-2f, 0x1.49e2f4p-2f, -0x1.a7199ap-3f};
static const float normal_c[14] = {
    0x1.d5a82cp+1f,  -0x1.69e130p-3f, -0x1.db940cp-9f, -0x1.fe7fa0p-14f, -0x1.42b7f4p-19f, 0x1.d87992p-23f,  0x1.0bda1ap-25f,
    0x1.664a8cp-29f, 0x1.304d04p-32f, 0x1.c3d276p-37f, -0x1.cb85d2p-40f, -0x1.560942p-43f, 0x1.398a3cp-49f, 0x1.8aa0e2p-52f};

INLINE vf horner(const float *c, int degree, vf x) {
    vf sum = v_set(c[degree]);
    for (int k = degree - 1; k >= 0; k--) sum = sum * x + v_set(c[k]);  /* product and sum rounded one after the other */
    return sum;
}

/* One word to one normal number: u = (word >> 9) 2^-23 + 2^-24, z = inverse normal distribution function of u. */
INLINE vf to_normal(vu word) {
    vf u = __builtin_convertvector((vi)(word >> 9), vf) * v_set(0x1p-23f) + v_set(0x1p-24f);
    vf v = v_set(1) - u;
    vi bits = (vi)(u * v);
    vi e = (bits - v_seti(0x3f3504f3)) >> 23;
    vf t = (vf)(bits - (e << 23)) - v_set(1);
    vf y = horner(log2_c, 5, t) * t + __builtin_convertvector(e + 13, vf);
    return (u - v) * horner(normal_c, 13, y);
}

/* z[0..31] = numbers 4 * counter .. 4 * counter + 31 of the tensor */
INLINE void normal32(float *z, const struct me_noise *a, const uint32_t key[20], uint32_t counter) {
    vu c[4];
    philox(c, a, key, counter);
    vf w[4];
    for (int k = 0; k < 4; k++) w[k] = to_normal(c[k]);
    /* lane l of w[k] is number 4 l + k: turn the 4 x 8 block over */
#if defined(ME_AVX2)
    __m256 t0 = _mm256_unpacklo_ps((__m256)w[0], (__m256)w[1]), t1 = _mm256_unpackhi_ps((__m256)w[0], (__m256)w[1]);
    __m256 t2 = _mm256_unpacklo_ps((__m256)w[2], (__m256)w[3]), t3 = _mm256_unpackhi_ps((__m256)w[2], (__m256)w[3]);
    __m256 r0 = _mm256_shuffle_ps(t0, t2, 0x44), r1 = _mm256_shuffle_ps(t0, t2, 0xee);
    __m256 r2 = _mm256_shuffle_ps(t1, t3, 0x44), r3 = _mm256_shuffle_ps(t1, t3, 0xee);
    _mm256_storeu_ps(z, _mm256_permute2f128_ps(r0, r1, 0x20));
    _mm256_storeu_ps(z + 8, _mm256_permute2f128_ps(r2, r3, 0x20));
    _mm256_storeu_ps(z + 16, _mm256_permute2f128_ps(r0, r1, 0x31));
    _mm256_storeu_ps(z + 24, _mm256_permute2f128_ps(r2, r3, 0x31));
#else
    for (int l = 0; l < LANES; l++)
        for (int k = 0; k < 4; k++) z[4 * l + k] = w[k][l];
#endif
}

/* Items are blocks of 32 numbers counted from number 0 of the tensor; this finds the part of block b that was asked for. */
INLINE void block_range(const struct me_noise *a, int64_t b, int64_t *from, int64_t *to) {
    int64_t first = (a->start / 32 + b) * 32;
    *from = a->start > first ? a->start - first : 0;
    *to = a->start + a->n - first < 32 ? a->start + a->n - first : 32;
}

ME_KERNEL(normal) {
    const struct me_noise *a = args;
    uint32_t key[20];
    round_keys(key, a);
    for (int64_t b = begin; b < end; b++) {
        int64_t number = a->start / 32 + b, from, to;
        block_range(a, b, &from, &to);
        float *out = a->out + (number * 32 - a->start);
        if (from == 0 && to == 32) {
            normal32(out, a, key, (uint32_t)(number * 8));
        } else {
            float z[32];
            normal32(z, a, key, (uint32_t)(number * 8));
            for (int64_t i = from; i < to; i++) out[i] = z[i];
        }
    }
}

/* out = fl(fl(decay * weight) + fl(scale * z)) */
ME_KERNEL(perturb) {
    const struct me_noise *a = args;
    vf decay = v_set(a->decay), scale = v_set(a->scale);
    uint32_t key[20];
    round_keys(key, a);
    for (int64_t b = begin; b < end; b++) {
        int64_t number = a->start / 32 + b, from, to;
        float z[32];
        block_range(a, b, &from, &to);
        int64_t shift = number * 32 - a->start;
        normal32(z, a, key, (uint32_t)(number * 8));
        if (from == 0 && to == 32) {
            for (int i = 0; i < 32; i += LANES)
                v_store(a->out + shift + i, decay * v_load(a->weight + shift + i) + scale * v_load(z + i));
        } else {
            for (int64_t i = from; i < to; i++) a->out[shift + i] = a->decay * a->weight[shift + i] + a->scale * z[i];
        }
    }
}
