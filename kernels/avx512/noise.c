/* avx2/noise.c with vectors of eight counters, or sixteen numbers, and exclusive or of three operands in one instruction. */
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
