/* The engine's interpreter: a list of steps on buffers that Python planned and checked, one call for all of them.
 *
 * Every step calls the kernels that the ops of Python call, so a step's bits are those of the readable model (transformer.py)
 * on this tier. Nothing is allocated here. The plan (minedge/model/plan.py) prints as the list that runs. */
#define _GNU_SOURCE
#include "internal.h"
#include "vec.h"
#include <stddef.h>
#include <time.h>

#define RUN(kernel, n, grain, cost) me_run(me_table_of(isa)->kernel, &a, n, grain, cost)
#define MOST 4          /* products of one job */
#define SPLIT_BELOW 16  /* items of attention below which a long past is cut into spans, so that all threads get some */

static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

void me_cache_store(int isa, const struct me_cache *cache, const float *k, const float *v, const struct me_rows *groups,
                    int64_t n_groups, int64_t KV, int64_t D) {
    struct me_stored a = {cache, groups, k, v, KV, D};
    int64_t N = groups[n_groups - 1].first + groups[n_groups - 1].count;
    RUN(cache_store, N, 1, 4 * KV * D);
}

void me_cached_attention(int isa, float *out, float *parts, int64_t parts_size, const float *q, const struct me_cache *cache,
                         const struct me_rows *groups, int64_t n_groups, int64_t H, int64_t KV, int64_t D) {
    struct me_cached a = {out, NULL, q, cache, groups, 1, H, KV, D};
    int64_t N = groups[n_groups - 1].first + groups[n_groups - 1].count, items = 0, split = 0, work = 0;
    for (int64_t g = 0; g < n_groups; g++) {
        int64_t tiles = (groups[g].count * (H / KV) + ME_TILE_ROWS - 1) / ME_TILE_ROWS, keys = groups[g].past + groups[g].count;
        int64_t spans = (keys + ME_SPAN - 1) / ME_SPAN;
        items += KV * tiles;
        split += KV * tiles * spans;
        work += groups[g].count * H * keys * D;
        if (spans > a.spans) a.spans = spans;
    }
    if (items < SPLIT_BELOW && a.spans > 1 && N * H * a.spans * (round_up(D, 16) + 2) <= parts_size) {
        a.parts = parts;
        RUN(cached_attention, split, 1, work / split);
        RUN(join_spans, N, 1, H * a.spans * D / 4);
    } else {
        RUN(cached_attention, items, 1, work / items);
    }
}

/* out (N, C): rows of a packed embedding */
static void packed_rows(int isa, const struct me_step *s, const struct me_batch *b) {
    for (int64_t i = 0; i < b->N; i++) {
        int64_t id = b->tokens[i], C = s->n;
        float *out = (float *)s->out + i * C;
        if (s->op == ME_OP_ROWS_HALF) {
            me_half_widen(isa, out, (const uint16_t *)s->w + id * C, (int)s->group, C);
            continue;
        }
        const uint16_t *scales = (const uint16_t *)s->w2 + id * (C / s->group);
        if (s->op == ME_OP_ROWS_INT4) {
            me_int4_dequantize(isa, out, (const uint8_t *)s->w + id * C / 2, scales, s->group, 1, C);
        } else {
            const int8_t *codes = (const int8_t *)s->w + id * C;
            for (int64_t c = 0; c < C; c++) out[c] = half_to_float(scales[c / s->group]) * (float)codes[c];
        }
    }
}

static void add_positions(const struct me_step *s, const struct me_batch *b) {
    for (int64_t g = 0; g < b->n_groups; g++) {
        float *out = (float *)s->out + b->groups[g].first * s->n;
        const float *w = (const float *)s->w + b->groups[g].past * s->n;
        for (int64_t i = 0; i < b->groups[g].count * s->n; i++) out[i] += w[i];
    }
}

static void rotate(int isa, const struct me_step *s, const struct me_batch *b) {
    int64_t width = s->m * s->n, half = s->n / 2;
    for (int64_t g = 0; g < b->n_groups; g++) {
        const struct me_rows *r = b->groups + g;
        me_rotary(isa, (float *)s->out + r->first * width, (const float *)s->x + r->first * width,
                  (const float *)s->w + r->past * half, (const float *)s->w2 + r->past * half, 1, 1, r->count, s->m, s->n);
    }
}

static void copy_columns(const struct me_step *s, int64_t N) {
    for (int64_t i = 0; i < N; i++)
        memcpy((float *)s->out + i * s->m, (const float *)s->x + i * s->n + s->group, (size_t)s->m * sizeof(float));
}

