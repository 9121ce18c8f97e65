/* Attention over a cache of keys and values, for one new token or many: every query gets the bits that it would get alone
 * (of finite values: a later one that is not, of which a query takes 0 parts, makes 0 * infinity in the rows of its tile).
 *
 * What it replaces, for one head and one query:
 *
 *     for (j = 0; j < seen; j++) p[j] = exp(dot(q, k[j]) / sqrt(D) - top);
 *     for (d = 0; d < D; d++) out[d] = sum_j p[j] * v[j][d] / sum_j p[j];
 *
 * The cache lies as the products want it (cache_products.h), in blocks of 256 keys, so that a past grows block by block:
 *
 *     k[slot][block][kv][j / 16][d][j % 16]            v[slot][block][kv][j][0..Dp)            float32, float16
 *     k[slot][block][kv][j / 16][d / 2][j % 16][d % 2] v[slot][block][kv][j / 2][0..Dp)[j % 2]     int8, and a scale a vector
 *
 * with D padded to a multiple of 16 in v (Dp), of 2 in int8 k. A block is a span: its softmax stands alone (its top, total and
 * weighted sum); spans join in their order. So a thread may take one span of a long past or one query of a long prompt: the
 * same sums either way. Rows are pairs (query, head of a group): the heads that share keys read them together.
 *
 * With int8 both products are sums of integers: the query and the weights of the values become 16-bit codes
 * (numpy_ops/attention_decode.py says how, and what that costs).
 *
 * One token behind 4,064, all layers, one core of an AMD EPYC (Zen 4, AVX-512), nothing else running, 2026-11-23:
 *     30 layers, 9 heads on 3 of 64 numbers (SmolLM2-135M)      float16  8.6 ms    int8 5.2 ms
 *     22 layers, 32 heads on 4 of 64 numbers (TinyLlama)        float16 11.0 ms    int8 9.6 ms
 * Limits: memory, 94, 50, 92 and 49 MB at the 18.7 GB/s with which int4 weights came in that run: 5.0, 2.7, 4.9 and 2.6 ms; for
 * eight heads on one the arithmetic as well, 0.74 GFLOP at 100 GFLOP/s: 7.4 ms. Before the fetching ahead, half the speed. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../cache_codes.h"

#define ROWS ME_TILE_ROWS
#define CHUNK 64   /* values of one chain of multiply-adds */

/* Bytes of a number of the cache, and keys of a head and block in numbers. */
INLINE int64_t size_of(const struct me_cache *c) { return c->dtype == ME_FLOAT32 ? 4 : c->dtype == ME_FLOAT16 ? 2 : 1; }
INLINE int64_t key_width(const struct me_cache *c, int64_t D) { return c->dtype == ME_INT8 ? round_up(D, 2) : D; }
/* Where block s of a slot begins. */
INLINE char *keys_of(const struct me_cache *c, int64_t slot, int64_t s) { return (char *)c->k + slot * c->k_slot + s * c->k_block; }
INLINE char *values_of(const struct me_cache *c, int64_t slot, int64_t s) { return (char *)c->v + slot * c->v_slot + s * c->v_block; }
INLINE float *scales_of(const struct me_cache *c, float *scales, int64_t slot, int64_t s) {
    return (float *)((char *)scales + slot * c->s_slot + s * c->s_block);
}

/* p[0..keys) = exp(p - top), times scales[j] where there are any, for the first `seen`, 0 beyond; total: without the scales.
 * keys a multiple of 8 */
INLINE void softmax_row(float *p, int64_t seen, int64_t keys, const float *scales, float *top, float *total) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    *top = -INFINITY, *total = 0;
    if (seen <= 0) {
        memset(p, 0, (size_t)keys * sizeof(float));
        return;
    }
    vf m = v_set(-INFINITY), sum = v_set(0);
    for (int64_t j = 0; j < keys; j += LANES)
        m = v_max(m, v_select(lane < v_seti((int32_t)(seen - j)), v_load(p + j), v_set(-INFINITY)));
    float largest = v_largest(m);
    if (largest == -INFINITY) largest = 0;
    for (int64_t j = 0; j < keys; j += LANES) {
        vi there = lane < v_seti((int32_t)(seen - j));
        vf e = v_select(there, v_exp(v_load(p + j) - v_set(largest)), v_set(0));
        sum += e;
        v_store(p + j, scales ? v_select(there, e * v_load(scales + j), v_set(0)) : e);
    }
    *top = largest, *total = v_sum(sum);
}

struct item { const struct me_rows *group; int64_t kv, first, rows; };  /* rows first.. of a sequence and a key head */

/* The queries of an item: scaled by 1 / sqrt(D), and as codes with their scales where the cache is int8. */
struct queries { float *x; int16_t *codes; float *scales; int64_t row; };

