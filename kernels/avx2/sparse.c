/* scalar/sparse.c with eight columns at a time: one permutation puts the values in their lanes. */
#include "isa.h"
#include "../internal.h"
#include "../sparse_tables.h"
#include "../vec.h"

#define ME_SPARSE_SPREAD

static const uint8_t pairs[256][16] __attribute__((aligned(16))) = {ME_256(ME_PAIRS)};
static const int8_t lanes[256][8] = {ME_256(ME_LANES)};

/* lane j = the next value where bit j of byte is set, else 0 */
INLINE vf spread(const float *p, unsigned byte) {
    __m256i place = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)lanes[byte]));
    __m256 moved = _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), place);
    return (vf)_mm256_blendv_ps(moved, _mm256_setzero_ps(), _mm256_castsi256_ps(place));  /* the sign bit says: none */
}

INLINE vf spread_half(const uint16_t *p, unsigned byte) {
    __m128i place = _mm_load_si128((const __m128i *)pairs[byte]);
    return (vf)_mm256_cvtph_ps(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p), place));
}

INLINE int64_t count(unsigned byte) { return __builtin_popcount(byte); }

#include "../scalar/sparse.c"
