/* One prototype per kernel; this file is also the only declaration Python sees (build_ffi.py reads it).
 *
 * Common to all: `isa` is an index below me_isa_count(); outputs come first, sizes last; arrays are C-contiguous,
 * aligned to their element, and do not overlap unless a comment says so. Nothing is validated here: c_ops does that.
 * No result depends on the number of threads. Legend: B batch, T queries, S keys, C width, H heads, KV key heads,
 * D head width, V vocabulary, N rows. */
#ifndef MINEDGE_KERNELS_H
#define MINEDGE_KERNELS_H
#include <stdint.h>

/* Instruction sets and threads */
int me_isa_count(void);
const char *me_isa_name(int isa);
int me_isa_supported(int isa);
int me_get_threads(void);
void me_set_threads(int n);

/* Index of the first id outside 0 <= id < limit, or -1 */
int64_t me_find_bad_id(const int64_t *ids, int64_t n, int64_t limit);

/* Layers. `parts` are scratch of me_parts(N) rows of C floats: partial sums over fixed blocks of rows, added in order. */
int64_t me_parts(int64_t N);
void me_embedding_forward(int isa, float *out, const int64_t *ids, const float *weight, int64_t N, int64_t C);
void me_embedding_backward(int isa, float *dweight, const int64_t *ids, const float *dout, int64_t N, int64_t C);
void me_bias_forward(int isa, float *out, const float *x, const float *bias, int64_t N, int64_t C);
void me_bias_backward(int isa, float *dbias, float *parts, const float *dout, int64_t N, int64_t C);
void me_rms_norm_forward(int isa, float *out, float *rstd, const float *x, const float *weight, float eps, int64_t N, int64_t C);
void me_rms_norm_backward(int isa, float *dx, float *dweight, float *parts, const float *dout, const float *x,
                          const float *weight, const float *rstd, int64_t N, int64_t C);
void me_layer_norm_forward(int isa, float *out, float *mean, float *rstd, const float *x, const float *weight,
                           const float *bias, float eps, int64_t N, int64_t C);
/* parts: 2 * me_parts(N) rows */
void me_layer_norm_backward(int isa, float *dx, float *dweight, float *dbias, float *parts, const float *dout, const float *x,
                            const float *weight, const float *mean, const float *rstd, int64_t N, int64_t C);
/* sign +1 rotates forward, -1 back */
void me_rotary(int isa, float *out, const float *x, const float *cos, const float *sin, float sign, int64_t B, int64_t T,
               int64_t H, int64_t D);
void me_swiglu_forward(int isa, float *out, const float *gate, const float *up, int64_t n);
void me_swiglu_backward(int isa, float *dgate, float *dup, const float *dout, const float *gate, const float *up, int64_t n);
void me_gelu_forward(int isa, float *out, const float *x, int64_t n);
void me_gelu_backward(int isa, float *dx, const float *dout, const float *x, int64_t n);

/* c (M, N) = a b. The letter says how an operand lies: n as written, a (M, K), b (K, N); t transposed, a (K, M), b (N, K).
 * Each result is summed over k in one order, whatever M, N and the number of threads. Nonzero on want of memory. */
int me_gemm(int isa, float *c, const float *a, const float *b, int a_transposed, int b_transposed, int64_t M, int64_t N,
            int64_t K);

/* Attention. k_step, v_step: floats from one batch entry to the next. Nonzero on want of memory. */
int me_attention_forward(int isa, float *out, float *lse, const float *q, const float *k, const float *v, int64_t k_step,
                         int64_t v_step, int64_t B, int64_t T, int64_t S, int64_t H, int64_t KV, int64_t D);
int me_attention_backward(int isa, float *dq, float *dk, float *dv, const float *dout, const float *q, const float *k,
                          const float *v, const float *out, const float *lse, int64_t k_step, int64_t v_step, int64_t B,
                          int64_t T, int64_t S, int64_t H, int64_t KV, int64_t D);