/* What an item needs while it runs; keys: of a span, rounded up to 16 */
struct span { int64_t most, keys; const void *k, *v; const float *k_scales, *v_scales; const void *next_k; int64_t k_bytes, v_bytes; };

/* Float caches: p (rows, ME_SPAN) = the scores; then acc (rows, Dp) = sum_j p[j] v[j]. */
INLINE void float_scores(int dtype, int64_t rows, float *p, const struct queries *q, const struct span *x, int64_t D) {
    struct ahead values = ask(x->v, x->v_bytes, steps_of(rows, x->keys, D, WIDE_ROWS));
    float_product(dtype, rows, x->keys, p, ME_SPAN, q->x, q->row, x->k, 16, 16 * D, D, 0, &values);
}
INLINE void float_values(int dtype, int64_t rows, float *acc, const float *p, const struct span *x, int64_t Dp) {
    struct ahead keys = ask(x->next_k, x->k_bytes, steps_of(rows, Dp, x->most, WIDE_ROWS));
    for (int64_t j = 0; j < x->most; j += CHUNK)
        float_product(dtype, rows, Dp, acc, Dp, p + j, ME_SPAN, (const char *)x->v + j * Dp * (dtype == ME_FLOAT32 ? 4 : 2), Dp, 16,
                      smaller(CHUNK, x->most - j), j > 0, &keys);
}

/* The same with an int8 cache. sums: room for rows * max(ME_SPAN, Dp) */
INLINE void code_scores(int64_t rows, float *p, int32_t *sums, const struct queries *q, const struct span *x, int64_t D) {
    int64_t De = round_up(D, 2);
    struct ahead values = ask(x->v, x->v_bytes, steps_of(rows, x->keys, De / 2, WIDE_PAIRS));
    pair_product(rows, x->keys, sums, ME_SPAN, q->codes, q->row, x->k, 32, 16 * De, De, &values);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < x->keys; j += LANES) {
            vi sum;
            memcpy(&sum, sums + r * ME_SPAN + j, sizeof sum);
            v_store(p + r * ME_SPAN + j, v_set(q->scales[r]) * v_load(x->k_scales + j) * __builtin_convertvector(sum, vf));
        }
}
INLINE void code_values(int64_t rows, float *acc, float *p, int16_t *codes, int32_t *sums, const int64_t *seen,
                        const struct span *x, int64_t Dp) {
    float scales[ROWS];
    for (int64_t r = 0; r < rows; r++) scales[r] = round16(codes + r * ME_SPAN, p + r * ME_SPAN, seen[r], x->keys, 32767);
    struct ahead keys = ask(x->next_k, x->k_bytes, steps_of(rows, Dp, round_up(x->most, 2) / 2, WIDE_PAIRS));
    pair_product(rows, Dp, sums, Dp, codes, ME_SPAN, x->v, 2 * Dp, 32, round_up(x->most, 2), &keys);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < Dp; d += LANES) {
            vi sum;
            memcpy(&sum, sums + r * Dp + d, sizeof sum);
            v_store(acc + r * Dp + d, v_set(scales[r]) * __builtin_convertvector(sum, vf));
        }
}

/* acc (rows, Dp), top, total: span s as each row sees it. work: 2 * ROWS * max(ME_SPAN, Dp) + ROWS * ME_SPAN / 2 floats */
static void attend(const struct me_cached *a, const struct item *x, int64_t s, const struct queries *q, float *acc, float *top,
                   float *total, float *work) {
    const struct me_cache *c = a->cache;
    int64_t D = a->D, Dp = round_up(D, 16), G = a->H / a->KV, slot = x->group->slot, j0 = s * ME_SPAN, seen[ROWS];
    int64_t before = x->group->past + 1 - j0;  /* row r sees before + r / G keys of the span */
    struct span y = {.most = smaller(ME_SPAN, before + (x->first + x->rows - 1) / G)};
    if (y.most <= 0) {
        for (int64_t r = 0; r < x->rows; r++) total[r] = 0;
        return;
    }
    y.keys = round_up(y.most, 16);
    y.k = keys_of(c, slot, s) + x->kv * c->rows * key_width(c, D) * size_of(c);
    y.v = values_of(c, slot, s) + x->kv * c->rows * Dp * size_of(c);
    y.k_bytes = y.keys * key_width(c, D) * size_of(c), y.v_bytes = y.keys * Dp * size_of(c);
    y.next_k = (s + 1) * ME_SPAN < x->group->past + x->group->count ? keys_of(c, slot, s + 1) + x->kv * c->rows * key_width(c, D) * size_of(c) : y.k;
    float *p = work;
    int32_t *sums = (int32_t *)(work + ROWS * ME_SPAN);
    if (c->dtype != ME_INT8) float_scores((int)c->dtype, x->rows, p, q, &y, D);
    else {
        y.k_scales = scales_of(c, c->k_scales, slot, s) + x->kv * c->rows;
        y.v_scales = scales_of(c, c->v_scales, slot, s) + x->kv * c->rows;
        code_scores(x->rows, p, sums, q, &y, D);
    }
    for (int64_t r = 0; r < x->rows; r++) {
        seen[r] = smaller(ME_SPAN, before + (x->first + r) / G);
        softmax_row(p + r * ME_SPAN, seen[r], y.keys, y.v_scales, top + r, total + r);
    }
    if (c->dtype != ME_INT8) float_values((int)c->dtype, x->rows, acc, p, &y, Dp);
    else code_values(x->rows, acc, p, (int16_t *)(sums + ROWS * (ME_SPAN > Dp ? ME_SPAN : Dp)), sums, seen, &y, Dp);
}

