/* A kernel file alone: the calls of kernels/calls*.c and engine.c reach the one kernel that was compiled with it, on this thread. */
#include "internal.h"

me_task ME_JOIN(ISA, KERNEL);
#if defined(WITH_CACHE) /* the kernels that stand in one file with cached_attention */
me_task ME_JOIN(ISA, join_spans), ME_JOIN(ISA, cache_store);
#endif
#if defined(WITH_NOISE) /* what gemm calls in a file of its own */
me_task ME_JOIN(ISA, perturb_tile);
#endif

void me_run(me_task *task, const void *args, int64_t n, int64_t grain, int64_t cost) {
    (void)grain, (void)cost;
    task(args, 0, n);
}

int me_get_threads(void) { return 1; }

const struct me_table *me_table_of(int isa) {
    static struct me_table table;
    (void)isa;
    table.x_rows = X_ROWS;
    table.KERNEL = ME_JOIN(ISA, KERNEL);
#if defined(WITH_CACHE)
    table.join_spans = ME_JOIN(ISA, join_spans);
    table.cache_store = ME_JOIN(ISA, cache_store);
#endif
#if defined(WITH_NOISE)
    table.perturb_tile = ME_JOIN(ISA, perturb_tile);
#endif
    return &table;
}