/* Loss. terms: scratch of N; the result is their sum in order. */
double me_cross_entropy_forward(int isa, float *lse, double *terms, const float *logits, const int64_t *targets,
                                const float *weights, int64_t N, int64_t V);
void me_cross_entropy_backward(int isa, float *dlogits, const float *logits, const int64_t *targets, const float *weights,
                               const float *lse, float dloss, int64_t N, int64_t V);

/* Optimizer. decay = lr * weight_decay; step_size = lr / (1 - beta1^t); v_scale = 1 / (1 - beta2^t). The betas are double so
 * that 1 - beta is rounded once. */
void me_adamw(int isa, float *param, float *m, float *v, const float *grad, float decay, float step_size, double beta1,
              double beta2, float v_scale, float eps, float grad_scale, int64_t n);
/* terms: scratch of ceil(n / 4096) */
double me_sum_squares(int isa, double *terms, const float *x, int64_t n);

/* Noise, specification version 1: bits are part of the interface. key: the two words of the seed. */
void me_normal(int isa, float *z, uint32_t key0, uint32_t key1, uint32_t step, uint32_t sample, uint32_t tensor, int64_t start,
               int64_t n);
/* out = decay * weight + scale * z, each operation rounded, and other, where it is not NULL, with - in the place of +; out may be
 * weight */
void me_perturb(int isa, float *out, float *other, const float *weight, float decay, float scale, uint32_t key0, uint32_t key1,
                uint32_t step, uint32_t sample, uint32_t tensor, int64_t start, int64_t n);
/* out (2, M, N): out[0] = x[0] (w + scale z)^T and out[1] = x[1] (w - scale z)^T of x (2, M, K), w (N, K): the bits of me_perturb and
 * me_gemm, with no more of the perturbed w in memory than the panels that are being multiplied. Nonzero on want of memory. */
int me_linear_both(int isa, float *out, const float *x, const float *weight, float scale, uint32_t key0, uint32_t key1, uint32_t step,
                   uint32_t sample, uint32_t tensor, int64_t M, int64_t N, int64_t K);

/* Int4 */
void me_int4_quantize(int isa, uint8_t *qweight, uint16_t *scales, const float *weight, int64_t group, int64_t out, int64_t in);
void me_int4_dequantize(int isa, float *weight, const uint8_t *qweight, const uint16_t *scales, int64_t group, int64_t out,
                        int64_t in);
/* c (M, out) = a (M, in) weight^T, or with `back` c (M, in) = a (M, out) weight: the bits of me_gemm on the dequantized weight,
 * of which only a part stands at a time. Nonzero on want of memory. The same for the other packed weights below. */
int me_int4_gemm(int isa, float *c, const float *a, const uint8_t *qweight, const uint16_t *scales, int64_t group, int back, int64_t M,
                 int64_t out, int64_t in);
void me_int8_quantize(int isa, int8_t *xq, float *xscales, const float *x, int64_t N, int64_t in);
/* xsums: 8 times the sum of each block of xq, (N, in/32) */
void me_int8_sums(int32_t *xsums, const int8_t *xq, int64_t N, int64_t in);
void me_int4_int8_linear(int isa, float *y, const int32_t *xsums, const int8_t *xq, const float *xscales, const uint8_t *qweight,
                         const uint16_t *scales, int64_t group, int64_t N, int64_t out, int64_t in);
/* The weight in tiles of 16 rows, which is how it is read fastest (int4_tiles.h draws one): codes (ceil(out / 16), in / 32, 4, 16, 4),
 * best aligned to 64; tile_scales (ceil(out / 16), in / group, 16); zeros beyond `out`. */
void me_int4_tile(uint8_t *codes, uint16_t *tile_scales, const uint8_t *qweight, const uint16_t *scales, int64_t group, int64_t out,
                  int64_t in);
/* y of me_int4_int8_linear, bit for bit, from a weight in tiles */
void me_int4_tile_linear(int isa, float *y, const int32_t *xsums, const int8_t *xq, const float *xscales, const uint8_t *codes,
                         const uint16_t *tile_scales, int64_t group, int64_t N, int64_t out, int64_t in);
