/* Runs the SIMD step of a student's file as a program of its own: for a processor that is emulated.
 *
 * Compiled with -DSTUDENT='"file.c"'. Requests on standard input: int64 rows, blocks, begin, end, at_end, then q, scales, x,
 * xscales, xsums and y as they lie in memory. Answer: one byte, 0 = not implemented, 1 = done; then y. */
#define _GNU_SOURCE
#include STUDENT
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* `size` bytes between two forbidden pages, at the end or the beginning of what lies between. */
static void *guarded(size_t size, int at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (size + page) / page * page;
    char *base = mmap(0, inside + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base, page, PROT_NONE) || mprotect(base + page + inside, page, PROT_NONE)) exit(3);
    return base + page + (at_end ? inside - size : 0);
}

static void *received(size_t size, int at_end) {
    void *memory = guarded(size, at_end);
    if (size && fread(memory, 1, size, stdin) != size) exit(4);
    return memory;
}

int main(void) {
    int64_t head[5];
    while (fread(head, sizeof *head, 5, stdin) == 5) {
        int64_t rows = head[0], blocks = head[1];
        int at_end = (int)head[4];
        struct product p = {.rows = rows, .blocks = blocks};
        p.q = received((size_t)(rows * blocks * BYTES), at_end);
        p.scales = received((size_t)(rows * blocks) * sizeof(float), at_end);
        p.x = received((size_t)(blocks * BLOCK), at_end);
        p.xscales = received((size_t)blocks * sizeof(float), at_end);
        p.xsums = received((size_t)blocks * sizeof(int32_t), at_end);
        p.y = received((size_t)rows * sizeof(float), at_end);
        not_implemented = 0;
        product_simd(&p, head[2], head[3]);
        putchar(not_implemented == 0);
        fwrite(p.y, sizeof(float), (size_t)rows, stdout);
        fflush(stdout);
    }
    return 0;
}
