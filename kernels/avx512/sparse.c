/* scalar/sparse.c with floats put in their lanes by the instruction made for it; 16-bit ones as in avx2/sparse.c. */
#include "isa.h"
#include "../internal.h"
#include "../vec.h"

#define ME_SPARSE_EXPAND(p, byte) ((vf)_mm256_maskz_expand_ps((__mmask8)(byte), _mm256_loadu_ps(p)))

#include "../avx2/sparse.c"
