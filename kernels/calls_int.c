/* Public functions of noise, packed weights (int4, int8, 16-bit floats, NF4) and masks. */
#include "internal.h"
#include "int4_tiles.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define RUN(kernel, n, grain, cost) me_run(me_table_of(isa)->kernel, &a, n, grain, cost)

/* blocks, counted from number 0 of the tensor, that start .. start + n - 1 touches */
static int64_t noise_blocks(int64_t start, int64_t n) { return n > 0 ? (start + n - 1) / ME_NOISE_BLOCK - start / ME_NOISE_BLOCK + 1 : 0; }

void me_normal(int isa, float *z, uint32_t key0, uint32_t key1, uint32_t step, uint32_t sample, uint32_t tensor, int64_t start,
               int64_t n) {
    struct me_noise a = {z, NULL, NULL, 0, 0, key0, key1, step, sample, tensor, start, n};
    RUN(normal, noise_blocks(start, n), 1, 400);
}

void me_perturb(int isa, float *out, float *other, const float *weight, float decay, float scale, uint32_t key0, uint32_t key1,
                uint32_t step, uint32_t sample, uint32_t tensor, int64_t start, int64_t n) {
    struct me_noise a = {out, other, weight, decay, scale, key0, key1, step, sample, tensor, start, n};
    RUN(perturb, noise_blocks(start, n), 1, 500);
}

/* Blocks as me_gemm cuts them, of half as many columns, for both sides' panels stand at a time; only columns are halved where that
 * will do, for each block of rows makes z anew. */
int me_linear_both(int isa, float *out, const float *x, const float *weight, float scale, uint32_t key0, uint32_t key1, uint32_t step,
                   uint32_t sample, uint32_t tensor, int64_t M, int64_t N, int64_t K) {
    int failed = 0;
    struct me_noise noise = {NULL, NULL, weight, 1, scale, key0, key1, step, sample, tensor, 0, 0, 0};
    struct me_gemm a = {.c = out, .a = x, .failed = &failed, .a_row = K, .a_k = 1, .b_k = 1, .b_n = K, .M = M, .N = N, .K = K,
                        .block_m = 768, .block_n = 192, .noise = &noise, .perturb_tile = me_table_of(isa)->perturb_tile,
                        .c_minus = out + M * N, .a_minus = x + M * K};
    int64_t blocks, threads = me_get_threads();
    for (;;) {
        int64_t rows = M < a.block_m ? M : a.block_m;
        blocks = ((M + a.block_m - 1) / a.block_m) * ((N + a.block_n - 1) / a.block_n);
        if (threads > 1 && blocks < 4 * threads && a.block_n > 48) a.block_n /= 2;
        else if (threads > 1 && blocks < 2 * threads && rows > 96) a.block_m = ((rows + 1) / 2 + 5) / 6 * 6;
        else break;
    }
    RUN(gemm, blocks, 1, 2 * M * N / blocks * K / 8);
    return failed;
}

void me_int4_quantize(int isa, uint8_t *qweight, uint16_t *scales, const float *weight, int64_t group, int64_t out, int64_t in) {
    struct me_int4 a = {.q_out = qweight, .s_out = scales, .w = weight, .group = group, .in = in};
    RUN(int4_quantize, out, 1, 4 * in);
}

void me_int4_dequantize(int isa, float *weight, const uint8_t *qweight, const uint16_t *scales, int64_t group, int64_t out,
                        int64_t in) {
    struct me_int4 a = {.w_out = weight, .q = qweight, .s = scales, .group = group, .in = in};
    RUN(int4_dequantize, out, 1, in);
}

static void tile_rows(const void *args, int64_t begin, int64_t end) {
    const struct me_int4_tile *a = args;
    const int64_t blocks = a->in / BLOCK, groups = a->in / a->group;
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t o = tile * TILE, rows = at_most(TILE, a->out - o);
        tile_codes(a->codes + tile * blocks * TILE_BLOCK, a->q + o * blocks * 16, blocks * 16, rows, blocks);
        tile_scales(a->tile_scales + tile * groups * TILE, a->s + o * groups, groups, rows, groups);
    }
}

