/* Which instruction sets this processor runs, in order from the plainest: index 0 is always scalar. */
#include "internal.h"
#include <stddef.h>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#define ME_ENTRY_SCALAR(kernel) .kernel = me_scalar_##kernel,
#define ME_ENTRY_AVX2(kernel) .kernel = me_avx2_##kernel,
#define ME_ENTRY_NEON(kernel) .kernel = me_neon_##kernel,

static const struct me_table tables[] = {
    {.name = "scalar", ME_KERNELS(ME_ENTRY_SCALAR)},
#if defined(__x86_64__)
    {.name = "avx2", ME_KERNELS(ME_ENTRY_AVX2)},
#elif defined(__aarch64__)
    {.name = "neon", ME_KERNELS(ME_ENTRY_NEON)},
#endif
};

int me_isa_count(void) { return (int)(sizeof tables / sizeof tables[0]); }

const char *me_isa_name(int isa) { return tables[isa].name; }

int me_isa_supported(int isa) {
    if (isa == 0) return 1;
#if defined(__x86_64__)
    /* cpuid and, for the wide registers, whether the operating system saves them */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#elif defined(__aarch64__)
    return 1;  /* NEON is part of the 64-bit baseline; dotprod is asked for where it is used */
#else
    return 0;
#endif
}

const struct me_table *me_table_of(int isa) { return &tables[isa]; }
