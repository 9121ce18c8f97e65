/* What the C files share: the arguments of each kernel, the table of one instruction set, and the pool.
 *
 * A kernel is a task: it computes items begin..end-1 (rows, elements, or fixed blocks of them) and nothing else. */
#ifndef MINEDGE_INTERNAL_H
#define MINEDGE_INTERNAL_H
#include "minedge_kernels.h"

typedef void me_task(const void *args, int64_t begin, int64_t end);

/* Runs task over 0..n-1 on the pool; chunks are multiples of grain; cost is one item's work in quarters of a nanosecond. */
void me_run(me_task *task, const void *args, int64_t n, int64_t grain, int64_t cost);

#define ME_PART_ROWS 64       /* rows whose gradients of a shared weight are summed before they join the total */
#define ME_SUM_BLOCK 4096     /* elements of one float64 partial sum */
#define ME_NOISE_BLOCK 64     /* numbers of one task of the noise kernels */
#define ME_SPAN 256           /* keys whose softmax stands alone before it joins the others */
#define ME_TILE_ROWS 24       /* pairs (query, head) that read the keys of one head together */
#define ME_COLUMNS 16         /* columns of one task of embedding_backward: a cache line, so threads do not share one */

struct me_embedding { float *out; const int64_t *ids; const float *in; int64_t N, C; };
struct me_bias { float *out; const float *x, *bias; int64_t N, C; };
struct me_norm_forward { float *out, *mean, *rstd; const float *x, *weight, *bias; float eps; int64_t C; };
struct me_norm_backward {
    float *dx, *dweight_parts, *dbias_parts;
    const float *dout, *x, *weight, *mean, *rstd;
    int64_t N, C;
};
struct me_rotary { float *out; const float *x, *cos, *sin; float sign; int64_t T, H, D; };
struct me_elementwise { float *out, *out2; const float *a, *b, *c; int64_t n; };
struct me_attention {
    float *out, *lse, *dq, *dk, *dv;
    const float *dout, *saved, *q, *k, *v;  /* saved: the forward's out */
    int *failed;                            /* set to 1 where memory ran out; only ever set, so threads need no lock */
    int64_t k_step, v_step, T, S, H, KV, D;
};
struct me_cross_entropy {
    float *lse, *dlogits;
    double *terms;
    const float *logits, *weights;
    const int64_t *targets;
    float dloss;
    int64_t V;
};
struct me_adamw {
    float *param, *m, *v;
    const float *grad;
    float decay, step_size, beta1, beta2, gain1, gain2, v_scale, eps, grad_scale;
};
struct me_sum_squares { double *terms; const float *x; int64_t n; };
/* For perturb_tile, whose items are rows: n columns of each; `row` numbers of the tensor from one to the next, n floats of out */
struct me_noise {
    float *out, *other;
    const float *weight;
    float decay, scale;
    uint32_t key0, key1, step, sample, tensor;
    int64_t start, n, row;
};
struct me_int4 { uint8_t *q_out; uint16_t *s_out; float *w_out; const uint8_t *q; const uint16_t *s; const float *w; int64_t group, in; };
struct me_nf4 { uint8_t *q_out; float *s_out, *w_out; const uint8_t *q; const float *s, *w, *table; int64_t block, in; };
struct me_int8 { int8_t *xq; float *xscales; const float *x; int64_t in; };
/* 32 columns of eight rows of x, turned over: code[k][4 t + j] = column 4 k + j of row t; sum: offset * sum of the row's 32 */
struct me_x8 { int8_t code[8][32]; float scale[8]; int32_t sum[8]; };
/* The same of sixteen rows, for vectors that hold so many: two struct me_x8 long, in the place of both */
struct me_x16 { int8_t code[8][64]; float scale[16]; int32_t sum[16]; };
struct me_pack_x8 { struct me_x8 *x8; const int8_t *xq; const float *xscales; int32_t offset; int pairs; int64_t groups, in; };
struct me_int_linear {
    float *y;
    int32_t *partials;
    const int8_t *xq;
    const int32_t *xsums;      /* 8 * the sum of each block of xq; int4 only */
    const float *xscales;
    const uint8_t *q;          /* 16 bytes a block of 32 columns (int4), or 32 (int8) */
    const uint16_t *s;
    int tiled;                 /* q and s lie as int4_tiles.h draws it; int4 only */
    const struct me_x8 *x8;    /* whole groups of eight rows of x, or sixteen as me_x16; or NULL */
    int64_t group, N, out, in;
};
struct me_int4_tile { uint8_t *codes; uint16_t *tile_scales; const uint8_t *q; const uint16_t *s; int64_t group, out, in; };
/* n products of the same rows of x: one job. x8: room for N / 8 * (in / 32) or NULL; offset: 8 for int4, 128 for int8. */
void me_int_linears(int isa, me_task *product, struct me_int_linear *a, int n, int32_t offset, struct me_x8 *x8);
struct me_q8 { float *w_out; const int8_t *q; const uint16_t *s; int64_t in; };
struct me_half { float *y; const float *x; const uint16_t *weight; int bfloat; int64_t N, out, in; };
/* bits (out, in / 8), values kept: floats, or float16 where `half`; those of row o begin at starts[o] */
struct me_sparse {
    float *y;
    const float *x;
    const uint8_t *bits;
    const void *values;
    const int64_t *starts;
    int *failed;
    int half;
    int64_t kept, N, out, in;
};
/* Columns begin..end-1 of a packed weight's row as floats; begin is a multiple of 32. */
typedef void me_read(float *to, const void *weight, int64_t row, int64_t begin, int64_t end);
/* c (M, N) = sum_k a[m * a_row + k * a_k] * b[k * b_k + n * b_n]; one of a_row, a_k is 1 and one of b_k, b_n;
 * items are blocks of block_m x block_n results, counted row by row. Where read is not NULL it gives the rows of b (of its
 * transpose where b_k is 1), b itself is not looked at, and block_n is a multiple of 32. */
