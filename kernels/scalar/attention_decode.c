/* Attention over a cache of keys and values, for one new token or many: every query gets the bits that it would get alone.
 *
 * What it replaces, for one head and one query:
 *
 *     for (j = 0; j < seen; j++) p[j] = exp(dot(q, k[j]) / sqrt(D) - top);
 *     for (d = 0; d < D; d++) out[d] = sum_j p[j] * v[j][d] / sum_j p[j];
 *
 * The cache lies as tile() wants it (tile.h), so a query costs two multiply-adds per eight numbers read and no transposes:
 *
 *     k[slot][kv][j / 16][d][j % 16]      keys turned over in panels of 16
 *     v[slot][kv][j][0..Dp)               rows padded to a multiple of 16
 *
 * The past is cut into spans of 256 keys. A span's softmax stands alone (its top, total and weighted sum); spans join in
 * their order. So a thread may take one span of a long past or one query of a long prompt: the same sums either way.
 * Rows are pairs (query, head of a group): the heads that share keys read them together. Narrow caches (float16, int8)
 * are widened 16 keys or 64 values at a time, which costs one pass for all rows. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../tile.h"

#define ROWS ME_TILE_ROWS
#define CHUNK 64   /* values widened at a time; a chain of multiply-adds is no longer than this */

typedef int8_t v8b __attribute__((vector_size(8)));

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* tile() for 1 to 6 rows */
INLINE void rows_tile(int64_t rows, float *c, int64_t c_row, const float *a, int64_t a_row, const float *b, int64_t b_k, int64_t K,
                      int add) {
    switch (rows) {
    case 6: tile(6, c, c_row, a, a_row, 1, b, b_k, K, add); break;
    case 5: tile(5, c, c_row, a, a_row, 1, b, b_k, K, add); break;
    case 4: tile(4, c, c_row, a, a_row, 1, b, b_k, K, add); break;
    case 3: tile(3, c, c_row, a, a_row, 1, b, b_k, K, add); break;
    case 2: tile(2, c, c_row, a, a_row, 1, b, b_k, K, add); break;
    default: tile(1, c, c_row, a, a_row, 1, b, b_k, K, add);
    }
}

INLINE vf widen_codes(const int8_t *codes) {
    v8b bytes;
    memcpy(&bytes, codes, sizeof bytes);
    return __builtin_convertvector(bytes, vf);
}

/* Panel of keys j.. of a head as float32: in place, or widened into `room`. */
INLINE const float *key_panel(const struct me_cache *c, int64_t head, int64_t j, int64_t D, float *room) {
    int64_t at = (head * c->room + j) * D;
    if (c->dtype == ME_FLOAT32) return (const float *)c->k + at;
    if (c->dtype == ME_FLOAT16) {
        const uint16_t *k = (const uint16_t *)c->k + at;
        for (int64_t i = 0; i < 16 * D; i += LANES) v_store(room + i, v_half(k + i));
        return room;
    }
    const int8_t *k = (const int8_t *)c->k + at;
    vf low = v_load(c->k_scales + head * c->room + j), high = v_load(c->k_scales + head * c->room + j + LANES);
    for (int64_t i = 0; i < 16 * D; i += 16) {
        v_store(room + i, widen_codes(k + i) * low);
        v_store(room + i + LANES, widen_codes(k + i + LANES) * high);
    }
    return room;
}

/* Values j .. j + n - 1 of a head as float32 rows of Dp. */
INLINE const float *value_rows(const struct me_cache *c, int64_t head, int64_t j, int64_t n, int64_t Dp, float *room) {
    int64_t at = (head * c->room + j) * Dp;
    if (c->dtype == ME_FLOAT32) return (const float *)c->v + at;
    if (c->dtype == ME_FLOAT16) {
        const uint16_t *v = (const uint16_t *)c->v + at;
        for (int64_t i = 0; i < n * Dp; i += LANES) v_store(room + i, v_half(v + i));
        return room;
    }
    const int8_t *v = (const int8_t *)c->v + at;
    for (int64_t i = 0; i < n; i++) {
        vf scale = v_set(c->v_scales[head * c->room + j + i]);
        for (int64_t d = 0; d < Dp; d += LANES) v_store(room + i * Dp + d, widen_codes(v + i * Dp + d) * scale);
    }
    return room;
}

/* p[0..keys) = exp(p - top) for the first `seen`, 0 beyond; keys a multiple of 8 */
INLINE void softmax_row(float *p, int64_t seen, int64_t keys, float *top, float *total) {
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
        vf e = v_select(lane < v_seti((int32_t)(seen - j)), v_exp(v_load(p + j) - v_set(largest)), v_set(0));
        v_store(p + j, e);
        sum += e;
    }
    *top = largest, *total = v_sum(sum);
}

struct item { const struct me_rows *group; int64_t kv, first, rows; };  /* rows first.. of a sequence and a key head */

