/* scalar/noise.c's numbers, bit for bit, in 2.2 times less time: fewer instructions, and two independent streams of them.
 * While 64 words become normal numbers, the rounds that make the next 64 are woven in between, so that neither waits for its
 * own chain of results (a chain alone runs at a quarter of what the processor can do).
 *
 * What is saved, with no bit changed:
 *   - Four counters sit in the low halves of 64-bit lanes: the multiplication reads only low halves and leaves high:low of
 *     the product in place. A round is 2 multiplications, 2 shifts and 4 xors for four counters.
 *   - tensor, step and sample are the same for all counters, so what they mean in rounds 0 and 1 is worked out once.
 *   - The last round's product already holds one word high and one low: (c1 ^ key) << 32 is xored into its high half.
 *         A = [w1 w0] of counters 0 2 | 1 3      B = [w3 w2] of the same
 *         shuffle(A, B) = [w0 w1 w2 w3] of counters 0 | 1, then of 2 | 3: already in order
 *   - 1 + (word >> 9) 2^-23 is put together from bits; less 1 - 2^-24 it is u, exactly.
 *   - With s = bits(q) - 0x3f3504f3 + (13 << 23): e + 13 = s >> 23, and m = (s & 0x7fffff) + 0x3f3504f3.
 * Per 8 numbers: 35 instructions of Philox, 51 of the inverse normal, 1 shuffle, 1 store; four a cycle are the limit.
 * Measured, one core of an AMD EPYC (Zen 3, 3.7 GHz), best of 3000 runs beside other work, 2026-11-23: 1.11 ns a number where
 * the compiled loops of scalar/noise.c took 2.46 in the same minute; the limit, 88 at 3.7 GHz, is 0.74. benchmarks/packed_kernels.py --only
 * noise */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* A compiler would follow one number through all its operations, then the next: a value that passes here has to be ready. */
#ifndef ME_OWN_VECTOR
#define OP(name) _mm256_##name
#define KEEP(v) __asm__("" : "+x"(v))
#define KEEP_XOR KEEP
#define COUNTERS 4  /* of one vector of 64-bit lanes; the second half of them, in each 128 bits, behind the first */
#define COUNTER_LANES _mm256_setr_epi32(0, 0, 2, 0, 1, 0, 3, 0)
#define ROUNDS(s) ROUND(2 * s) ROUND(2 * s + 1)
typedef __m256i wide;
typedef vf numbers;
typedef vi ints;
typedef __m256 floats;
#endif
#define SET(x) (numbers)OP(set1_ps)(x)
#define SETI(x) (ints)OP(set1_epi32)(x)
#define HALVES (16 / COUNTERS)  /* vectors of counters that make 64 numbers, one block */
#define VECTORS (2 * HALVES)    /* vectors of numbers */

typedef struct {
    wide first1, first2, second0, second2, third3;  /* see start_keys */
    wide key[10][2];
} me_keys;

/* first1, first2: what round 0 xors into c2, the lanes' counters; second0, second2: what round 1 xors into c0 and c2;
 * third3: what round 2 xors into c2 */
INLINE void start_keys(me_keys *k, const struct me_noise *a) {
    uint32_t k0[10], k1[10];
    for (uint32_t r = 0; r < 10; r++) {
        k0[r] = a->key0 + r * 0x9E3779B9u;
        k1[r] = a->key1 + r * 0xBB67AE85u;
        k->key[r][0] = OP(set1_epi32)((int)k0[r]);
        k->key[r][1] = OP(set1_epi32)((int)k1[r]);
    }
    uint64_t p1 = 0xCD9E8D57ull * a->step;
    uint32_t c0 = (uint32_t)(p1 >> 32) ^ a->tensor ^ k0[0];
    uint64_t p0 = 0xD2511F53ull * c0;
    k->first1 = OP(set1_epi32)((int)(a->sample ^ k1[0]));
    k->first2 = COUNTER_LANES;
    k->second0 = OP(set1_epi32)((int)((uint32_t)p1 ^ k0[1]));
    k->second2 = OP(set1_epi32)((int)((uint32_t)(p0 >> 32) ^ k1[1]));
    k->third3 = OP(set1_epi32)((int)((uint32_t)p0 ^ k1[2]));
}

