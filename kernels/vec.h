/* Eight float lanes, the one vector width of all kernels: the order of every sum is the same on each instruction set.
 *
 * GCC's vector extension carries + - * / and comparisons; the compiler splits eight lanes into what the machine has
 * (SSE2 and NEON: two registers of four; AVX2: one of eight). Only what the extension cannot say is an intrinsic here.
 * A fused multiply-add is used where the instruction set has one, by v_fma and never by the compiler on its own
 * (-ffp-contract=off); the noise kernels, whose bits are specified, do not call it.
 * Everything is static inline: a shared symbol compiled with -mavx2 could be linked into baseline code. */
#ifndef MINEDGE_VEC_H
#define MINEDGE_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(ME_AVX2)
#include <immintrin.h>
#elif defined(ME_NEON)
#include <arm_neon.h>
#endif

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));

INLINE vf v_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void v_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf v_set(float x) { return (vf){x, x, x, x, x, x, x, x}; }
INLINE vi v_seti(int32_t x) { return (vi){x, x, x, x, x, x, x, x}; }
INLINE vu v_setu(uint32_t x) { return (vu){x, x, x, x, x, x, x, x}; }

/* The first n < 8 floats, the rest filled with `fill`; never reads past p + n. */
INLINE vf v_load_part(const float *p, int64_t n, float fill) {
    float t[LANES] = {fill, fill, fill, fill, fill, fill, fill, fill};
    for (int64_t i = 0; i < n; i++) t[i] = p[i];
    return v_load(t);
}
INLINE void v_store_part(float *p, vf v, int64_t n) {
    float t[LANES];
    v_store(t, v);
    for (int64_t i = 0; i < n; i++) p[i] = t[i];
}

/* Loads and stores of columns c.. of a row of C: whole vectors inside, parts at the end. */
INLINE vf row_load(const float *row, int64_t c, int64_t C) {
    return c + LANES <= C ? v_load(row + c) : v_load_part(row + c, C - c, 0);
}
INLINE void row_store(float *row, int64_t c, int64_t C, vf v) {
    if (c + LANES <= C) v_store(row + c, v);
    else v_store_part(row + c, v, C - c);
}

/* mask ? a : b, lane by lane; mask lanes are all ones or all zeros, as comparisons make them. */
INLINE vf v_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

