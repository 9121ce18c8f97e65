/* Causal attention without a (T, S) matrix: scores live in a tile of 48 queries x 48 keys, softmax is kept up online, and
 * backward makes the probabilities again from the saved log-sum-exp (FlashAttention, arXiv:2205.14135). What it replaces, for a head:
 *
 *     for (i < T) { for (j <= i) p[j] = dot(q[i], k[j]) / sqrt(D);  softmax(p);  out[i] = sum_j p[j] * v[j]; }
 *
 * Keys and values of a head are first laid out for tile(): K and V transposed in panels of 16 keys, rows padded to a
 * multiple of 16 columns with zeros. 48 is a multiple of both the tile's 6 rows and its 16 columns.
 *
 * The inner loops are tile()'s (tile.h: 24 instructions for 96 multiply-adds with AVX2, 11 with AVX-512); softmax adds about 30 for eight
 * scores. One core of an AMD EPYC (Zen 4), 384 tokens, 4 heads of 64 numbers, 2026-11-23, best of nine: forward 67.9 GFLOP/s with AVX2,
 * 76.1 with AVX-512, backward 84.2 and 85.3, counting the multiply-adds of visible pairs only (2 D forward, 5 D backward a pair).
 * Limit: the matrix product's 118 GFLOP/s; exponentials, layouts and the tiles' masked halves are what is missing. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../tile.h"
#include <stdlib.h>

#define SPAN 48

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* panel[j / 16][d][j % 16] = x[j * step + d]: the transpose as b-operands of tile(); zeros for keys n.. */
static void pack_transposed(float *panel, const float *x, int64_t step, int64_t n, int64_t D) {
    for (int64_t j = 0; j < round_up(n, SPAN); j += 16)
        pack_panel(panel + j * D, x + j * step, step, n - j < 0 ? 0 : smaller(16, n - j), D);
}

/* rows[j][0..Dp) = scale * x[j * step + d], padded with zeros to `padded` rows */
static void pack_rows(float *rows, const float *x, int64_t step, int64_t n, int64_t padded, int64_t D, int64_t Dp, float scale) {
    for (int64_t j = 0; j < n; j++) {
        for (int64_t d = 0; d < D; d++) rows[j * Dp + d] = scale * x[j * step + d];
        for (int64_t d = D; d < Dp; d++) rows[j * Dp + d] = 0;
    }
    memset(rows + n * Dp, 0, (size_t)((padded - n) * Dp) * sizeof(float));
}

/* c (6, keys) = a (6, D) times panels of `keys` keys, keys a multiple of 16 */
INLINE void scores6(float *c, const float *a, int64_t Dp, const float *panels, int64_t D, int64_t keys) {
    for (int64_t j = 0; j < keys; j += 16) tile(6, c + j, SPAN, a, Dp, 1, panels + j * D, 16, D, 0);
}

/* c (6, Dp) += a^(T) (6, K) times rows (K, Dp); a[r * a_row + k * a_k] */
INLINE void accumulate6(float *c, const float *a, int64_t a_row, int64_t a_k, const float *rows, int64_t Dp, int64_t K) {
    for (int64_t d = 0; d < Dp; d += 16) tile(6, c + d, Dp, a, a_row, a_k, rows + d, Dp, K, 1);
}

/* One row of scores to probabilities of the running softmax: returns the factor for what was summed so far. */
INLINE float online_row(float *p, int64_t seen, int64_t keys, float *top, float *total) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    if (seen <= 0) {
        memset(p, 0, (size_t)keys * sizeof(float));
        return 1;
    }
    vf m = v_set(*top);
    for (int64_t j = 0; j < keys; j += LANES)
        m = v_max(m, v_select(lane < v_seti((int32_t)(seen - j)), v_load(p + j), v_set(-INFINITY)));
    float new_top = v_largest(m);
    if (new_top == -INFINITY) new_top = 0;
    vf sum = v_set(0);
    for (int64_t j = 0; j < keys; j += LANES) {
        vf e = v_select(lane < v_seti((int32_t)(seen - j)), v_exp(v_load(p + j) - v_set(new_top)), v_set(0));
        v_store(p + j, e);
        sum += e;
    }
    float factor = v_exp(v_set(*top - new_top))[0];
    *total = *total * factor + v_sum(sum);
    *top = new_top;
    return factor;
}