/* A row's result so far, and the next span's: nothing to add where the row sees none of its keys. */
INLINE void join(float *acc, float *top, float *total, const float *acc2, float top2, float total2, int64_t Dp) {
    if (total2 == 0) return;
    if (*total == 0) {
        memcpy(acc, acc2, (size_t)Dp * sizeof(float));
        *top = top2, *total = total2;
        return;
    }
    float larger = top2 > *top ? top2 : *top;
    vf factor = v_exp(v_set(*top - larger)), factor2 = v_exp(v_set(top2 - larger));
    for (int64_t d = 0; d < Dp; d += LANES) v_store(acc + d, v_fma(v_load(acc2 + d), factor2, v_load(acc + d) * factor));
    *total = *total * factor[0] + total2 * factor2[0];
    *top = larger;
}

/* Every score minus infinity: nothing was added up, and the softmax is 0 / 0. */
INLINE void divide(float *out, const float *acc, float total, int64_t D) {
    for (int64_t d = 0; d < D; d++) out[d] = total != 0 ? acc[d] / total : NAN;
}

/* Items: for each sequence its key heads x tiles of rows (x spans, where `parts` takes the partial results). */
ME_KERNEL(cached_attention) {
    const struct me_cached *a = args;
    int64_t D = a->D, Dp = round_up(D, 16), G = a->H / a->KV, wide = ME_SPAN > Dp ? ME_SPAN : Dp;
    float work[ROWS * ME_SPAN + ROWS * wide + ROWS * ME_SPAN / 2], acc[ROWS * Dp], acc2[ROWS * Dp], x16[ROWS * Dp];
    int16_t codes[ROWS * Dp];
    float top[ROWS], total[ROWS], top2[ROWS], total2[ROWS], scales[ROWS], scale = 1.0f / __builtin_sqrtf((float)D);
    struct queries q = {x16, codes, scales, Dp};
    const int coded = a->cache->dtype == ME_INT8;
    int32_t levels = (int32_t)smaller(32767, INT32_MAX / (127 * D));
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t d = D; d < Dp; d++) x16[r * Dp + d] = 0;
    for (int64_t i = begin; i < end; i++) {
        int64_t left = i;
        struct item x = {.group = a->groups};
        int64_t tiles, spans, each;
        for (;; x.group++) {
            tiles = (x.group->count * G + ROWS - 1) / ROWS;
            spans = a->parts ? (x.group->past + x.group->count + ME_SPAN - 1) / ME_SPAN : 1;
            each = a->KV * tiles * spans;
            if (left < each) break;
            left -= each;
        }
        int64_t span = left % spans;
        x.kv = left / spans / tiles;
        x.first = left / spans % tiles * ROWS;
        x.rows = smaller(ROWS, x.group->count * G - x.first);
        int64_t at[ROWS];  /* each row's query and head, as a row of q and out */
        for (int64_t r = 0; r < x.rows; r++) {
            at[r] = (x.group->first + (x.first + r) / G) * a->H + x.kv * G + (x.first + r) % G;
            for (int64_t d = 0; d < D; d++) x16[r * Dp + d] = scale * a->q[at[r] * D + d];
            if (coded) scales[r] = round16(codes + r * Dp, x16 + r * Dp, D, Dp, levels);
        }
        if (a->parts) {
            attend(a, &x, span, &q, acc, top, total, work);
            for (int64_t r = 0; r < x.rows; r++) {
                float *part = a->parts + (at[r] * a->spans + span) * (Dp + 2);
                memcpy(part, acc + r * Dp, (size_t)Dp * sizeof(float));
                part[Dp] = top[r], part[Dp + 1] = total[r];
            }
            continue;
        }
        for (int64_t r = 0; r < x.rows; r++) total[r] = 0;
        int64_t last = x.group->past + (x.first + x.rows - 1) / G;  /* the last key that any row sees */
        for (int64_t s = 0; s * ME_SPAN <= last; s++) {
            attend(a, &x, s, &q, acc2, top2, total2, work);
            for (int64_t r = 0; r < x.rows; r++) join(acc + r * Dp, top + r, total + r, acc2 + r * Dp, top2[r], total2[r], Dp);
        }
        for (int64_t r = 0; r < x.rows; r++) divide(a->out + at[r] * D, acc + r * Dp, total[r], D);
    }
}

