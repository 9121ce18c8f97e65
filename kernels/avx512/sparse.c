/* scalar/sparse.c with sixteen lanes in one vector, which an instruction made for it fills. */
#include "isa.h"
#include "../internal.h"
#include "../vec.h"

#define ME_SPARSE_SPREAD
#define ME_SPARSE_WIDE
#define ROWS_OF_THREE 4

typedef __m512 vw;
INLINE vw w_zero(void) { return _mm512_setzero_ps(); }
INLINE vw w_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vw w_load_low(const float *p) { return _mm512_maskz_loadu_ps(0xff, p); }
INLINE void w_store(float *p, vw w) { _mm512_storeu_ps(p, w); }
INLINE void w_store_low(float *p, vw w) { _mm512_mask_storeu_ps(p, 0xff, w); }
INLINE vw w_fma(vw a, vw b, vw c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float w_sum(vw w) { return v_sum((vf)_mm512_castps512_ps256(w) + (vf)_mm512_extractf32x8_ps(w, 1)); }
INLINE void w_tile(const int rows, const int tokens, vw s[4][3], const float *w, const float *x, int64_t in) {
    vw now[3];
#pragma GCC unroll 3
    for (int t = 0; t < tokens; t++) now[t] = w_load(x + t * in);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        vw wide = w_load(w + r * in);
        __asm__("" : "+v"(wide));  /* loaded once, not by each multiply-add: 512-bit loads are one a cycle */
#pragma GCC unroll 3
        for (int t = 0; t < tokens; t++) s[r][t] = w_fma(wide, now[t], s[r][t]);
    }
}
INLINE int64_t count_all(unsigned mask) { return __builtin_popcount(mask); }

/* lane j = the next value where bit j of mask is set, else 0. Expanding straight from memory is microcode on some processors,
 * and AMD's Zen 4 waits for what the register held before even where all of it is replaced: a zeroed one is known at once. */
INLINE vw sixteen(const int half, const char *p, unsigned mask) {
    __m512 next = half ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)) : _mm512_loadu_ps(p), w = _mm512_setzero_ps();
    __mmask16 kept = (__mmask16)mask;
    __asm__("vexpandps %1, %0%{%2%}" : "+v"(w) : "v"(next), "Yk"(kept));
    return w;
}

#include "../scalar/sparse.c"
