/* Integer products by maddubs, whose first operand is unsigned: the codes 0..15; the -8 is taken off as 8 * sum(x), which is
 * the same for all rows of the weight. Two products of 15 * 128 stay far below int16, so nothing saturates. */
#include "isa.h"
#include "../internal.h"
#include "../vec.h"

#define ME_BLOCK_SUMS
typedef struct { __m256i code[8]; } me_codes;

/* code[b][j] = q[b][j] & 15, code[b][j + 16] = q[b][j] >> 4 */
INLINE void unpack(me_codes *u, const uint8_t *q, int64_t count) {
    for (int b = 0; b < 8; b++) {
        if (b < count) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(q + 16 * b));
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
            u->code[b] = _mm256_and_si256(both, _mm256_set1_epi8(15));
        } else {
            u->code[b] = _mm256_setzero_si256();
        }
    }
}

/* sum over j of code[b][j] * x[b][j], as eight int32 parts */
INLINE __m256i block_parts(const me_codes *u, const int8_t *x, int64_t count, int b) {
    if (b >= count) return _mm256_setzero_si256();
    __m256i pairs = _mm256_maddubs_epi16(u->code[b], _mm256_loadu_si256((const __m256i *)(x + 32 * b)));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Lane b: the sum of block b. Pairwise adds bring eight vectors of parts down to one vector of sums. */
INLINE vi block_sums(const me_codes *u, const int8_t *x, int64_t count) {
    __m256i s01 = _mm256_hadd_epi32(block_parts(u, x, count, 0), block_parts(u, x, count, 1));
    __m256i s23 = _mm256_hadd_epi32(block_parts(u, x, count, 2), block_parts(u, x, count, 3));
    __m256i s45 = _mm256_hadd_epi32(block_parts(u, x, count, 4), block_parts(u, x, count, 5));
    __m256i s67 = _mm256_hadd_epi32(block_parts(u, x, count, 6), block_parts(u, x, count, 7));
    __m256i s0123 = _mm256_hadd_epi32(s01, s23), s4567 = _mm256_hadd_epi32(s45, s67);
    return (vi)_mm256_add_epi32(_mm256_permute2x128_si256(s0123, s4567, 0x20), _mm256_permute2x128_si256(s0123, s4567, 0x31));
}

#include "../scalar/int4.c"