void me_int4_tile(uint8_t *codes, uint16_t *tile_scales, const uint8_t *qweight, const uint16_t *scales, int64_t group, int64_t out,
                  int64_t in) {
    struct me_int4_tile a = {codes, tile_scales, qweight, scales, group, out, in};
    me_run(tile_rows, &a, (out + TILE - 1) / TILE, 1, 4 * in);
}

int me_int4_gemm(int isa, float *c, const float *a_, const uint8_t *qweight, const uint16_t *scales, int64_t group, int back, int64_t M,
                 int64_t out, int64_t in) {
    struct me_int4 weight = {.q = qweight, .s = scales, .group = group, .in = in};
    return me_read_gemm(isa, me_table_of(isa)->int4_gemm, c, a_, &weight, back, M, out, in);
}

void me_int8_quantize(int isa, int8_t *xq, float *xscales, const float *x, int64_t N, int64_t in) {
    struct me_int8 a = {xq, xscales, x, in};
    RUN(int8_quantize, N, 1, 2 * in);
}

void me_int8_sums(int32_t *xsums, const int8_t *xq, int64_t N, int64_t in) {
    for (int64_t b = 0; b < N * in / 32; b++) {
        int32_t sum = 0;
        for (int j = 0; j < 32; j++) sum += xq[b * 32 + j];
        xsums[b] = 8 * sum;
    }
}

static void pack_x8(const void *args, int64_t begin, int64_t end) {
    const struct me_pack_x8 *a = args;
    int64_t blocks = a->in / 32;
    for (int64_t g = begin; g < end; g++) {
        const int pair = a->pairs && (g | 1) < a->groups, lane = pair ? 8 * (g & 1) : 0, width = pair ? 64 : 32;
        struct me_x8 *group = a->x8 + (pair ? g & ~(int64_t)1 : g) * blocks;
        for (int64_t b = 0; b < blocks; b++) {
            struct me_x16 *two = (struct me_x16 *)group + b;
            int8_t *code = (pair ? two->code[0] : group[b].code[0]) + 4 * lane;
            float *scale = (pair ? two->scale : group[b].scale) + lane;
            int32_t *sums = (pair ? two->sum : group[b].sum) + lane;
            for (int t = 0; t < 8; t++) {
                const int8_t *x = a->xq + (8 * g + t) * a->in + 32 * b;
                int32_t sum = 0;
                for (int j = 0; j < 32; j++) sum += x[j];
                for (int k = 0; k < 8; k++) memcpy(code + width * k + 4 * t, x + 4 * k, 4);
                sums[t] = a->offset * sum;
                scale[t] = a->xscales[(8 * g + t) * blocks + b];
            }
        }
    }
}

struct linears { me_task *product; const struct me_int_linear *a; int n; };

/* Items: rows of all the weights one after the other, each weight from a multiple of 16 on. */
static void run_linears(const void *args, int64_t begin, int64_t end) {
    const struct linears *l = args;
    int64_t start = 0;
    for (int i = 0; i < l->n; i++) {
        int64_t out = l->a[i].out, from = begin > start ? begin - start : 0, to = end - start < out ? end - start : out;
        if (from < to) l->product(l->a + i, from, to);
        start += (out + TILE - 1) / TILE * TILE;
    }
}

/* Products of the same rows of x as one job. Eight rows or more are turned over first, into x8, for those instruction sets that
 * want them so; without x8 the product goes without: the bits are the same. */
