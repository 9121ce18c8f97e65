/* The eight-lane loops of scalar/gemm.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/gemm.c"