/* Joins the partial results: items are queries. */
ME_KERNEL(join_spans) {
    const struct me_cached *a = args;
    int64_t D = a->D, Dp = round_up(D, 16);
    float acc[Dp];
    for (int64_t i = begin; i < end; i++) {
        const struct me_rows *g = a->groups;
        while (i >= g->first + g->count) g++;
        int64_t seen = g->past + i - g->first + 1;
        for (int64_t at = i * a->H; at < (i + 1) * a->H; at++) {
            float top = 0, total = 0;
            for (int64_t s = 0; s * ME_SPAN < seen; s++) {
                const float *part = a->parts + (at * a->spans + s) * (Dp + 2);
                join(acc, &top, &total, part, part[Dp], part[Dp + 1], Dp);
            }
            divide(a->out + at * D, acc, total, D);
        }
    }
}

/* out[0..n) = x as float16, to nearest, ties to even. n a multiple of 8 */
INLINE void halves_of(uint16_t *out, const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j += LANES) {
#if defined(ME_AVX2)
        vf v = v_load(x + j);
        if (!_mm256_movemask_ps((__m256)(v != v))) {  /* a NaN's bits are float_to_half's */
            _mm_storeu_si128((__m128i *)(out + j), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
            continue;
        }
#endif
        for (int i = 0; i < LANES; i++) out[j + i] = float_to_half(x[j + i]);
    }
}

/* Items: rows. k and v (rows, KV, D) go to their places in the cache. */
ME_KERNEL(cache_store) {
    const struct me_stored *a = args;
    const struct me_cache *c = a->cache;
    int64_t D = a->D, Dp = round_up(D, 16), De = key_width(c, D);
    const struct me_rows *g = a->groups;
    float x[2][Dp];
    int16_t narrow[2][Dp];  /* codes, or the bits of float16 */
    memset(x, 0, sizeof x);
    for (int64_t i = begin; i < end; i++) {
        while (i >= g->first + g->count) g++;
        int64_t j = g->past + i - g->first, s = j / ME_SPAN;
        char *keys = keys_of(c, g->slot, s), *values = values_of(c, g->slot, s);
        j %= ME_SPAN;
        for (int64_t kv = 0; kv < a->KV; kv++) {
            const float *k = a->k + (i * a->KV + kv) * D, *v = a->v + (i * a->KV + kv) * D;
            int64_t panel = (kv * c->rows + j / 16 * 16) * De, row = (kv * c->rows + j) * Dp;
            if (c->dtype == ME_FLOAT32) {
                for (int64_t d = 0; d < D; d++) ((float *)keys)[panel + d * 16 + j % 16] = k[d];
                memcpy((float *)values + row, v, (size_t)D * sizeof(float));
                continue;
            }
            memcpy(x[0], k, (size_t)D * sizeof(float));
            memcpy(x[1], v, (size_t)D * sizeof(float));
            if (c->dtype == ME_FLOAT16) {
                for (int t = 0; t < 2; t++) halves_of((uint16_t *)narrow[t], x[t], Dp);
                int16_t *to_k = (int16_t *)keys + panel + j % 16;
                for (int64_t d = 0; d < D; d++) to_k[d * 16] = narrow[0][d];
                memcpy((int16_t *)values + row, narrow[1], (size_t)D * sizeof(int16_t));
            } else {
                int8_t *to_k = (int8_t *)keys + panel + j % 16 * 2, *to_v = (int8_t *)values + row - j % 2 * Dp + j % 2;
                scales_of(c, c->k_scales, g->slot, s)[kv * c->rows + j] = round16(narrow[0], x[0], D, Dp, 127);
                scales_of(c, c->v_scales, g->slot, s)[kv * c->rows + j] = round16(narrow[1], x[1], D, Dp, 127);
                for (int64_t d = 0; d < D; d++) to_k[d / 2 * 32 + d % 2] = (int8_t)narrow[0][d];
                for (int64_t d = 0; d < D; d++) to_v[2 * d] = (int8_t)narrow[1][d];
            }
        }
    }
}