struct me_gemm {
    float *c;
    const float *a, *b;
    int *failed;
    int64_t a_row, a_k, b_k, b_n, M, N, K, block_m, block_n;
    me_read *read;
    const void *weight;
    me_task *gemm;  /* what a kernel that sets `read` hands itself on to */
    /* Where noise is not NULL: c = a (w + scale z)^T and c_minus = a_minus (w - scale z)^T, w (N, K) in the place of b */
    const struct me_noise *noise;
    me_task *perturb_tile;
    float *c_minus;
    const float *a_minus;
};
/* The product of a with a packed weight (out, in): `kernel` reads `weight`. c (M, out) = a weight^T, or with `back`
 * c (M, in) = a weight. Nonzero on want of memory. */
int me_read_gemm(int isa, me_task *kernel, float *c, const float *a, const void *weight, int back, int64_t M, int64_t out,
                 int64_t in);
/* Attention over a cache: `groups` hold the rows of q in order. parts: NULL, or (N, H, spans) results of round_up(D, 16) + 2 */
struct me_cached {
    float *out, *parts;
    const float *q;
    const struct me_cache *cache;
    const struct me_rows *groups;
    int64_t spans, H, KV, D;
};
struct me_stored { const struct me_cache *cache; const struct me_rows *groups; const float *k, *v; int64_t KV, D; };
struct me_mask { float *out; const float *weight; const uint8_t *bits; int64_t n; };

/* Name of the kernel as in <isa>/<file>.c. The first list is what avx512 has of its own; the others wait for memory or are a
 * vanishing part of any run, so it takes avx2's: half the code to compile, to load and to test. */
#define ME_WIDE_KERNELS(X) \
    X(gemm) X(attention_forward) X(attention_decode) X(attention_backward) \
    X(cached_attention) X(join_spans) X(cache_store) \
    X(int4_int8_linear) X(q8_int8_linear) X(int4_quantize) X(int4_dequantize) X(int4_gemm) X(int8_quantize) \
    X(swiglu_forward) X(swiglu_backward) X(gelu_forward) X(gelu_backward) \
    X(normal) X(perturb) X(perturb_tile) X(sparse_linear) X(sparse_gemm)
#define ME_OTHER_KERNELS(X) \
    X(embedding_forward) X(embedding_backward) X(bias_forward) X(bias_backward) \
    X(rms_norm_forward) X(rms_norm_backward) X(layer_norm_forward) X(layer_norm_backward) X(rotary) \
    X(cross_entropy_forward) X(cross_entropy_backward) X(adamw) X(sum_squares) \
    X(int4_int8_partials) X(q8_dequantize) \
    X(half_linear) X(half_widen) X(half_gemm) \
    X(nf4_quantize) X(nf4_dequantize) X(nf4_gemm) \
    X(mask_apply)
#define ME_KERNELS(X) ME_WIDE_KERNELS(X) ME_OTHER_KERNELS(X)

struct me_table {
    const char *name;
    int (*supported)(void);  /* whether this processor and operating system run it */
    int x_rows;              /* of x that a vector of its tiled integer products holds: 8, 16 (me_x16), or 0: it has none */
#define ME_FIELD(kernel) me_task *kernel;
    ME_KERNELS(ME_FIELD)
#undef ME_FIELD
};

/* The table of `isa`, an index below me_isa_count(). */
const struct me_table *me_table_of(int isa);

/* me_<isa>_<name>: the exported symbol of a kernel in the file being compiled for ME_ISA */
#define ME_JOIN2(isa, name) me_##isa##_##name
#define ME_JOIN(isa, name) ME_JOIN2(isa, name)
#define ME_KERNEL(name) void ME_JOIN(ME_ISA, name)(const void *args, int64_t begin, int64_t end)

#define ME_DECLARE_SCALAR(name) me_task me_scalar_##name;
#define ME_DECLARE_AVX2(name) me_task me_avx2_##name;
#define ME_DECLARE_AVX512(name) me_task me_avx512_##name;
#define ME_DECLARE_NEON(name) me_task me_neon_##name;
ME_KERNELS(ME_DECLARE_SCALAR)
ME_KERNELS(ME_DECLARE_AVX2)
ME_WIDE_KERNELS(ME_DECLARE_AVX512)
ME_KERNELS(ME_DECLARE_NEON)

#endif