/* out = softmax(q k^T / sqrt(D)) v for queries i0.. of one head */
static void forward_tile(const struct me_attention *a, float *out, float *lse, const float *q, const float *kt, const float *v,
                         int64_t i0, float *work) {
    int64_t D = a->D, Dp = round_up(D, 16), step = a->H * D, rows = smaller(SPAN, a->T - i0), padded = round_up(rows, 6);
    float *qs = work, *acc = qs + SPAN * Dp, *p = acc + SPAN * Dp;
    float top[SPAN], total[SPAN];
    pack_rows(qs, q + i0 * step, step, rows, padded, D, Dp, 1.0f / __builtin_sqrtf((float)D));
    memset(acc, 0, (size_t)(padded * Dp) * sizeof(float));
    for (int r = 0; r < SPAN; r++) top[r] = -INFINITY, total[r] = 0;
    int64_t before = i0 + a->S - a->T;  /* row r sees keys 0 .. before + r */
    for (int64_t j0 = 0; j0 < before + rows; j0 += SPAN)
        for (int64_t r0 = 0; r0 < padded; r0 += 6) {
            int64_t most = smaller(SPAN, before + smaller(r0 + 5, rows - 1) - j0 + 1);  /* what the group's last row sees */
            if (most <= 0) continue;
            int64_t keys = round_up(most, 16);
            scores6(p, qs + r0 * Dp, Dp, kt + j0 * D, D, keys);
            for (int64_t r = r0; r < r0 + 6; r++) {
                int64_t seen = r < rows ? smaller(SPAN, before + r - j0 + 1) : 0;
                float factor = online_row(p + (r - r0) * SPAN, seen, keys, top + r, total + r);
                if (factor != 1)
                    for (int64_t d = 0; d < Dp; d += LANES) v_store(acc + r * Dp + d, v_set(factor) * v_load(acc + r * Dp + d));
            }
            accumulate6(acc + r0 * Dp, p, SPAN, 1, v + j0 * Dp, Dp, most);
        }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t d = 0; d < D; d++) out[(i0 + r) * step + d] = acc[r * Dp + d] / total[r];
        lse[i0 + r] = top[r] + logf(total[r]);
    }
}

/* Items: heads of all batch entries. */
ME_KERNEL(attention_forward) {
    const struct me_attention *a = args;
    int64_t D = a->D, Dp = round_up(D, 16), Sp = round_up(a->S, SPAN), group = a->H / a->KV;
    float *kt = aligned_alloc(64, (size_t)round_up(Sp * D + Sp * Dp + 2 * SPAN * Dp + 6 * SPAN, 16) * sizeof(float));
    if (kt == NULL) {
        *a->failed = 1;
        return;
    }
    float *v = kt + Sp * D;
    for (int64_t item = begin; item < end; item++) {
        int64_t b = item / a->H, h = item % a->H, kv = h / group, at = (b * a->T * a->H + h) * D;
        if (item == begin || h % group == 0) {  /* heads of a group share what was laid out */
            pack_transposed(kt, a->k + b * a->k_step + kv * D, a->KV * D, a->S, D);
            pack_rows(v, a->v + b * a->v_step + kv * D, a->KV * D, a->S, Sp, D, Dp, 1);
        }
        for (int64_t i0 = 0; i0 < a->T; i0 += SPAN)
            forward_tile(a, a->out + at, a->lse + item * a->T, a->q + at, kt, v, i0, v + Sp * Dp);
    }
    free(kt);
}

/* The same for few queries, where laying out the keys would cost more than reading them once. */
ME_KERNEL(attention_decode) {
    const struct me_attention *a = args;
    int64_t D = a->D, group = a->H / a->KV, step = a->KV * D;
    float scale = 1.0f / __builtin_sqrtf((float)D), p[64];
    for (int64_t item = begin; item < end; item++) {
        int64_t b = item / a->H, h = item % a->H;
        const float *k = a->k + b * a->k_step + h / group * D, *v = a->v + b * a->v_step + h / group * D;
        for (int64_t t = 0; t < a->T; t++) {
            const float *q = a->q + ((b * a->T + t) * a->H + h) * D;
            float *out = a->out + ((b * a->T + t) * a->H + h) * D, top = -INFINITY, total = 0;
            memset(out, 0, (size_t)D * sizeof(float));
            for (int64_t j0 = 0, seen = a->S - a->T + t + 1; j0 < seen; j0 += 64) {
                int64_t n = smaller(64, seen - j0);
                for (int64_t j = 0; j < n; j++) p[j] = scale * v_dot(q, k + (j0 + j) * step, D);
                for (int64_t j = n; j < round_up(n, LANES); j++) p[j] = 0;
                float factor = online_row(p, n, round_up(n, LANES), &top, &total);
                if (factor != 1)
                    for (int64_t d = 0; d < D; d++) out[d] *= factor;
                for (int64_t j = 0; j < n; j++) v_axpy(out, p[j], v + (j0 + j) * step, D);
            }
            for (int64_t d = 0; d < D; d++) out[d] /= total;
            a->lse[item * a->T + t] = top + logf(total);
        }
    }
}

struct head { const float *q, *dout, *out, *lse; float *dq; };        /* one query head */
struct laid_out { float *kt, *vt, *k, *dk, *dv, *work; };             /* its keys and values, and the sums of their gradients */

/* Adds what queries i0.. of one head contribute: p = exp(q k^T - lse), ds = p * (dout v^T - sum(dout * out));
 * dq = ds k, dk += ds^T q, dv += p^T dout. q is scaled by 1 / sqrt(D) at the start, dq at the end. */
