/* Embedding, bias, normalisation and rotary positions, forward and backward next to each other.
 * The loops run over eight lanes (vec.h); the last C % 8 columns take the same path through padded loads.
 *
 *     for i, c:  out[i][c] = (x[i][c] - mean[i]) * rstd[i] * weight[c] + bias[c]        layer norm; the others are drawn at each kernel
 *
 *     row i    | x0 .. x7 | x8 .. x15 | ..        eight columns of a row are a vector; sums of a row are added at its end
 *     weight   | w0 .. w7 | w8 .. w15 | ..
 *
 * Instructions a number, counted by single steps (AVX2, C = 1024): RMS norm 2.2, layer norm 1.8, its backward 6.6, rotary 2.1.
 * One core of an AMD EPYC (Zen 4), 65,536 numbers, best of nine, 2026-11-23: bias 0.09 ns a number, RMS norm 0.22, layer norm 0.28, rotary
 * 0.15. Limit: a loop that reads and writes as much took 0.09 ns in the second-level cache, 0.34 in memory (90, 23.4 GB/s). */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* columns c..c+7 of a row of C that exist, as ones; the others 0 */
INLINE vf row_ones(int64_t c, int64_t C) {
    return c + LANES <= C ? v_set(1) : v_load_part((const float[LANES]){1, 1, 1, 1, 1, 1, 1, 1}, C - c, 0);
}

/* out[t] = weight[ids[t]] */
ME_KERNEL(embedding_forward) {
    const struct me_embedding *a = args;
    for (int64_t t = begin; t < end; t++)
        memcpy(a->out + t * a->C, a->in + a->ids[t] * a->C, (size_t)a->C * sizeof(float));
}

/* dweight[ids[t]] += dout[t], tokens in order; a task owns ME_COLUMNS columns of all rows, zeroed by the caller */
ME_KERNEL(embedding_backward) {
    const struct me_embedding *a = args;
    int64_t c0 = begin * ME_COLUMNS, c1 = end * ME_COLUMNS < a->C ? end * ME_COLUMNS : a->C;
    for (int64_t t = 0; t < a->N; t++) {
        float *dweight = a->out + a->ids[t] * a->C;
        const float *dout = a->in + t * a->C;
        for (int64_t c = c0; c < c1; c++) dweight[c] += dout[c];
    }
}

/* out = x + bias */
ME_KERNEL(bias_forward) {
    const struct me_bias *a = args;
    for (int64_t i = begin; i < end; i++)
        for (int64_t c = 0; c < a->C; c++) a->out[i * a->C + c] = a->x[i * a->C + c] + a->bias[c];
}

/* out[part] = sum of x over the rows of one part */
ME_KERNEL(bias_backward) {
    const struct me_bias *a = args;
    int64_t C = a->C;
    for (int64_t p = begin; p < end; p++) {
        float *sum = a->out + p * C;
        int64_t last = (p + 1) * ME_PART_ROWS < a->N ? (p + 1) * ME_PART_ROWS : a->N;
        for (int64_t c = 0; c < C; c++) sum[c] = 0;
        for (int64_t i = p * ME_PART_ROWS; i < last; i++)
            for (int64_t c = 0; c < C; c++) sum[c] += a->x[i * C + c];
    }
}

/* rstd = 1 / sqrt(mean(x^2) + eps); out = x * rstd * weight */
ME_KERNEL(rms_norm_forward) {
    const struct me_norm_forward *a = args;
    int64_t C = a->C;
    for (int64_t i = begin; i < end; i++) {
        const float *x = a->x + i * C;
        float rstd = 1.0f / __builtin_sqrtf(v_dot(x, x, C) / (float)C + a->eps);
        a->rstd[i] = rstd;
        for (int64_t c = 0; c < C; c += LANES)
            row_store(a->out + i * C, c, C, row_load(x, c, C) * v_set(rstd) * row_load(a->weight, c, C));
    }
}

/* With n = x * rstd and g = dout * weight: dweight += dout * n; dx = rstd * (g - n * mean(g * n)) */
ME_KERNEL(rms_norm_backward) {
    const struct me_norm_backward *a = args;
    int64_t C = a->C;
    for (int64_t p = begin; p < end; p++) {
        float *dweight = a->dweight_parts + p * C;
        int64_t last = (p + 1) * ME_PART_ROWS < a->N ? (p + 1) * ME_PART_ROWS : a->N;
        memset(dweight, 0, (size_t)C * sizeof(float));
        for (int64_t i = p * ME_PART_ROWS; i < last; i++) {
            const float *x = a->x + i * C, *dout = a->dout + i * C;
            vf rstd = v_set(a->rstd[i]), dot = v_set(0);
            for (int64_t c = 0; c < C; c += LANES) {
                vf n = row_load(x, c, C) * rstd, d = row_load(dout, c, C);
                dot = v_fma(d * row_load(a->weight, c, C), n, dot);
                row_store(dweight, c, C, v_fma(d, n, row_load(dweight, c, C)));
            }
            vf mean = v_set(v_sum(dot) / (float)C);
            for (int64_t c = 0; c < C; c += LANES) {
                vf n = row_load(x, c, C) * rstd;
                row_store(a->dx + i * C, c, C, rstd * (row_load(dout, c, C) * row_load(a->weight, c, C) - n * mean));
            }
        }
    }
}