/* xq as me_int8_quantize makes it (never -128); qweight (out, in), one float16 scale per 32 */
void me_q8_int8_linear(int isa, float *y, const int8_t *xq, const float *xscales, const int8_t *qweight, const uint16_t *scales,
                       int64_t N, int64_t out, int64_t in);
void me_int4_int8_partials(int isa, int32_t *partials, const int32_t *xsums, const int8_t *xq, const uint8_t *qweight, int64_t N, int64_t out,
                           int64_t in);

void me_q8_dequantize(int isa, float *weight, const int8_t *qweight, const uint16_t *scales, int64_t out, int64_t in);

/* 16-bit floats: float16, or bfloat16 where `bfloat`; arithmetic is float32. Any width. */
void me_half_linear(int isa, float *y, const float *x, const uint16_t *weight, int bfloat, int64_t N, int64_t out, int64_t in);
int me_half_gemm(int isa, float *c, const float *a, const uint16_t *weight, int bfloat, int back, int64_t M, int64_t out, int64_t in);
void me_half_widen(int isa, float *out, const uint16_t *half, int bfloat, int64_t n);

/* NF4. midpoints: 15 floats between the 16 of the codebook; in a multiple of block, block of 16 */
void me_nf4_quantize(int isa, uint8_t *qweight, float *absmax, const float *weight, const float *midpoints, int64_t block,
                     int64_t out, int64_t in);
void me_nf4_dequantize(int isa, float *weight, const uint8_t *qweight, const float *absmax, const float *codebook, int64_t block,
                       int64_t out, int64_t in);

int me_nf4_gemm(int isa, float *c, const float *a, const uint8_t *qweight, const float *absmax, const float *codebook, int64_t block,
                int back, int64_t M, int64_t out, int64_t in);

/* Masks: bit i % 8 of byte i / 8 says whether entry i is kept. out may be weight. */
void me_mask_apply(int isa, float *out, const float *weight, const uint8_t *bits, int64_t n);
/* number of ones in the first n bits */
int64_t me_mask_count(const uint8_t *bits, int64_t n);
/* size: bytes of one entry, 2, 4 or 8 */
void me_sparse_pack(void *values, const void *weight, const uint8_t *bits, int64_t n, int64_t size);
void me_sparse_unpack(void *weight, const void *values, const uint8_t *bits, int64_t n, int64_t size);
/* A pruned weight in its packed form: bits (out, in / 8), in a multiple of 8; the kept values, float32, or float16 where `half`;
 * starts (out + 1): where each row's values begin, starts[out] of them in all. y (N, out) = x weight^T. No byte beyond the
 * values is read even where bits and starts contradict each other. Nonzero on want of memory. */
int me_sparse_linear(int isa, float *y, const float *x, const uint8_t *bits, const void *values, const int64_t *starts, int half,
                     int64_t N, int64_t out, int64_t in);
int me_sparse_gemm(int isa, float *c, const float *a, const uint8_t *bits, const void *values, const int64_t *starts, int half,
                   int back, int64_t M, int64_t out, int64_t in);

/* Keys and values of the tokens so far, one layer, in blocks of 256 tokens; scalar/attention_decode.c draws a block. A block has
 * room for `rows` tokens, 256, or in a cache of one block any multiple of 16; zeros where nothing was stored. ..._slot, ..._block:
 * bytes from one sequence, one block to the next, of keys, values and both scales. ME_INT8: code * scale[kv][j]. */
enum { ME_FLOAT32, ME_FLOAT16, ME_INT8 };
struct me_cache {
    void *k, *v;
    float *k_scales, *v_scales;
    int64_t dtype, rows, k_slot, k_block, v_slot, v_block, s_slot, s_block;
};
/* Rows first .. first + count - 1 of a step are the next tokens of the sequence in `slot`, which holds `past` already. */
struct me_rows { int64_t first, count, past, slot; };