#if defined(ME_AVX2)
/* a * b + c, rounded once */
INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
/* Both return x where it is NaN. */
INLINE vf v_max(vf bound, vf x) { return (vf)_mm256_max_ps((__m256)bound, (__m256)x); }
INLINE vf v_min(vf bound, vf x) { return (vf)_mm256_min_ps((__m256)bound, (__m256)x); }
INLINE vf v_sqrt(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
#elif defined(ME_NEON)
typedef union { vf v; float32x4_t half[2]; } vf_halves;
INLINE vf v_fma(vf a, vf b, vf c) {
    vf_halves x = {a}, y = {b}, z = {c};
    z.half[0] = vfmaq_f32(z.half[0], x.half[0], y.half[0]);
    z.half[1] = vfmaq_f32(z.half[1], x.half[1], y.half[1]);
    return z.v;
}
INLINE vf v_max(vf bound, vf x) { return v_select((vi)(x < bound), bound, x); }
INLINE vf v_min(vf bound, vf x) { return v_select((vi)(x > bound), bound, x); }
INLINE vf v_sqrt(vf x) {
    vf_halves h = {x};
    h.half[0] = vsqrtq_f32(h.half[0]);
    h.half[1] = vsqrtq_f32(h.half[1]);
    return h.v;
}
#else
INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf v_max(vf bound, vf x) { return v_select((vi)(x < bound), bound, x); }
INLINE vf v_min(vf bound, vf x) { return v_select((vi)(x > bound), bound, x); }
INLINE vf v_sqrt(vf x) {
    vf r;
    for (int i = 0; i < LANES; i++) r[i] = __builtin_sqrtf(x[i]);  /* exactly rounded by IEEE 754 */
    return r;
}
#endif

/* The one order in which lanes are added. */
INLINE float v_sum(vf v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
INLINE float v_largest(vf v) {
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
}

/* e^x of n vectors within 1.5 ulp: x = k ln 2 + r, |r| <= ln 2 / 2, Taylor's series of e^r to r^7 (remainder under 6e-9), times
 * 2^k in two factors so that results down to the denormals and up to the overflow to infinity come out right. NaN stays NaN.
 * One vector is a chain of 16 operations of which each waits for the last: several side by side keep the processor busy. */
#define V_EACH _Pragma("GCC unroll 8") for (int i = 0; i < n; i++)
INLINE void v_exps(const int n, vf *x) {
    const vf magic = v_set(12582912.0f);  /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    vf t[8], p[8];
    V_EACH x[i] = v_min(v_set(89.0f), v_max(v_set(-104.0f), x[i]));
    V_EACH t[i] = v_fma(x[i], v_set(1.44269504f), magic);
    V_EACH x[i] = v_fma(t[i] - magic, v_set(-0.693359375f), x[i]);  /* ln 2 in two parts: the first product is exact */
    V_EACH x[i] = v_fma(t[i] - magic, v_set(2.12194440e-4f), x[i]);
    V_EACH p[i] = v_fma(v_set(1.0f / 5040), x[i], v_set(1.0f / 720));
    V_EACH p[i] = v_fma(p[i], x[i], v_set(1.0f / 120));
    V_EACH p[i] = v_fma(p[i], x[i], v_set(1.0f / 24));
    V_EACH p[i] = v_fma(p[i], x[i], v_set(1.0f / 6));
    V_EACH p[i] = v_fma(p[i], x[i], v_set(0.5f));
    V_EACH p[i] = v_fma(p[i], x[i], v_set(1.0f));
    V_EACH p[i] = v_fma(p[i], x[i], v_set(1.0f));
#if defined(ME_AVX512)
    V_EACH x[i] = (vf)_mm256_scalef_ps((__m256)p[i], (__m256)(t[i] - magic));  /* p 2^k, rounded once as below */
#else
    V_EACH {
        vi k = (vi)t[i] - (vi)magic, half = k >> 1;
        x[i] = p[i] * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
    }
#endif
}
INLINE vf v_exp(vf x) {
    v_exps(1, &x);
    return x;
}

/* 1 / (1 + e^-x) of n vectors */
INLINE void v_sigmoids(const int n, vf *x) {
    V_EACH x[i] = -x[i];
    v_exps(n, x);
    V_EACH x[i] = v_set(1.0f) / (v_set(1.0f) + x[i]);
}

/* sum_i a_i b_i: four vectors of partial sums, so that the adds need not wait for one another. */
INLINE float v_dot(const float *a, const float *b, int64_t n) {
    vf s0 = v_set(0), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 = v_fma(v_load(a + i), v_load(b + i), s0);
        s1 = v_fma(v_load(a + i + 8), v_load(b + i + 8), s1);
        s2 = v_fma(v_load(a + i + 16), v_load(b + i + 16), s2);
        s3 = v_fma(v_load(a + i + 24), v_load(b + i + 24), s3);
    }
    for (; i + 8 <= n; i += 8) s0 = v_fma(v_load(a + i), v_load(b + i), s0);
    if (i < n) s1 = v_fma(v_load_part(a + i, n - i, 0), v_load_part(b + i, n - i, 0), s1);
    return v_sum((s0 + s1) + (s2 + s3));
}

/* y += s * x */
INLINE void v_axpy(float *y, float s, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) v_store(y + i, v_fma(v_set(s), v_load(x + i), v_load(y + i)));
    if (i < n) v_store_part(y + i, v_fma(v_set(s), v_load_part(x + i, n - i, 0), v_load_part(y + i, n - i, 0)), n - i);
}

/* column[j][i] = x[i * x_row + j] for i, j < 8 */
INLINE void transpose8(vf column[8], const float *x, int64_t x_row) {
#if defined(ME_AVX2)
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(x + i * x_row);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int j = 0; j < 4; j++) {
        column[j] = (vf)_mm256_permute2f128_ps(r[j], r[j + 4], 0x20);
        column[j + 4] = (vf)_mm256_permute2f128_ps(r[j], r[j + 4], 0x31);
    }
#else
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 8; i++) column[j][i] = x[i * x_row + j];
#endif
}

/* float16 bits to float32, exact. The multiplication rebuilds the exponent, denormals included. */
INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    float f;
    if (rest >= 0x0f800000u) {  /* infinity or NaN */
        rest |= 0x7f800000u | sign;
        memcpy(&f, &rest, 4);
        return f;
    }
    memcpy(&f, &rest, 4);
    f *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

/* Eight float16 values. */
INLINE vf v_half(const uint16_t *h) {
#if defined(ME_AVX2)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h));
#elif defined(ME_NEON)
    vf_halves r;
    r.half[0] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
    r.half[1] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h + 4)));
    return r.v;
#else
    vf r;
    for (int l = 0; l < LANES; l++) r[l] = half_to_float(h[l]);
    return r;
#endif
}

/* float32 to float16 bits, to nearest, ties to even, as NumPy's astype. */
INLINE uint16_t float_to_half(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = (u >> 16) & 0x8000;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);  /* 65520 and above round to infinity */
    if (u < 0x38800000u) {  /* below 2^-14: adding 0.5 lets the float32 adder round at 2^-24 */
        float a;
        memcpy(&a, &u, 4);
        a += 0.5f;
        memcpy(&u, &a, 4);
        return (uint16_t)(sign | (u - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

#endif
