/* Integer products on the NEON baseline, by widening multiplies. Processors that have the dot product instructions take the
 * kernels of int4_dotprod.c; the sums are the same integers. */
#include "isa.h"
#include "../internal.h"
#include "block_sums.h"
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define ME_PRODUCT(name) static void baseline_##name(const void *args, int64_t begin, int64_t end)
#include "../scalar/int4.c"

me_task me_neon_dotprod_int4_int8_linear, me_neon_dotprod_int4_int8_partials;

static int has_dotprod(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return 0;
#endif
}

ME_KERNEL(int4_int8_linear) {
    (has_dotprod() ? me_neon_dotprod_int4_int8_linear : baseline_int4_int8_linear)(args, begin, end);
}

ME_KERNEL(int4_int8_partials) {
    (has_dotprod() ? me_neon_dotprod_int4_int8_partials : baseline_int4_int8_partials)(args, begin, end);
}