/* k, v (N, KV, D) of the rows of n_groups sequences go into the cache. */
void me_cache_store(int isa, const struct me_cache *cache, const float *k, const float *v, const struct me_rows *groups,
                    int64_t n_groups, int64_t KV, int64_t D);
/* q (N, H, D), each query against its sequence up to itself -> out. parts: scratch of parts_size floats, may be NULL */
void me_cached_attention(int isa, float *out, float *parts, int64_t parts_size, const float *q, const struct me_cache *cache,
                         const struct me_rows *groups, int64_t n_groups, int64_t H, int64_t KV, int64_t D);

/* The engine: one call runs a list of steps for N rows (tokens) of one or more sequences. Which arrays a step names is up to
 * the plan (minedge/model/plan.py); nothing here knows an architecture. */
enum me_op {
    ME_OP_ROWS_DENSE,   /* out (N, n) = w[token] */
    ME_OP_ROWS_INT4,    /* the same of int4 codes w, scales w2 */
    ME_OP_ROWS_INT8,    /* of int8 codes w, scales w2 */
    ME_OP_ROWS_HALF,    /* of float16 w, or bfloat16 where `group` is 1 */
    ME_OP_POSITIONS,    /* out += w[position] */
    ME_OP_RMS_NORM,     /* out = rms_norm(x), `group` rows of width n a token */
    ME_OP_LAYER_NORM,   /* out = layer_norm(x) w + w2 */
    ME_OP_QUANTIZE,     /* out, a struct me_codes, = x as int8 codes */
    ME_OP_DENSE,        /* out (N, m) = x (N, n) w^T */
    ME_OP_INT4,         /* the same of the codes x and int4 w, w2 in tiles; steps in a row that share x run as one */
    ME_OP_INT8,         /* of int8 w, w2 */
    ME_OP_HALF,         /* out (N, m) = x (N, n) w^T, w float16, or bfloat16 where `group` is 1 */
    ME_OP_SPARSE,       /* w, w2, w3: mask, values, starts of a packed pruned weight; group: values are float16 */
    ME_OP_BIAS,         /* out (N, m) = x + w */
    ME_OP_COLUMNS,      /* out (N, m) = columns group .. group + m - 1 of x (N, n) */
    ME_OP_ROTARY,       /* out (N, m, n) = x turned by the angles w (cos), w2 (sin) of its position */
    ME_OP_STORE,        /* keys x, values y (N, m, n) go into the cache out */
    ME_OP_ATTENTION,    /* out (N, group, n) = attention of x over the cache y with m key heads */
    ME_OP_SWIGLU,       /* out (N, n) = silu(x) y */
    ME_OP_GELU,         /* out (N, n) = gelu(x) */
    ME_OP_SCALE,        /* out (N, n) = value x */
    ME_OP_ADD,          /* out (N, n) = x + y */
    ME_OP_PICK,         /* out (picked, n) = the rows of x whose logits are wanted; later steps work on these */
    ME_OPS
};
/* tiles: scratch of 10 bytes for 8 codes, aligned to 64 */
struct me_codes { int8_t *codes; float *scales; int32_t *sums; void *tiles; };
struct me_step {
    int32_t op, picked;      /* picked: works on the rows that ME_OP_PICK left */
    void *out;
    float *scratch;
    const void *x, *y, *w, *w2, *w3;
    int64_t n, m, group, size;
    float value;
};
struct me_batch {
    const int64_t *tokens;           /* N */
    const struct me_rows *groups;    /* which sequence each row belongs to; n_groups of them, rows in order */
    const int64_t *picks;            /* rows that ME_OP_PICK keeps, n_picks */
    double *seconds;                 /* NULL, or time is added per step */
    int64_t N, n_groups, n_picks;
};
/* Runs steps in order; nonzero on want of memory. */
int me_engine_run(int isa, const struct me_step *steps, int64_t n_steps, const struct me_batch *batch);

#endif
