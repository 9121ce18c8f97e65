/* The products of scalar/int_product.c with the sums of int_sums.h. */
#include "isa.h"
#include "../internal.h"
#include "../avx2/int_sums.h"
#include "../scalar/int_product.c"
