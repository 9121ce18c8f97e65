/* The integer products for processors with sdot; called only where the system reports it (int_product.c). */
#pragma GCC target("arch=armv8.2-a+dotprod")
#define ME_ISA neon_dotprod
#define ME_NEON
#define ME_DOTPROD
#include "../internal.h"
#include "int_sums.h"
#include "../scalar/int_product.c"
