/* One product up the ladder: int4 weights times int8 activations, four times the same numbers, each step faster.
 *
 *     y[o] = sum over blocks b of scales[o][b] * xscales[b] * (sum over j < 32 of (code[o][b][j] - 8) * x[b][j])
 *
 * This file is for reading and for the course; the kernels the package runs are scalar/int4.c and its twins, which share
 * one body over all instruction sets and therefore say less about any single one. The tests hold both equal.
 *
 * A block is 32 columns. Its codes take 16 bytes: byte j = code j | code j + 16 << 4. Nothing here reads or writes a byte
 * outside the arrays, and rows outside begin..end-1 stay untouched: that is what lets threads share the work.
 *
 * Compile: cc -std=gnu11 -O2 -fno-tree-vectorize -ffp-contract=off -fPIC -shared -pthread int4_ladder.c -o ladder.so
 * (without the compiler's own vectorizer, so that what is measured is what is written) */
#include <pthread.h>
#include <stdint.h>

#define BLOCK 32
#define BYTES 16        /* of a block's codes */
#define MAX_THREADS 64

/* In the course's copy of this file blanks stand in for the steps; whoever calls one finds its name here. */
const char *not_implemented;
#define NOT_IMPLEMENTED(task) do { not_implemented = task; return; } while (0)

struct product {
    float *y;               /* (rows) */
    const uint8_t *q;       /* (rows, blocks, 16) */
    const float *scales;    /* (rows, blocks) */
    const int8_t *x;        /* (blocks, 32) */
    const float *xscales;   /* (blocks) */
    const int32_t *xsums;   /* (blocks): the sum of each block of x, made once for all rows */
    int64_t rows, blocks;
};

/* Step 1, scalar: the formula, rows begin..end-1. The codes are unsigned, so 8 goes off before the product; x may be -128. */
void product_scalar(const struct product *p, int64_t begin, int64_t end) {
    /* BEGIN SOLUTION a7.1 */
    for (int64_t o = begin; o < end; o++) {
        float sum = 0;
        for (int64_t b = 0; b < p->blocks; b++) {
            const uint8_t *q = p->q + (o * p->blocks + b) * BYTES;
            const int8_t *x = p->x + b * BLOCK;
            int32_t part = 0;
            for (int j = 0; j < BYTES; j++) {
                part += ((q[j] & 15) - 8) * x[j];
                part += ((q[j] >> 4) - 8) * x[j + BYTES];
            }
            sum += p->scales[o * p->blocks + b] * p->xscales[b] * (float)part;
        }
        p->y[o] = sum;
    }
    /* END SOLUTION */
}

/* Step 2, unrolled: the -8 leaves the inner loop, because sum (code - 8) x = sum code x - 8 sum x and the last sum does not
 * depend on the row; and four rows go together, so that x is loaded once for four and four sums need not wait for one
 * another. Rows that are left over go one at a time, by step 1. */
void product_unrolled(const struct product *p, int64_t begin, int64_t end) {
    /* BEGIN SOLUTION a7.2 */
    int64_t o = begin, row = p->blocks * BYTES;
    for (; o + 4 <= end; o += 4) {
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (int64_t b = 0; b < p->blocks; b++) {
            const uint8_t *q0 = p->q + o * row + b * BYTES, *q1 = q0 + row, *q2 = q1 + row, *q3 = q2 + row;
            const int8_t *x = p->x + b * BLOCK;
            const float *scale = p->scales + o * p->blocks + b;
            int32_t part0 = -8 * p->xsums[b], part1 = part0, part2 = part0, part3 = part0;
            for (int j = 0; j < BYTES; j++) {
                int32_t low = x[j], high = x[j + BYTES];
                part0 += (q0[j] & 15) * low + (q0[j] >> 4) * high;
                part1 += (q1[j] & 15) * low + (q1[j] >> 4) * high;
                part2 += (q2[j] & 15) * low + (q2[j] >> 4) * high;
                part3 += (q3[j] & 15) * low + (q3[j] >> 4) * high;
            }
            s0 += scale[0] * p->xscales[b] * (float)part0;
            s1 += scale[p->blocks] * p->xscales[b] * (float)part1;
            s2 += scale[2 * p->blocks] * p->xscales[b] * (float)part2;
            s3 += scale[3 * p->blocks] * p->xscales[b] * (float)part3;
        }
        p->y[o] = s0, p->y[o + 1] = s1, p->y[o + 2] = s2, p->y[o + 3] = s3;
    }
    product_scalar(p, o, end);
    /* END SOLUTION */
}

/* Step 3, SIMD: a block is one AVX2 register of 32 bytes, or two NEON registers of 16. -DNO_SIMD leaves it out. */
#if defined(__x86_64__) && !defined(NO_SIMD)
#include <immintrin.h>
#define SIMD __attribute__((target("avx2,fma")))
int simd_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

