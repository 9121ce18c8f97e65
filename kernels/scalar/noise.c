/* The generator of MeZO's perturbations, specification version 1 (minedge/ops/numpy_ops/noise.py): the bits are the interface.
 * Every operation below is rounded on its own, in the stated order; v_fma must not appear in this file. What it replaces:
 *
 *     for (i = 0; i < n; i++) z[i] = inverse_normal(((word(i) >> 9) + 0.5) / 2^23);   word(i): output i % 4 of Philox, counter i / 4
 *
 * Sixteen counters are mixed at a time, which gives 64 numbers. avx2/noise.c makes the same bits faster, and has the counts, the
 * figures (2.46 ns a number of these loops for 1.11 of its own, Zen 3) and the limit. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* Philox4x32-10, one round:
 *     h0:l0 = 0xD2511F53 * c0    h1:l1 = 0xCD9E8D57 * c2
 *     c = (h1 ^ c1 ^ key0, l1, h0 ^ c3 ^ key1, l0)
 * Here for the counters first .. first + 7, one per lane; key[2 r], key[2 r + 1] are those of round r. */
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

#define MANY 8  /* vectors turned into normals together: their chains of dependent operations fill each other's gaps */

/* sum[i] = c[degree] x^degree + ... + c[0]; product and sum rounded one after the other */
INLINE void horner(vf sum[MANY], const float *c, const int degree, const vf x[MANY]) {
#pragma GCC unroll 8
    for (int i = 0; i < MANY; i++) sum[i] = v_set(c[degree]);
#pragma GCC unroll 16
    for (int k = degree - 1; k >= 0; k--)
#pragma GCC unroll 8
        for (int i = 0; i < MANY; i++) sum[i] = sum[i] * x[i] + v_set(c[k]);
}

/* Words to normal numbers: u = (word >> 9) 2^-23 + 2^-24, z = inverse normal distribution function of u. */
INLINE void to_normal(vf z[MANY], const vu word[MANY]) {
    vf slope[MANY], t[MANY], y[MANY], whole[MANY];
#pragma GCC unroll 8
    for (int i = 0; i < MANY; i++) {
        vf u = __builtin_convertvector((vi)(word[i] >> 9), vf) * v_set(0x1p-23f) + v_set(0x1p-24f);
        vf v = v_set(1) - u;
        vi bits = (vi)(u * v);
        vi e = (bits - v_seti(0x3f3504f3)) >> 23;
        t[i] = (vf)(bits - (e << 23)) - v_set(1);
        whole[i] = __builtin_convertvector(e + 13, vf);
        slope[i] = u - v;
    }
    horner(y, log2_c, 5, t);
#pragma GCC unroll 8
    for (int i = 0; i < MANY; i++) y[i] = y[i] * t[i] + whole[i];
    horner(z, normal_c, 13, y);
#pragma GCC unroll 8
    for (int i = 0; i < MANY; i++) z[i] = slope[i] * z[i];
}

/* lane l of w[k] is number 4 l + k: turn the 4 x 8 block over */
INLINE void store_in_order(float *z, const vf w[4]) {
    for (int l = 0; l < LANES; l++)
        for (int k = 0; k < 4; k++) z[4 * l + k] = w[k][l];
}

/* z[0..63] = numbers 4 * counter .. 4 * counter + 63 of the tensor */
INLINE void normal64(float *z, const struct me_noise *a, const uint32_t key[20], uint32_t counter) {
    vu words[MANY];
    vf numbers[MANY];
    philox(words, a, key, counter);
    philox(words + 4, a, key, counter + 8);
    to_normal(numbers, words);
    store_in_order(z, numbers);
    store_in_order(z + 32, numbers + 4);
}

/* Items are blocks of ME_NOISE_BLOCK numbers counted from number 0 of the tensor; this finds the part of block b that was asked for. */
INLINE void block_range(const struct me_noise *a, int64_t b, int64_t *from, int64_t *to) {
    int64_t first = (a->start / ME_NOISE_BLOCK + b) * ME_NOISE_BLOCK;
    *from = a->start > first ? a->start - first : 0;
    *to = a->start + a->n - first < ME_NOISE_BLOCK ? a->start + a->n - first : ME_NOISE_BLOCK;
}

ME_KERNEL(normal) {
    const struct me_noise *a = args;
    uint32_t key[20];
    round_keys(key, a);
    for (int64_t b = begin; b < end; b++) {
        int64_t number = a->start / ME_NOISE_BLOCK + b, from, to;
        block_range(a, b, &from, &to);
        float *out = a->out + (number * ME_NOISE_BLOCK - a->start);
        if (from == 0 && to == ME_NOISE_BLOCK) {
            normal64(out, a, key, (uint32_t)(number * (ME_NOISE_BLOCK / 4)));
        } else {
            float z[ME_NOISE_BLOCK];
            normal64(z, a, key, (uint32_t)(number * (ME_NOISE_BLOCK / 4)));
            for (int64_t i = from; i < to; i++) out[i] = z[i];
        }
    }
}

/* out = fl(fl(decay * weight) + fl(scale * z)); with other: other = fl(fl(decay * weight) - fl(scale * z)), the same as with
 * -scale, as rounding does not look at signs */
INLINE void perturb_blocks(const struct me_noise *a, int64_t begin, int64_t end) {
    vf decay = v_set(a->decay), scale = v_set(a->scale);
    uint32_t key[20];
    round_keys(key, a);
    for (int64_t b = begin; b < end; b++) {
        int64_t number = a->start / ME_NOISE_BLOCK + b, from, to;
        float z[ME_NOISE_BLOCK];
        block_range(a, b, &from, &to);
        int64_t shift = number * ME_NOISE_BLOCK - a->start;
        normal64(z, a, key, (uint32_t)(number * (ME_NOISE_BLOCK / 4)));
        if (from == 0 && to == ME_NOISE_BLOCK) {
            for (int i = 0; i < ME_NOISE_BLOCK; i += LANES) {
                vf kept = decay * v_load(a->weight + shift + i), move = scale * v_load(z + i);
                v_store(a->out + shift + i, kept + move);
                if (a->other) v_store(a->other + shift + i, kept - move);
            }
        } else {
            for (int64_t i = from; i < to; i++) {
                float kept = a->decay * a->weight[shift + i], move = a->scale * z[i];
                a->out[shift + i] = kept + move;
                if (a->other) a->other[shift + i] = kept - move;
            }
        }
    }
}

ME_KERNEL(perturb) { perturb_blocks(args, begin, end); }

ME_KERNEL(perturb_tile) {
    const struct me_noise *a = args;
    for (int64_t r = begin; r < end; r++) {
        struct me_noise one = *a;
        one.out += r * a->n, one.other += r * a->n, one.weight += r * a->row, one.start += r * a->row;
        perturb_blocks(&one, 0, (one.start + one.n - 1) / ME_NOISE_BLOCK - one.start / ME_NOISE_BLOCK + 1);
    }
}