void me_int_linears(int isa, me_task *product, struct me_int_linear *a, int n, int32_t offset, struct me_x8 *x8) {
    int64_t groups = a->N / 8, rows = 0;
    const int x_rows = me_table_of(isa)->x_rows;
    if (x_rows == 0 || groups == 0) x8 = NULL;
    if (x8 != NULL) {
        struct me_pack_x8 pack = {x8, a->xq, a->xscales, offset, x_rows == 16, groups, a->in};
        me_run(pack_x8, &pack, groups, 1, 4 * a->in);
    }
    for (int i = 0; i < n; i++) {
        a[i].x8 = x8;
        rows += (a[i].out + TILE - 1) / TILE * TILE;
    }
    struct linears l = {product, a, n};
    me_run(run_linears, &l, rows, TILE, a->N * a->in / 8);
}

static void int_linear(int isa, me_task *product, struct me_int_linear *a, int32_t offset) {
    struct me_x8 *x8 = NULL;
    int64_t groups = a->N / 8, blocks = a->in / 32;
    if (me_table_of(isa)->x_rows > 0 && groups > 0 && blocks > 0) x8 = aligned_alloc(64, (size_t)(groups * blocks) * sizeof *x8);
    me_int_linears(isa, product, a, 1, offset, x8);
    free(x8);
}

void me_int4_int8_linear(int isa, float *y, const int32_t *xsums, const int8_t *xq, const float *xscales, const uint8_t *qweight,
                         const uint16_t *scales, int64_t group, int64_t N, int64_t out, int64_t in) {
    struct me_int_linear a = {.y = y, .xq = xq, .xsums = xsums, .xscales = xscales, .q = qweight, .s = scales, .group = group, .N = N,
                              .out = out, .in = in};
    int_linear(isa, me_table_of(isa)->int4_int8_linear, &a, 8);
}

void me_int4_tile_linear(int isa, float *y, const int32_t *xsums, const int8_t *xq, const float *xscales, const uint8_t *codes,
                         const uint16_t *tile_scales, int64_t group, int64_t N, int64_t out, int64_t in) {
    struct me_int_linear a = {.y = y, .xq = xq, .xsums = xsums, .xscales = xscales, .q = codes, .s = tile_scales, .tiled = 1,
                              .group = group, .N = N, .out = out, .in = in};
    int_linear(isa, me_table_of(isa)->int4_int8_linear, &a, 8);
}

void me_q8_int8_linear(int isa, float *y, const int8_t *xq, const float *xscales, const int8_t *qweight, const uint16_t *scales,
                       int64_t N, int64_t out, int64_t in) {
    struct me_int_linear a = {.y = y, .xq = xq, .xscales = xscales, .q = (const uint8_t *)qweight, .s = scales, .group = 32, .N = N,
                              .out = out, .in = in};
    int_linear(isa, me_table_of(isa)->q8_int8_linear, &a, 128);
}

void me_int4_int8_partials(int isa, int32_t *partials, const int32_t *xsums, const int8_t *xq, const uint8_t *qweight, int64_t N,
                           int64_t out, int64_t in) {
    struct me_int_linear a = {.partials = partials, .xq = xq, .xsums = xsums, .q = qweight, .group = 32, .N = N, .out = out, .in = in};
    RUN(int4_int8_partials, out, TILE, N * in / 4);
}

void me_q8_dequantize(int isa, float *weight, const int8_t *qweight, const uint16_t *scales, int64_t out, int64_t in) {
    struct me_q8 a = {weight, qweight, scales, in};
    RUN(q8_dequantize, out, 1, in);
}

void me_half_linear(int isa, float *y, const float *x, const uint16_t *weight, int bfloat, int64_t N, int64_t out, int64_t in) {
    struct me_half a = {y, x, weight, bfloat, N, out, in};
    RUN(half_linear, out, 4, N * in / 4);
}

int me_half_gemm(int isa, float *c, const float *a_, const uint16_t *half, int bfloat, int back, int64_t M, int64_t out, int64_t in) {
    struct me_half weight = {.weight = half, .bfloat = bfloat, .in = in};
    return me_read_gemm(isa, me_table_of(isa)->half_gemm, c, a_, &weight, back, M, out, in);
}

void me_half_widen(int isa, float *out, const uint16_t *half, int bfloat, int64_t n) {
    struct me_half a = {.y = out, .weight = half, .bfloat = bfloat};
    RUN(half_widen, n, 1024, 1);
}

