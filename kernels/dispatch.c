/* Which instruction sets this processor runs, in order from the plainest: index 0 is always scalar. */
#include "internal.h"
#include <stddef.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define ME_ENTRY_SCALAR(kernel) .kernel = me_scalar_##kernel,
#define ME_ENTRY_AVX2(kernel) .kernel = me_avx2_##kernel,
#define ME_ENTRY_AVX512(kernel) .kernel = me_avx512_##kernel,
#define ME_ENTRY_NEON(kernel) .kernel = me_neon_##kernel,

static int always(void) { return 1; }

#if defined(__x86_64__)
/* The processor's word and, for the wide registers, whether the operating system saves them */
static int has_avx2(void) {
    unsigned a, b, c = 0, d;
    __get_cpuid(1, &a, &b, &c, &d);  /* clang has no name for F16C */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (c & bit_F16C);
}
#if !defined(ME_WITHOUT_AVX512)
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif
#endif

static const struct me_table tables[] = {
    {.name = "scalar", .supported = always, .x_rows = 0, ME_KERNELS(ME_ENTRY_SCALAR)},
#if defined(__x86_64__)
    {.name = "avx2", .supported = has_avx2, .x_rows = 8, ME_KERNELS(ME_ENTRY_AVX2)},
#if !defined(ME_WITHOUT_AVX512)  /* setup.py: the compiler does not know the flags */
    {.name = "avx512", .supported = has_avx512, .x_rows = 16, ME_WIDE_KERNELS(ME_ENTRY_AVX512) ME_OTHER_KERNELS(ME_ENTRY_AVX2)},
#endif
#elif defined(__aarch64__)
    /* NEON is part of the 64-bit baseline; dotprod is asked for where it is used */
    {.name = "neon", .supported = always, .x_rows = 8, ME_KERNELS(ME_ENTRY_NEON)},
#endif
};

int me_isa_count(void) { return (int)(sizeof tables / sizeof tables[0]); }

const char *me_isa_name(int isa) { return tables[isa].name; }

int me_isa_supported(int isa) { return tables[isa].supported() != 0; }

const struct me_table *me_table_of(int isa) { return &tables[isa]; }
