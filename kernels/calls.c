/* The float kernels' public functions: each packs its arguments and hands them to the pool. */
#include "internal.h"
#include <stddef.h>
#include <stdlib.h>

#define RUN(kernel, n, grain, cost) me_run(me_table_of(isa)->kernel, &a, n, grain, cost)
#define MIN_ELEMENTS 256  /* grain of elementwise kernels */

int64_t me_parts(int64_t N) { return (N + ME_PART_ROWS - 1) / ME_PART_ROWS; }

/* total = parts[0] + parts[1] + ..., in that order */
static void add_parts(float *total, const float *parts, int64_t N, int64_t C) {
    for (int64_t c = 0; c < C; c++) total[c] = 0;
    for (int64_t p = 0; p < me_parts(N); p++)
        for (int64_t c = 0; c < C; c++) total[c] += parts[p * C + c];
}

int64_t me_find_bad_id(const int64_t *ids, int64_t n, int64_t limit) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= limit) return i;
    return -1;
}

void me_embedding_forward(int isa, float *out, const int64_t *ids, const float *weight, int64_t N, int64_t C) {
    struct me_embedding a = {out, ids, weight, N, C};
    RUN(embedding_forward, N, 1, C);
}

void me_embedding_backward(int isa, float *dweight, const int64_t *ids, const float *dout, int64_t N, int64_t C) {
    struct me_embedding a = {dweight, ids, dout, N, C};
    RUN(embedding_backward, (C + ME_COLUMNS - 1) / ME_COLUMNS, 1, N * ME_COLUMNS);
}

void me_bias_forward(int isa, float *out, const float *x, const float *bias, int64_t N, int64_t C) {
    struct me_bias a = {out, x, bias, N, C};
    RUN(bias_forward, N, 1, C);
}

void me_bias_backward(int isa, float *dbias, float *parts, const float *dout, int64_t N, int64_t C) {
    struct me_bias a = {parts, dout, NULL, N, C};
    RUN(bias_backward, me_parts(N), 1, C * ME_PART_ROWS);
    add_parts(dbias, parts, N, C);
}

void me_rms_norm_forward(int isa, float *out, float *rstd, const float *x, const float *weight, float eps, int64_t N, int64_t C) {
    struct me_norm_forward a = {out, NULL, rstd, x, weight, NULL, eps, C};
    RUN(rms_norm_forward, N, 1, C);
}

void me_rms_norm_backward(int isa, float *dx, float *dweight, float *parts, const float *dout, const float *x,
                          const float *weight, const float *rstd, int64_t N, int64_t C) {
    struct me_norm_backward a = {dx, parts, NULL, dout, x, weight, NULL, rstd, N, C};
    RUN(rms_norm_backward, me_parts(N), 1, 3 * C * ME_PART_ROWS);
    add_parts(dweight, parts, N, C);
}

void me_layer_norm_forward(int isa, float *out, float *mean, float *rstd, const float *x, const float *weight,
                           const float *bias, float eps, int64_t N, int64_t C) {
    struct me_norm_forward a = {out, mean, rstd, x, weight, bias, eps, C};
    RUN(layer_norm_forward, N, 1, 2 * C);
}

void me_layer_norm_backward(int isa, float *dx, float *dweight, float *dbias, float *parts, const float *dout, const float *x,
                            const float *weight, const float *mean, const float *rstd, int64_t N, int64_t C) {
    float *dbias_parts = parts + me_parts(N) * C;
    struct me_norm_backward a = {dx, parts, dbias_parts, dout, x, weight, mean, rstd, N, C};
    RUN(layer_norm_backward, me_parts(N), 1, 4 * C * ME_PART_ROWS);
    add_parts(dweight, parts, N, C);
    add_parts(dbias, dbias_parts, N, C);
}

void me_rotary(int isa, float *out, const float *x, const float *cos, const float *sin, float sign, int64_t B, int64_t T,
               int64_t H, int64_t D) {
    struct me_rotary a = {out, x, cos, sin, sign, T, H, D};
    RUN(rotary, B * T, 1, H * D);
}

void me_swiglu_forward(int isa, float *out, const float *gate, const float *up, int64_t n) {
    struct me_elementwise a = {out, NULL, NULL, gate, up, n};
    RUN(swiglu_forward, n, MIN_ELEMENTS, 4);
}

void me_swiglu_backward(int isa, float *dgate, float *dup, const float *dout, const float *gate, const float *up, int64_t n) {
    struct me_elementwise a = {dgate, dup, dout, gate, up, n};
    RUN(swiglu_backward, n, MIN_ELEMENTS, 6);
}

void me_gelu_forward(int isa, float *out, const float *x, int64_t n) {
    struct me_elementwise a = {out, NULL, NULL, x, NULL, n};
    RUN(gelu_forward, n, MIN_ELEMENTS, 4);
}

void me_gelu_backward(int isa, float *dx, const float *dout, const float *x, int64_t n) {
    struct me_elementwise a = {dx, NULL, dout, x, NULL, n};
    RUN(gelu_backward, n, MIN_ELEMENTS, 5);
}

/* Blocks large enough to be worth packing their operands, small enough that every thread gets some: the longer side is
 * halved first; of a packed weight the columns, for each block of rows unpacks it anew. Where the blocks end changes no bit. */
