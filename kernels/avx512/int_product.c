/* The products of scalar/int_product.c with the sums of int_sums.h and int_few.h. */
#include "isa.h"
#include "../internal.h"
#include "int_sums.h"
#include "../int_product.h"
#include "int_few.h"

ME_KERNEL(int4_int8_linear) { int_product(args, 16, begin, end); }

ME_KERNEL(q8_int8_linear) { int_product(args, 32, begin, end); }