static void backward_tile(const struct me_attention *a, const struct head *x, const struct laid_out *l, int64_t i0) {
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    int64_t D = a->D, Dp = round_up(D, 16), step = a->H * D, rows = smaller(SPAN, a->T - i0), padded = round_up(rows, 6);
    float scale = 1.0f / __builtin_sqrtf((float)D), delta[SPAN];
    float *qs = l->work, *dout = qs + SPAN * Dp, *dq = dout + SPAN * Dp, *p = dq + SPAN * Dp, *ds = p + SPAN * SPAN;
    pack_rows(qs, x->q + i0 * step, step, rows, padded, D, Dp, scale);
    pack_rows(dout, x->dout + i0 * step, step, rows, padded, D, Dp, 1);
    memset(dq, 0, (size_t)(padded * Dp) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) delta[r] = v_dot(x->dout + (i0 + r) * step, x->out + (i0 + r) * step, D);
    int64_t before = i0 + a->S - a->T;
    for (int64_t j0 = 0; j0 < before + rows; j0 += SPAN) {
        int64_t first = j0 - before > 0 ? (j0 - before) / 6 * 6 : 0;  /* rows above see none of these keys */
        int64_t widest = round_up(smaller(SPAN, before + rows - j0), 16);
        for (int64_t r0 = first; r0 < padded; r0 += 6) {
            float *p6 = p + r0 * SPAN, *ds6 = ds + r0 * SPAN;
            scores6(p6, qs + r0 * Dp, Dp, l->kt + j0 * D, D, widest);
            scores6(ds6, dout + r0 * Dp, Dp, l->vt + j0 * D, D, widest);
            for (int64_t r = r0; r < r0 + 6; r++) {
                int32_t seen = (int32_t)(r < rows ? smaller(SPAN, before + r - j0 + 1) : 0);
                vf lse = v_set(r < rows ? x->lse[i0 + r] : 0), dot = v_set(r < rows ? delta[r] : 0);
                for (int64_t j = 0; j < widest; j += LANES) {
                    vi visible = lane < v_seti(seen - (int32_t)j);
                    vf prob = v_select(visible, v_exp(v_load(p + r * SPAN + j) - lse), v_set(0));
                    v_store(p + r * SPAN + j, prob);
                    v_store(ds + r * SPAN + j, v_select(visible, prob * (v_load(ds + r * SPAN + j) - dot), v_set(0)));
                }
                if (widest < SPAN) {  /* the last six columns of the transposes below may lie past 16 or 32 */
                    v_store(p + r * SPAN + widest, v_set(0));
                    v_store(ds + r * SPAN + widest, v_set(0));
                }
            }
            accumulate6(dq + r0 * Dp, ds6, SPAN, 1, l->k + j0 * Dp, Dp, smaller(widest, a->S - j0));
        }
        for (int64_t j = 0; j < widest; j += 6) {  /* rows of the transposes: a[r * 1 + k * SPAN]; SPAN is a multiple of 6 */
            accumulate6(l->dk + (j0 + j) * Dp, ds + first * SPAN + j, 1, SPAN, qs + first * Dp, Dp, padded - first);
            accumulate6(l->dv + (j0 + j) * Dp, p + first * SPAN + j, 1, SPAN, dout + first * Dp, Dp, padded - first);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < D; d++) x->dq[(i0 + r) * step + d] = scale * dq[r * Dp + d];
}

/* Items: key heads of all batch entries; the query heads of a group add up in their order. */
ME_KERNEL(attention_backward) {
    const struct me_attention *a = args;
    int64_t D = a->D, Dp = round_up(D, 16), T = a->T, S = a->S, H = a->H, Sp = round_up(S, SPAN), group = H / a->KV;
    size_t floats = (size_t)round_up(2 * Sp * D + 3 * Sp * Dp + 3 * SPAN * Dp + 2 * SPAN * SPAN, 16);
    float *scratch = aligned_alloc(64, floats * sizeof(float));
    if (scratch == NULL) {
        *a->failed = 1;
        return;
    }
    struct laid_out l = {.kt = scratch, .vt = scratch + Sp * D, .k = scratch + 2 * Sp * D};
    l.dk = l.k + Sp * Dp;
    l.dv = l.dk + Sp * Dp;
    l.work = l.dv + Sp * Dp;
    for (int64_t item = begin; item < end; item++) {
        int64_t b = item / a->KV, kv = item % a->KV, step = a->KV * D;
        const float *k = a->k + b * a->k_step + kv * D, *v = a->v + b * a->v_step + kv * D;
        pack_transposed(l.kt, k, step, S, D);
        pack_transposed(l.vt, v, step, S, D);
        pack_rows(l.k, k, step, S, Sp, D, Dp, 1);
        memset(l.dk, 0, (size_t)(2 * Sp * Dp) * sizeof(float));  /* dk and dv */
        for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
            int64_t at = (b * T * H + h) * D;
            struct head x = {a->q + at, a->dout + at, a->saved + at, a->lse + (b * H + h) * T, a->dq + at};
            for (int64_t i0 = 0; i0 < T; i0 += SPAN) backward_tile(a, &x, &l, i0);
        }
        for (int64_t j = 0; j < S; j++)
            for (int64_t d = 0; d < D; d++) {
                a->dk[(b * S + j) * step + kv * D + d] = l.dk[j * Dp + d];
                a->dv[(b * S + j) * step + kv * D + d] = l.dv[j * Dp + d];
            }
    }
    free(scratch);
}
