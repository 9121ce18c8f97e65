/* avx2/noise.c with vectors of eight counters, or sixteen numbers, and exclusive or of three operands in one instruction: it
 * says what the loops replace and how counters lie. Here, for eight counters in a vector:
 *
 *     A = [w1 w0] of counters 0 4 | 1 5 | 2 6 | 3 7      B = [w3 w2] of the same
 *     shuffle(A, B) = [w0 w1 w2 w3] of counters 0 | 1 | 2 | 3, then of 4 | 5 | 6 | 7
 *
 * Per 16 numbers: 29 instructions of Philox and some 51 of the inverse normal, each as long as two of AVX2's on Zen 4. One core
 * of an AMD EPYC (Zen 4, 3.7 GHz) beside other work, best of alternating runs, 2026-11-23: 1.24 times the numbers of AVX2's
 * kernel (1.1 a nanosecond), perturbing weights 1.28 times. */
#include "isa.h"
#include <immintrin.h>
#include <stdint.h>

#define ME_OWN_VECTOR
#define OP(name) _mm512_##name
#define KEEP(v) __asm__("" : "+v"(v))
#define KEEP_XOR(v)  /* a later exclusive or joins it: one instruction */
#define COUNTERS 8
#define COUNTER_LANES _mm512_setr_epi32(0, 0, 4, 0, 1, 0, 5, 0, 2, 0, 6, 0, 3, 0, 7, 0)
#define ROUNDS(s) ROUND(s)
typedef __m512i wide;
typedef float numbers __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef __m512 floats;

#include "../avx2/noise.c"
