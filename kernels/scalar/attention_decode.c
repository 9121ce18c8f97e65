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
#define PANELS 32  /* keys widened at a time */
#define CHUNK 64   /* values widened at a time; a chain of multiply-adds is no longer than this */

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* c[r][0..32) = (add ? c : 0) + sum_k a[r][k] * (left[k * b_k + 0..16), right[k * b_k + 0..16)) for few rows, where tile()
 * would wait for its multiply-adds: the same chain for each result. */
INLINE void wide_tile(const int rows, float *restrict c, int64_t c_row, const float *restrict a, int64_t a_row,
                      const float *restrict left, const float *restrict right, int64_t b_k, int64_t K, int add) {
    vf s[3][4];
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = s[r][2] = s[r][3] = v_set(0);
    for (int64_t k = 0; k < K; k++) {
        vf b0 = v_load(left + k * b_k), b1 = v_load(left + k * b_k + LANES);
        vf b2 = v_load(right + k * b_k), b3 = v_load(right + k * b_k + LANES);
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) {
            vf x = v_set(a[r * a_row + k]);
            s[r][0] = v_fma(x, b0, s[r][0]);
            s[r][1] = v_fma(x, b1, s[r][1]);
            s[r][2] = v_fma(x, b2, s[r][2]);
            s[r][3] = v_fma(x, b3, s[r][3]);
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) {
            float *to = c + r * c_row + i * LANES;
            v_store(to, add ? v_load(to) + s[r][i] : s[r][i]);
        }
}

/* rows x columns results, columns a multiple of 16; 16 columns of b lie b_next from the 16 before. Rows go in even groups of
 * up to 6: eight as 4 + 4. */
INLINE void product(int64_t rows, int64_t columns, float *c, int64_t c_row, const float *a, int64_t a_row, const float *b,
                    int64_t b_k, int64_t b_next, int64_t K, int add) {
    int64_t groups = (rows + 5) / 6, each = (rows + groups - 1) / groups;
    for (int64_t r = 0; r < rows; r += each, c += each * c_row, a += each * a_row) {
        int64_t n = smaller(each, rows - r), j = 0;
        if (n <= 3)
            for (; j + 32 <= columns; j += 32) {
                const float *left = b + j / 16 * b_next;
                switch (n) {
                case 3: wide_tile(3, c + j, c_row, a, a_row, left, left + b_next, b_k, K, add); break;
                case 2: wide_tile(2, c + j, c_row, a, a_row, left, left + b_next, b_k, K, add); break;
                default: wide_tile(1, c + j, c_row, a, a_row, left, left + b_next, b_k, K, add);
                }
            }
        for (; j < columns; j += 16) {
            const float *from = b + j / 16 * b_next;
            switch (n) {
            case 6: tile(6, c + j, c_row, a, a_row, 1, from, b_k, K, add); break;
            case 5: tile(5, c + j, c_row, a, a_row, 1, from, b_k, K, add); break;
            case 4: tile(4, c + j, c_row, a, a_row, 1, from, b_k, K, add); break;
            case 3: tile(3, c + j, c_row, a, a_row, 1, from, b_k, K, add); break;
            case 2: tile(2, c + j, c_row, a, a_row, 1, from, b_k, K, add); break;
            default: tile(1, c + j, c_row, a, a_row, 1, from, b_k, K, add);
            }
        }
    }
}

INLINE vf widen_codes(const int8_t *codes) {
#if defined(ME_AVX2)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
#elif defined(ME_NEON)
    int16x8_t wide = vmovl_s8(vld1_s8(codes));
    vf_halves h;
    h.half[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    h.half[1] = vcvtq_f32_s32(vmovl_high_s16(wide));
    return h.v;
#else
    return (vf){codes[0], codes[1], codes[2], codes[3], codes[4], codes[5], codes[6], codes[7]};
#endif
}

/* n / 16 panels of keys j.. of a head as float32: in place, or widened into `room`. */
INLINE const float *key_panels(const struct me_cache *c, int64_t head, int64_t j, int64_t n, int64_t D, float *room) {
    int64_t at = (head * c->room + j) * D;
    if (c->dtype == ME_FLOAT32) return (const float *)c->k + at;
    if (c->dtype == ME_FLOAT16) {
        const uint16_t *k = (const uint16_t *)c->k + at;
        for (int64_t i = 0; i < n * D; i += LANES) v_store(room + i, v_half(k + i));
        return room;
    }
    const int8_t *k = (const int8_t *)c->k + at;
    for (int64_t p = 0; p < n; p += 16) {
        const float *scales = c->k_scales + head * c->room + j + p;
        vf low = v_load(scales), high = v_load(scales + LANES);
        for (int64_t i = p * D; i < (p + 16) * D; i += 16) {
            v_store(room + i, widen_codes(k + i) * low);
            v_store(room + i + LANES, widen_codes(k + i + LANES) * high);
        }
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
    for (int64_t j = 0; j < keys; j += PANELS) {
        int64_t n = smaller(PANELS, keys - j);
        const float *panels = key_panels(a->cache, head, j0 + j, n, D, room);
        product(x->rows, n, p + j, ME_SPAN, q, D, panels, 16, 16 * D, D, 0);
    }
    for (int64_t r = 0; r < x->rows; r++)
        softmax_row(p + r * ME_SPAN, smaller(ME_SPAN, before + (x->first + r) / G), keys, top + r, total + r);
    for (int64_t j = 0; j < most; j += CHUNK) {
        int64_t n = smaller(CHUNK, most - j);
        const float *v = value_rows(a->cache, head, j0 + j, n, Dp, room);
        product(x->rows, Dp, acc, Dp, p + j, ME_SPAN, v, Dp, 16, n, j > 0);
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
    float work[ROWS * ME_SPAN + 2 * (D > CHUNK ? D : CHUNK) * Dp], q[ROWS * D], acc[ROWS * Dp], acc2[ROWS * Dp];
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