void me_nf4_quantize(int isa, uint8_t *qweight, float *absmax, const float *weight, const float *midpoints, int64_t block,
                     int64_t out, int64_t in) {
    struct me_nf4 a = {.q_out = qweight, .s_out = absmax, .w = weight, .table = midpoints, .block = block, .in = in};
    RUN(nf4_quantize, out, 1, 12 * in);
}

void me_nf4_dequantize(int isa, float *weight, const uint8_t *qweight, const float *absmax, const float *codebook, int64_t block,
                       int64_t out, int64_t in) {
    struct me_nf4 a = {.w_out = weight, .q = qweight, .s = absmax, .table = codebook, .block = block, .in = in};
    RUN(nf4_dequantize, out, 1, 2 * in);
}

int me_nf4_gemm(int isa, float *c, const float *a_, const uint8_t *qweight, const float *absmax, const float *codebook, int64_t block,
                int back, int64_t M, int64_t out, int64_t in) {
    struct me_nf4 weight = {.q = qweight, .s = absmax, .table = codebook, .block = block, .in = in};
    return me_read_gemm(isa, me_table_of(isa)->nf4_gemm, c, a_, &weight, back, M, out, in);
}

void me_mask_apply(int isa, float *out, const float *weight, const uint8_t *bits, int64_t n) {
    struct me_mask a = {out, weight, bits, n};
    RUN(mask_apply, n, 1024, 1);
}

int64_t me_mask_count(const uint8_t *bits, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n / 8; i++) count += __builtin_popcount(bits[i]);
    if (n % 8) count += __builtin_popcount(bits[n / 8] & ((1u << n % 8) - 1));
    return count;
}

/* One copy of each loop per entry size: a constant size becomes one move. */
static inline __attribute__((always_inline)) void pack(char *values, const char *weight, const uint8_t *bits, int64_t n, size_t size) {
    for (int64_t i = 0; i < n; i++)
        if (bits[i / 8] >> (i % 8) & 1) {
            memcpy(values, weight + i * (int64_t)size, size);
            values += size;
        }
}

static inline __attribute__((always_inline)) void unpack(char *weight, const char *values, const uint8_t *bits, int64_t n, size_t size) {
    for (int64_t i = 0; i < n; i++)
        if (bits[i / 8] >> (i % 8) & 1) {
            memcpy(weight + i * (int64_t)size, values, size);
            values += size;
        } else {
            memset(weight + i * (int64_t)size, 0, size);
        }
}

void me_sparse_pack(void *values, const void *weight, const uint8_t *bits, int64_t n, int64_t size) {
    if (size == 2) pack(values, weight, bits, n, 2);
    else if (size == 4) pack(values, weight, bits, n, 4);
    else pack(values, weight, bits, n, 8);
}

void me_sparse_unpack(void *weight, const void *values, const uint8_t *bits, int64_t n, int64_t size) {
    if (size == 2) unpack(weight, values, bits, n, 2);
    else if (size == 4) unpack(weight, values, bits, n, 4);
    else unpack(weight, values, bits, n, 8);
}

int me_sparse_linear(int isa, float *y, const float *x, const uint8_t *bits, const void *values, const int64_t *starts, int half,
                     int64_t N, int64_t out, int64_t in) {
    int failed = 0;
    struct me_sparse a = {y, x, bits, values, starts, &failed, half, starts[out], N, out, in};
    RUN(sparse_linear, out, 4, N * in / 4);
    return failed;
}

int me_sparse_gemm(int isa, float *c, const float *a_, const uint8_t *bits, const void *values, const int64_t *starts, int half,
                   int back, int64_t M, int64_t out, int64_t in) {
    struct me_sparse weight = {.bits = bits, .values = values, .starts = starts, .half = half, .kept = starts[out], .in = in};
    return me_read_gemm(isa, me_table_of(isa)->sparse_gemm, c, a_, &weight, back, M, out, in);
}
