/* The integer products for processors with sdot; called only where the system reports it (int4.c). */
#pragma GCC target("arch=armv8.2-a+dotprod")
#define ME_ISA neon_dotprod
#define ME_NEON
#define ME_DOTPROD
#define ME_INT4_PRODUCTS_ONLY
#include "../internal.h"
#include "block_sums.h"
#include "../scalar/int4.c"
