/* The integer products for processors with smmla; called only where the system reports it (int_product.c). */
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#define ME_ISA neon_i8mm
#define ME_NEON
#define ME_DOTPROD
#define ME_I8MM
#include "../internal.h"
#include "int_sums.h"
#include "../scalar/int_product.c"