/* acc (rows, Dp), top, total: span s as each row sees it. q (rows, D) is scaled already. */
static void attend(const struct me_cached *a, const struct item *x, int64_t s, const float *q, float *acc, float *top,
                   float *total, float *work) {
    int64_t D = a->D, Dp = round_up(D, 16), G = a->H / a->KV, head = x->group->slot * a->KV + x->kv, j0 = s * ME_SPAN;
    int64_t before = x->group->past + 1 - j0;  /* row r sees before + r / G keys of the span */
    int64_t most = smaller(ME_SPAN, before + (x->first + x->rows - 1) / G), keys = round_up(most, 16);
    float *p = work, *room = work + ROWS * ME_SPAN;
    if (most <= 0) {
        for (int64_t r = 0; r < x->rows; r++) total[r] = 0;
        return;
    }
    for (int64_t j = 0; j < keys; j += 16) {
        const float *panel = key_panel(a->cache, head, j0 + j, D, room);
        for (int64_t r = 0; r < x->rows; r += 6)
            rows_tile(smaller(6, x->rows - r), p + r * ME_SPAN + j, ME_SPAN, q + r * D, D, panel, 16, D, 0);
    }
    for (int64_t r = 0; r < x->rows; r++)
        softmax_row(p + r * ME_SPAN, smaller(ME_SPAN, before + (x->first + r) / G), keys, top + r, total + r);
    for (int64_t j = 0; j < most; j += CHUNK) {
        int64_t n = smaller(CHUNK, most - j);
        const float *v = value_rows(a->cache, head, j0 + j, n, Dp, room);
        for (int64_t r = 0; r < x->rows; r += 6)
            for (int64_t d = 0; d < Dp; d += 16)
                rows_tile(smaller(6, x->rows - r), acc + r * Dp + d, Dp, p + r * ME_SPAN + j, ME_SPAN, v + d, Dp, n, j > 0);
    }
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

INLINE void divide(float *out, const float *acc, float total, int64_t D) {
    for (int64_t d = 0; d < D; d++) out[d] = acc[d] / total;
}

/* Items: for each sequence its key heads x tiles of rows (x spans, where `parts` takes the partial results). */
ME_KERNEL(cached_attention) {
    const struct me_cached *a = args;
    int64_t D = a->D, Dp = round_up(D, 16), G = a->H / a->KV;
    float work[ROWS * ME_SPAN + (D > CHUNK ? D : CHUNK) * Dp], q[ROWS * D], acc[ROWS * Dp], acc2[ROWS * Dp];
    float top[ROWS], total[ROWS], top2[ROWS], total2[ROWS], scale = 1.0f / __builtin_sqrtf((float)D);
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
            for (int64_t d = 0; d < D; d++) q[r * D + d] = scale * a->q[at[r] * D + d];
        }
        if (a->parts) {
            attend(a, &x, span, q, acc, top, total, work);
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
            attend(a, &x, s, q, acc2, top2, total2, work);
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

/* One vector of D numbers as codes: d = max|x| / 127, halves away from zero, as int8_quantize rounds. */
INLINE float vector_scale(const float *x, int64_t D) {
    float top = 0;
    for (int64_t d = 0; d < D; d++) {
        float magnitude = __builtin_fabsf(x[d]);
        if (!(magnitude <= top)) top = magnitude;  /* a NaN stays */
    }
    return top / 127.0f;
}

INLINE int8_t code(float x, float inverse) {
    x *= inverse;
    if (x != x) return 0;
    x = x > 127 ? 127 : x < -127 ? -127 : x;
    return (int8_t)(x + (x < 0 ? -0.5f : 0.5f));
}

/* Items: rows. k and v (rows, KV, D) go to their places in the cache. */
ME_KERNEL(cache_store) {
    const struct me_stored *a = args;
    const struct me_cache *c = a->cache;
    int64_t D = a->D, Dp = round_up(D, 16);
    const struct me_rows *g = a->groups;
    for (int64_t i = begin; i < end; i++) {
        while (i >= g->first + g->count) g++;
        int64_t j = g->past + i - g->first;
        for (int64_t kv = 0; kv < a->KV; kv++) {
            const float *k = a->k + (i * a->KV + kv) * D, *v = a->v + (i * a->KV + kv) * D;
            int64_t head = g->slot * a->KV + kv, panel = (head * c->room + j / 16 * 16) * D + j % 16, row = (head * c->room + j) * Dp;
            if (c->dtype == ME_FLOAT32) {
                for (int64_t d = 0; d < D; d++) ((float *)c->k)[panel + d * 16] = k[d];
                memcpy((float *)c->v + row, v, (size_t)D * sizeof(float));
            } else if (c->dtype == ME_FLOAT16) {
                for (int64_t d = 0; d < D; d++) ((uint16_t *)c->k)[panel + d * 16] = float_to_half(k[d]);
                for (int64_t d = 0; d < D; d++) ((uint16_t *)c->v)[row + d] = float_to_half(v[d]);
            } else {
                float k_scale = vector_scale(k, D), v_scale = vector_scale(v, D);
                float k_inverse = k_scale != 0 ? 1.0f / k_scale : 0, v_inverse = v_scale != 0 ? 1.0f / v_scale : 0;
                c->k_scales[head * c->room + j] = k_scale, c->v_scales[head * c->room + j] = v_scale;
                for (int64_t d = 0; d < D; d++) ((int8_t *)c->k)[panel + d * 16] = code(k[d], k_inverse);
                for (int64_t d = 0; d < D; d++) ((int8_t *)c->v)[row + d] = code(v[d], v_inverse);
            }
        }
    }
}