/* The eight numbers of v added up. */
SIMD static inline float sum_of_lanes(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* maddubs multiplies unsigned bytes (the codes) by signed ones (x) and adds neighbours: 2 * 15 * 128 fits int16. Sixteen
 * such sums go to eight int32 by madd with ones. 8 x is subtracted as int16, made once a block for four rows. The eight
 * parts stay apart, as floats, until the row ends. */
SIMD void product_simd(const struct product *p, int64_t begin, int64_t end) {
    /* BEGIN SOLUTION a7.3 */
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), eights = _mm256_set1_epi8(8);
    int64_t o = begin;
    for (; o + 4 <= end; o += 4) {
        __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t b = 0; b < p->blocks; b++) {
            __m256i x = _mm256_loadu_si256((const __m256i *)(p->x + b * BLOCK));
            __m256i eight_x = _mm256_maddubs_epi16(eights, x);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                int64_t at = (o + r) * p->blocks + b;
                /* code[j] = q[j] & 15, code[j + 16] = q[j] >> 4 */
                __m128i bytes = _mm_loadu_si128((const __m128i *)(p->q + at * BYTES));
                __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
                __m256i codes = _mm256_and_si256(both, nibble);
                /* parts += (code - 8) * x */
                __m256i pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(codes, x), eight_x);
                __m256 parts = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(p->scales[at] * p->xscales[b]), parts, sum[r]);
            }
        }
        for (int r = 0; r < 4; r++) p->y[o + r] = sum_of_lanes(sum[r]);
    }
    product_scalar(p, o, end);
    /* END SOLUTION */
}
#elif defined(__aarch64__) && !defined(NO_SIMD)
#include <arm_neon.h>
int simd_supported(void) { return 1; }

/* vmull and vmlal multiply signed bytes into int16: two products of 8 * 128 fit; vpaddl adds neighbours into int32. The four
 * parts stay apart, as floats, until the row ends. */
void product_simd(const struct product *p, int64_t begin, int64_t end) {
    /* BEGIN SOLUTION a7.3 */
    const uint8x16_t nibble = vdupq_n_u8(15);
    const int8x16_t eight = vdupq_n_s8(8);
    int64_t o = begin;
    for (; o + 4 <= end; o += 4) {
        float32x4_t sum[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
        for (int64_t b = 0; b < p->blocks; b++) {
            int8x16_t x0 = vld1q_s8(p->x + b * BLOCK), x1 = vld1q_s8(p->x + b * BLOCK + BYTES);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                int64_t at = (o + r) * p->blocks + b;
                /* code[j] = q[j] & 15, code[j + 16] = q[j] >> 4 */
                uint8x16_t bytes = vld1q_u8(p->q + at * BYTES);
                int8x16_t low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, nibble)), eight);
                int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), eight);
                /* parts += (code - 8) * x */
                int16x8_t p0 = vmlal_s8(vmull_s8(vget_low_s8(low), vget_low_s8(x0)), vget_high_s8(low), vget_high_s8(x0));
                int16x8_t p1 = vmlal_s8(vmull_s8(vget_low_s8(high), vget_low_s8(x1)), vget_high_s8(high), vget_high_s8(x1));
                float32x4_t parts = vcvtq_f32_s32(vaddq_s32(vpaddlq_s16(p0), vpaddlq_s16(p1)));
                sum[r] = vfmaq_n_f32(sum[r], parts, p->scales[at] * p->xscales[b]);
            }
        }
        for (int r = 0; r < 4; r++) p->y[o + r] = vaddvq_f32(sum[r]);
    }
    product_scalar(p, o, end);
    /* END SOLUTION */
}
#else
int simd_supported(void) { return 0; }
void product_simd(const struct product *p, int64_t begin, int64_t end) { product_unrolled(p, begin, end); }
#endif

/* Step 4, threads: rows 0..rows-1 shared out over `threads` threads, each a run of neighbours, each by step 3 (step 2 where
 * the processor lacks it). No row is done twice or left out, however few rows there are; the caller works too. */
struct share { const struct product *p; int64_t begin, end; };

static void *work(void *share) {
    const struct share *s = share;
    (simd_supported() ? product_simd : product_unrolled)(s->p, s->begin, s->end);
    return 0;
}

void product_threads(const struct product *p, int64_t threads) {
    /* BEGIN SOLUTION a7.4 */
    pthread_t thread[MAX_THREADS];
    struct share share[MAX_THREADS];
    int started[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 1) threads = 1;
    for (int64_t t = 0; t < threads; t++)  /* the ends meet: share t ends where t + 1 begins, the last one at `rows` */
        share[t] = (struct share){p, p->rows * t / threads, p->rows * (t + 1) / threads};
    for (int64_t t = 1; t < threads; t++) started[t] = pthread_create(&thread[t], 0, work, &share[t]) == 0;
    work(&share[0]);
    for (int64_t t = 1; t < threads; t++) {
        if (started[t]) pthread_join(thread[t], 0);
        else work(&share[t]);  /* no thread to be had: the work is done all the same */
    }
    /* END SOLUTION */
}
