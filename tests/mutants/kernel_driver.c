/* A kernel file alone: the calls of kernels/calls*.c reach the one kernel that was compiled with it, on this thread. */
#include "internal.h"

me_task ME_JOIN(ISA, KERNEL);

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
    return &table;
}