/* Round r of one half; after round 9, c[0] = A and c[2] = B of the drawing above. */
INLINE void one_round(wide c[4], const me_keys *k, const int r, uint32_t counter) {
    const wide m0 = OP(set1_epi32)((int)0xD2511F53u), m1 = OP(set1_epi32)((int)0xCD9E8D57u);  /* high halves are not read */
    if (r == 0) {
        c[3] = OP(mul_epu32)(OP(add_epi32)(OP(set1_epi32)((int)counter), k->first2), m0);
        c[2] = OP(srli_epi64)(c[3], 32) ^ k->first1;
    } else if (r == 1) {
        c[1] = OP(mul_epu32)(c[2], m1);
        c[0] = OP(srli_epi64)(c[1], 32) ^ k->second0;
        c[2] = c[3] ^ k->second2;
    } else {
        wide p0 = OP(mul_epu32)(c[0], m0), p1 = OP(mul_epu32)(c[2], m1);
        wide x1 = c[1] ^ k->key[r][0];
        wide x3 = k->third3;
        if (r > 2) x3 = c[3] ^ k->key[r][1];
        KEEP_XOR(x1);
        KEEP_XOR(x3);
        if (r == 9) {
            c[0] = p1 ^ OP(slli_epi64)(x1, 32);
            c[2] = p0 ^ OP(slli_epi64)(x3, 32);
        } else {
            c[0] = OP(srli_epi64)(p1, 32) ^ x1;
            c[2] = OP(srli_epi64)(p0, 32) ^ x3;
            c[1] = p1;
            c[3] = p0;
        }
    }
    KEEP(c[0]);
    KEEP(c[2]);
}

static const float log2_c[6] = {0x1.7155acp+0f, -0x1.713832p-1f, 0x1.eada34p-2f, -0x1.784f4ap-2f, 0x1.49e2f4p-2f, -0x1.a7199ap-3f};
static const float normal_c[14] = {
    0x1.d5a82cp+1f,  -0x1.69e130p-3f, -0x1.db940cp-9f, -0x1.fe7fa0p-14f, -0x1.42b7f4p-19f, 0x1.d87992p-23f,  0x1.0bda1ap-25f,
    0x1.664a8cp-29f, 0x1.304d04p-32f, 0x1.c3d276p-37f, -0x1.cb85d2p-40f, -0x1.560942p-43f, 0x1.398a3cp-49f, 0x1.8aa0e2p-52f};

typedef struct { numbers slope[VECTORS], t[VECTORS], whole[VECTORS], sum[VECTORS]; } me_normals;

/* The inverse normal in steps: what comes before the polynomials, five steps of Horner's rule for the logarithm, one that
 * makes y, thirteen for the normal, one times the slope. The order of a number's operations is that of scalar/noise.c. */
INLINE void one_step(me_normals *n, const wide word[VECTORS], const int step) {
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; i++)
        if (step == 0) {
            numbers u = (numbers)(OP(srli_epi32)(word[i], 9) | OP(set1_epi32)(0x3f800000)) - SET(0x1.fffffep-1f);
            numbers v = SET(1) - u;
            ints s = (ints)(u * v) + SETI((13 << 23) - 0x3f3504f3);
            n->slope[i] = u - v;
            n->whole[i] = __builtin_convertvector(s >> 23, numbers);
            n->t[i] = (numbers)((s & SETI(0x7fffff)) + SETI(0x3f3504f3)) - SET(1);
            KEEP(n->t[i]);
        } else {
            numbers s = step == 1 ? SET(log2_c[5]) : step == 7 ? SET(normal_c[13]) : n->sum[i];
            if (step < 6) n->sum[i] = s * n->t[i] + SET(log2_c[5 - step]);
            else if (step == 6) n->t[i] = s * n->t[i] + n->whole[i];
            else if (step < 20) n->sum[i] = s * n->t[i] + SET(normal_c[19 - step]);
            else n->sum[i] = n->slope[i] * s;
            if (step == 6) KEEP(n->t[i]);
            else KEEP(n->sum[i]);
        }
}

/* z = the normals of `word`, which becomes the words of counters from `next` on */
INLINE void batch(numbers z[VECTORS], wide word[VECTORS], const me_keys *k, uint32_t next) {
    wide c[HALVES][4] = {0};
    me_normals n;
    /* A step of all 64 numbers, and two rounds of sixteen of the next (one of 32): a slot has 16 + 16 instructions (8 + 6). */
#define ROUND(i) one_round(c[(i) / 10], k, (i) % 10, next + COUNTERS * ((i) / 10));
#define SLOT(s) \
    if (s < 20) { ROUNDS(s) } \
    one_step(&n, word, s);
    SLOT(0) SLOT(1) SLOT(2) SLOT(3) SLOT(4) SLOT(5) SLOT(6) SLOT(7) SLOT(8) SLOT(9) SLOT(10)
    SLOT(11) SLOT(12) SLOT(13) SLOT(14) SLOT(15) SLOT(16) SLOT(17) SLOT(18) SLOT(19) SLOT(20)
    for (int h = 0; h < HALVES; h++) {
        z[2 * h] = (numbers)OP(shuffle_ps)((floats)n.sum[2 * h], (floats)n.sum[2 * h + 1], 0x11);
        z[2 * h + 1] = (numbers)OP(shuffle_ps)((floats)n.sum[2 * h], (floats)n.sum[2 * h + 1], 0xbb);
        word[2 * h] = c[h][0];
        word[2 * h + 1] = c[h][2];
    }
}