static void pick_rows(const struct me_step *s, const struct me_batch *b) {
    for (int64_t i = 0; i < b->n_picks; i++)
        memcpy((float *)s->out + i * s->n, (const float *)s->x + b->picks[i] * s->n, (size_t)s->n * sizeof(float));
}

static void add(float *out, const float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] + y[i];
}

static void scale(float *out, const float *x, float value, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * value;
}

/* Integer products in a row that read the same codes, as one job; returns how many. */
static int64_t run_products(int isa, const struct me_step *s, int64_t left, const struct me_batch *b) {
    struct me_int_linear a[MOST];
    const struct me_codes *in = s->x;
    int64_t N = s->picked ? b->n_picks : b->N;
    int n = 0;
    for (; n < left && n < MOST && s[n].op == s->op && s[n].x == s->x; n++)
        a[n] = (struct me_int_linear){.y = s[n].out, .xq = in->codes, .xsums = in->sums, .xscales = in->scales, .q = s[n].w,
                                      .s = s[n].w2, .tiled = s->op == ME_OP_INT4, .group = s[n].group, .N = N, .out = s[n].m, .in = s[n].n};
    if (s->op == ME_OP_INT4) me_int_linears(isa, me_table_of(isa)->int4_int8_linear, a, n, 8, in->tiles);
    else me_int_linears(isa, me_table_of(isa)->q8_int8_linear, a, n, 128, in->tiles);
    return n;
}

static int run_step(int isa, const struct me_step *s, const struct me_batch *b) {
    int64_t N = s->picked ? b->n_picks : b->N;
    const struct me_codes *out = s->out;
    switch (s->op) {
    case ME_OP_ROWS_DENSE: me_embedding_forward(isa, s->out, b->tokens, s->w, N, s->n); break;
    case ME_OP_ROWS_INT4:
    case ME_OP_ROWS_HALF:
    case ME_OP_ROWS_INT8: packed_rows(isa, s, b); break;
    case ME_OP_POSITIONS: add_positions(s, b); break;
    case ME_OP_RMS_NORM: me_rms_norm_forward(isa, s->out, s->scratch, s->x, s->w, s->value, N * s->group, s->n); break;
    case ME_OP_LAYER_NORM:
        me_layer_norm_forward(isa, s->out, s->scratch, s->scratch + N, s->x, s->w, s->w2, s->value, N, s->n);
        break;
    case ME_OP_QUANTIZE:
        me_int8_quantize(isa, out->codes, out->scales, s->x, N, s->n);
        me_int8_sums(out->sums, out->codes, N, s->n);
        break;
    case ME_OP_DENSE: return me_gemm(isa, s->out, s->x, s->w, 0, 1, N, s->m, s->n);
    case ME_OP_HALF: me_half_linear(isa, s->out, s->x, s->w, (int)s->group, N, s->m, s->n); break;
    case ME_OP_SPARSE: return me_sparse_linear(isa, s->out, s->x, s->w, s->w2, s->w3, s->group != 0, N, s->m, s->n);
    case ME_OP_BIAS: me_bias_forward(isa, s->out, s->x, s->w, N, s->m); break;
    case ME_OP_COLUMNS: copy_columns(s, N); break;
    case ME_OP_ROTARY: rotate(isa, s, b); break;
    case ME_OP_STORE: me_cache_store(isa, s->out, s->x, s->y, b->groups, b->n_groups, s->m, s->n); break;
    case ME_OP_ATTENTION:
        me_cached_attention(isa, s->out, s->scratch, s->size, s->x, s->y, b->groups, b->n_groups, s->group, s->m, s->n);
        break;
    case ME_OP_SWIGLU: me_swiglu_forward(isa, s->out, s->x, s->y, N * s->n); break;
    case ME_OP_GELU: me_gelu_forward(isa, s->out, s->x, N * s->n); break;
    case ME_OP_SCALE: scale(s->out, s->x, s->value, N * s->n); break;
    case ME_OP_ADD: add(s->out, s->x, s->y, N * s->n); break;
    case ME_OP_PICK: pick_rows(s, b); break;
    default: break;
    }
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int me_engine_run(int isa, const struct me_step *steps, int64_t n_steps, const struct me_batch *batch) {
    double before = batch->seconds ? now() : 0;
    for (int64_t i = 0, n; i < n_steps; i += n) {
        n = 1;
        if (steps[i].op == ME_OP_INT4 || steps[i].op == ME_OP_INT8) n = run_products(isa, steps + i, n_steps - i, batch);
        else if (run_step(isa, steps + i, batch)) return 1;
        if (batch->seconds) {
            double after = now();
            batch->seconds[i] += after - before;
            before = after;
        }
    }
    return 0;
}
