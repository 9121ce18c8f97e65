/* scalar/nf4.c with eight lookups at a time: a permutation of each half of the block's sixteen values, and a choice
 * between the two. 0.09 ns a weight where the scalar loop takes 0.5 (one core of an AMD EPYC, 2026-11-23). */
#include "isa.h"
#include "../internal.h"
#include "../vec.h"

#define ME_NF4_READ

/* w[2j] = value[q[j] >> 4], w[2j + 1] = value[q[j] & 15] for n bytes, n a multiple of 4; value = table * scale */
INLINE void read_block(float *w, const uint8_t *q, const float *table, float scale, int64_t n) {
    const vi shift = {4, 0, 12, 8, 20, 16, 28, 24};
    vf low = v_load(table) * v_set(scale), high = v_load(table + LANES) * v_set(scale);
    for (int64_t j = 0; j < n; j += 4) {
        int32_t bytes;
        memcpy(&bytes, q + j, sizeof bytes);
        __m256i at = (__m256i)(v_seti(bytes) >> shift);  /* a permutation reads the low three bits, a blend the sign */
        __m256 a = _mm256_permutevar8x32_ps((__m256)low, at), b = _mm256_permutevar8x32_ps((__m256)high, at);
        v_store(w + 2 * j, (vf)_mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28))));
    }
}

#include "../scalar/nf4.c"