static int cut_and_run(int isa, me_task *kernel, struct me_gemm *a) {
    int failed = 0;
    int64_t blocks, step = kernel == me_table_of(isa)->gemm ? 16 : 32;
    a->failed = &failed;
    a->block_m = 768, a->block_n = 384;
    for (;;) {
        blocks = ((a->M + a->block_m - 1) / a->block_m) * ((a->N + a->block_n - 1) / a->block_n);
        int64_t rows = a->M < a->block_m ? a->M : a->block_m, columns = a->N < a->block_n ? a->N : a->block_n;
        if (blocks >= 2 * me_get_threads() || me_get_threads() == 1 || (rows <= 96 && columns <= 96)) break;
        if (columns <= 96 || (rows >= columns && step == 16)) a->block_m = ((rows + 1) / 2 + 5) / 6 * 6;
        else a->block_n = ((columns + 1) / 2 + step - 1) / step * step;
    }
    me_run(kernel, a, blocks, 1, a->M * a->N / blocks * a->K / 8);
    return failed;
}

int me_gemm(int isa, float *c, const float *a_, const float *b, int a_transposed, int b_transposed, int64_t M, int64_t N,
            int64_t K) {
    struct me_gemm a = {.c = c, .a = a_, .b = b, .a_row = a_transposed ? 1 : K, .a_k = a_transposed ? M : 1,
                        .b_k = b_transposed ? 1 : N, .b_n = b_transposed ? K : 1, .M = M, .N = N, .K = K};
    return cut_and_run(isa, me_table_of(isa)->gemm, &a);
}

int me_read_gemm(int isa, me_task *kernel, float *c, const float *a_, const void *weight, int back, int64_t M, int64_t out,
                 int64_t in) {
    int64_t N = back ? in : out, K = back ? out : in;
    struct me_gemm a = {.c = c, .a = a_, .a_row = K, .a_k = 1, .b_k = back ? N : 1, .b_n = back ? 1 : K, .M = M, .N = N, .K = K,
                        .weight = weight, .gemm = me_table_of(isa)->gemm};
    return cut_and_run(isa, kernel, &a);
}

/* Few queries against many keys read each key once; more of them pay for a layout first. */
#define DECODE_QUERIES 4

int me_attention_forward(int isa, float *out, float *lse, const float *q, const float *k, const float *v, int64_t k_step,
                         int64_t v_step, int64_t B, int64_t T, int64_t S, int64_t H, int64_t KV, int64_t D) {
    int failed = 0;
    struct me_attention a = {.out = out, .lse = lse, .q = q, .k = k, .v = v, .failed = &failed, .k_step = k_step,
                             .v_step = v_step, .T = T, .S = S, .H = H, .KV = KV, .D = D};
    if (T <= DECODE_QUERIES) RUN(attention_decode, B * H, 1, T * S * D);
    else RUN(attention_forward, B * H, 1, T * S * D);
    return failed;
}

int me_attention_backward(int isa, float *dq, float *dk, float *dv, const float *dout, const float *q, const float *k,
                          const float *v, const float *out, const float *lse, int64_t k_step, int64_t v_step, int64_t B,
                          int64_t T, int64_t S, int64_t H, int64_t KV, int64_t D) {
    int failed = 0;
    struct me_attention a = {.lse = (float *)lse, .dq = dq, .dk = dk, .dv = dv, .dout = dout, .saved = out, .q = q, .k = k,
                             .v = v, .failed = &failed, .k_step = k_step, .v_step = v_step, .T = T, .S = S, .H = H, .KV = KV,
                             .D = D};
    RUN(attention_backward, B * KV, 1, 2 * T * S * D * (H / KV));
    return failed;
}

double me_cross_entropy_forward(int isa, float *lse, double *terms, const float *logits, const int64_t *targets,
                                const float *weights, int64_t N, int64_t V) {
    struct me_cross_entropy a = {.lse = lse, .terms = terms, .logits = logits, .targets = targets, .weights = weights, .V = V};
    RUN(cross_entropy_forward, N, 1, 4 * V);
    double loss = 0;
    for (int64_t i = 0; i < N; i++) loss += terms[i];
    return loss;
}

void me_cross_entropy_backward(int isa, float *dlogits, const float *logits, const int64_t *targets, const float *weights,
                               const float *lse, float dloss, int64_t N, int64_t V) {
    struct me_cross_entropy a = {(float *)lse, dlogits, NULL, logits, weights, targets, dloss, V};
    RUN(cross_entropy_backward, N, 1, 4 * V);
}

void me_adamw(int isa, float *param, float *m, float *v, const float *grad, float decay, float step_size, double beta1,
              double beta2, float v_scale, float eps, float grad_scale, int64_t n) {
    struct me_adamw a = {param, m, v, grad, decay, step_size, (float)beta1, (float)beta2, (float)(1.0 - beta1),
                         (float)(1.0 - beta2), v_scale, eps, grad_scale};
    RUN(adamw, n, MIN_ELEMENTS, 6);
}

double me_sum_squares(int isa, double *terms, const float *x, int64_t n) {
    struct me_sum_squares a = {terms, x, n};
    int64_t blocks = (n + ME_SUM_BLOCK - 1) / ME_SUM_BLOCK;
    RUN(sum_squares, blocks, 1, ME_SUM_BLOCK);
    double total = 0;
    for (int64_t i = 0; i < blocks; i++) total += terms[i];
    return total;
}