INLINE void first_words(wide word[VECTORS], const me_keys *k, uint32_t counter) {
    wide c[HALVES][4] = {0};
#pragma GCC unroll 10
    for (int r = 0; r < 10; r++)
        for (int h = 0; h < HALVES; h++) one_round(c[h], k, r, counter + COUNTERS * (uint32_t)h);
    for (int h = 0; h < HALVES; h++) word[2 * h] = c[h][0], word[2 * h + 1] = c[h][2];
}

INLINE numbers load(const float *p) { numbers v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, numbers v) { memcpy(p, &v, sizeof v); }

/* Block `at` of 64 numbers, which `word` holds: z, or decay * weight + scale * z; what lies outside start..start + n - 1 is left
 * out. `word` becomes that of the block `next`. */
INLINE void one_block(const struct me_noise *a, const int perturb, wide word[VECTORS], const me_keys *k, int64_t at, int64_t next) {
    numbers z[VECTORS], decay = SET(a->decay), scale = SET(a->scale);
    int64_t i = at - a->start;
    batch(z, word, k, (uint32_t)(next / 4));
    if (i >= 0 && i + ME_NOISE_BLOCK <= a->n) {
        if (a->row)  /* a tile's rows lie apart, too short for the processor to foresee, so they are asked for */
            for (int line = 0; line < ME_NOISE_BLOCK; line += 16) __builtin_prefetch(a->weight + a->row + i + line);
        for (int v = 0; v < VECTORS; v++) {
            const int64_t to = i + 2 * COUNTERS * v;
            numbers kept = perturb ? decay * load(a->weight + to) : z[v];
            store(a->out + to, perturb ? kept + scale * z[v] : z[v]);
            if (perturb && a->other) store(a->other + to, kept - scale * z[v]);
        }
    } else {
        for (int v = 0; v < VECTORS; v++)
            for (int l = 0; l < 2 * COUNTERS; l++, i++) {
                if (i < 0 || i >= a->n) continue;
                if (perturb && a->other) a->other[i] = a->decay * a->weight[i] - a->scale * z[v][l];
                a->out[i] = perturb ? a->decay * a->weight[i] + a->scale * z[v][l] : z[v][l];
            }
    }
}

/* Blocks begin..end of 64 numbers; the first and the last may be asked for in part. */
INLINE void blocks(const struct me_noise *a, const int perturb, int64_t begin, int64_t end) {
    me_keys k;
    wide word[VECTORS];
    start_keys(&k, a);
    int64_t from = (a->start / ME_NOISE_BLOCK + begin) * ME_NOISE_BLOCK, to = from + (end - begin) * ME_NOISE_BLOCK;
    first_words(word, &k, (uint32_t)(from / 4));
    for (int64_t at = from; at < to; at += ME_NOISE_BLOCK) one_block(a, perturb, word, &k, at, at + ME_NOISE_BLOCK);
}

ME_KERNEL(normal) { blocks(args, 0, begin, end); }

/* out = fl(fl(decay * weight) + fl(scale * z)); with other: other = fl(fl(decay * weight) - fl(scale * z)) */
ME_KERNEL(perturb) { blocks(args, 1, begin, end); }

/* Rows of it: the numbers that are woven in at the end of one are the first of the next. */
ME_KERNEL(perturb_tile) {
    const struct me_noise *a = args;
    struct me_noise one = *a;
    me_keys k;
    wide word[VECTORS];
    start_keys(&k, a);
    one.out += begin * a->n, one.other += begin * a->n, one.weight += begin * a->row, one.start += begin * a->row;
    int64_t at = one.start / ME_NOISE_BLOCK * ME_NOISE_BLOCK;
    first_words(word, &k, (uint32_t)(at / 4));
    for (int64_t r = begin; r < end; r++) {
        int64_t behind = one.start + a->row, next = behind / ME_NOISE_BLOCK * ME_NOISE_BLOCK;
        for (; at + ME_NOISE_BLOCK < one.start + a->n; at += ME_NOISE_BLOCK) one_block(&one, 1, word, &k, at, at + ME_NOISE_BLOCK);
        one_block(&one, 1, word, &k, at, next);
        one.out += a->n, one.other += a->n, one.weight += a->row, one.start = behind, at = next;
    }
}
