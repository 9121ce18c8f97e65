/* The products of scalar/int_product.c on the NEON baseline. Processors that have the dot product or the matrix instructions
 * take the kernels of the two files beside this one; the sums are the same integers. */
#include "isa.h"
#include "../internal.h"
#include "int_sums.h"
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define ME_PRODUCT(name) static void baseline_##name(const void *args, int64_t begin, int64_t end)
#include "../scalar/int_product.c"

#define DECLARE(name) me_task me_neon_dotprod_##name, me_neon_i8mm_##name;
DECLARE(int4_int8_linear)
DECLARE(int4_int8_partials)
DECLARE(q8_int8_linear)

/* 0 baseline, 1 dotprod, 2 i8mm as well; bits of Linux's hardware capabilities */
static int level(void) {
#if defined(__linux__)
    if (!(getauxval(AT_HWCAP) & 1ul << 20)) return 0;
    return getauxval(AT_HWCAP2) & 1ul << 13 ? 2 : 1;
#else
    return 0;
#endif
}

#define CHOOSE(name) \
    ME_KERNEL(name) { \
        static me_task *const ways[] = {baseline_##name, me_neon_dotprod_##name, me_neon_i8mm_##name}; \
        ways[level()](args, begin, end); \
    }
CHOOSE(int4_int8_linear)
CHOOSE(int4_int8_partials)
CHOOSE(q8_int8_linear)