/* A row's sums are chains in which each addition waits for the last, so NORM_ROWS rows go side by side: 1.18 ms became 0.71 for
 * the 17 layer norms of a step of 4 layers x 128 (Zen 4). Backward was not faster so. */
#define NORM_ROWS 4
#define LOAD(row, c, C) (whole ? v_load(row + c) : row_load(row, c, C))  /* whole: C is a multiple of 8 */

/* n = (x - mean) * rstd with rstd = 1 / sqrt(var + eps); out = n * weight + bias; n rows from row `at` */
INLINE void layer_norm_rows(const int n, const int whole, const struct me_norm_forward *a, int64_t at) {
    int64_t C = a->C;
    const float *x = a->x + at * C;
    vf sum[NORM_ROWS], squares[NORM_ROWS], mean[NORM_ROWS], rstd[NORM_ROWS];
    V_EACH sum[i] = squares[i] = v_set(0);
    for (int64_t c = 0; c < C; c += LANES) V_EACH sum[i] += LOAD(x + i * C, c, C);
    V_EACH mean[i] = v_set(a->mean[at + i] = v_sum(sum[i]) / (float)C);
    for (int64_t c = 0; c < C; c += LANES)  /* the second pass avoids E[x^2] - E[x]^2 */
        V_EACH {
            vf d = LOAD(x + i * C, c, C) - mean[i];
            if (!whole) d *= row_ones(c, C);
            squares[i] = v_fma(d, d, squares[i]);
        }
    V_EACH rstd[i] = v_set(a->rstd[at + i] = 1.0f / __builtin_sqrtf(v_sum(squares[i]) / (float)C + a->eps));
    for (int64_t c = 0; c < C; c += LANES) {
        vf weight = LOAD(a->weight, c, C), bias = LOAD(a->bias, c, C);
        V_EACH {
            vf out = v_fma((LOAD(x + i * C, c, C) - mean[i]) * rstd[i], weight, bias);
            if (whole) v_store(a->out + (at + i) * C + c, out);
            else row_store(a->out + (at + i) * C, c, C, out);
        }
    }
}
ME_KERNEL(layer_norm_forward) {
    const struct me_norm_forward *a = args;
    if (a->C % LANES == 0)
        for (; begin + NORM_ROWS <= end; begin += NORM_ROWS) layer_norm_rows(NORM_ROWS, 1, a, begin);
    for (; begin < end; begin++) layer_norm_rows(1, 0, a, begin);
}

/* With g = dout * weight: dbias += dout; dweight += dout * n; dx = rstd * (g - mean(g) - n * mean(g * n)) */
ME_KERNEL(layer_norm_backward) {
    const struct me_norm_backward *a = args;
    int64_t C = a->C;
    for (int64_t p = begin; p < end; p++) {
        float *dweight = a->dweight_parts + p * C, *dbias = a->dbias_parts + p * C;
        int64_t last = (p + 1) * ME_PART_ROWS < a->N ? (p + 1) * ME_PART_ROWS : a->N;
        memset(dweight, 0, (size_t)C * sizeof(float));
        memset(dbias, 0, (size_t)C * sizeof(float));
        for (int64_t i = p * ME_PART_ROWS; i < last; i++) {
            const float *x = a->x + i * C, *dout = a->dout + i * C;
            vf mean = v_set(a->mean[i]), rstd = v_set(a->rstd[i]), dot = v_set(0), sum = v_set(0);
            for (int64_t c = 0; c < C; c += LANES) {
                vf n = (row_load(x, c, C) - mean) * rstd, d = row_load(dout, c, C), g = d * row_load(a->weight, c, C);
                dot = v_fma(g, n, dot);  /* padded lanes: g is 0 there */
                sum += g;
                row_store(dweight, c, C, v_fma(d, n, row_load(dweight, c, C)));
                row_store(dbias, c, C, row_load(dbias, c, C) + d);
            }
            vf mean_gn = v_set(v_sum(dot) / (float)C), mean_g = v_set(v_sum(sum) / (float)C);
            for (int64_t c = 0; c < C; c += LANES) {
                vf n = (row_load(x, c, C) - mean) * rstd, g = row_load(dout, c, C) * row_load(a->weight, c, C);
                row_store(a->dx + i * C, c, C, rstd * (g - mean_g - n * mean_gn));
            }
        }
    }
}

/* Pairs (x1, x2) = (x[d], x[d + D/2]) turned by the angle of their position: (x1 cos - x2 sin, x2 cos + x1 sin).
 * Backward is the turn by the opposite angle: sign = -1. */
ME_KERNEL(rotary) {
    const struct me_rotary *a = args;
    int64_t H = a->H, D = a->D, half = a->D / 2;
    for (int64_t i = begin; i < end; i++) {
        const float *cos = a->cos + i % a->T * half, *sin = a->sin + i % a->T * half;
        for (int64_t h = 0; h < H; h++) {
            const float *x = a->x + (i * H + h) * D;
            float *out = a->out + (i * H + h) * D;
            for (int64_t d = 0; d < half; d += LANES) {
                vf c = row_load(cos, d, half), s = row_load(sin, d, half) * v_set(a->sign);
                vf x1 = row_load(x, d, half), x2 = row_load(x + half, d, half);
                row_store(out, d, half, x1 * c - x2 * s);
                row_store(out + half, d, half, x2 * c + x1 * s);
            }
        }
    }
}
