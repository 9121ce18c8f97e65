/* Embedding, bias, normalisation, rotary positions and activations, forward and backward next to each other.
 * The loops run over eight lanes (vec.h); the last C % 8 columns take the same path through padded loads. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

/* Loads and stores of columns c.. of a row of C: whole vectors inside, parts at the end. */
INLINE vf row_load(const float *row, int64_t c, int64_t C) {
    return c + LANES <= C ? v_load(row + c) : v_load_part(row + c, C - c, 0);
}
INLINE void row_store(float *row, int64_t c, int64_t C, vf v) {
    if (c + LANES <= C) v_store(row + c, v);
    else v_store_part(row + c, v, C - c);
}
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

/* n = (x - mean) * rstd with rstd = 1 / sqrt(var + eps); out = n * weight + bias */
ME_KERNEL(layer_norm_forward) {
    const struct me_norm_forward *a = args;
    int64_t C = a->C;
    for (int64_t i = begin; i < end; i++) {
        const float *x = a->x + i * C;
        vf sum = v_set(0), squares = v_set(0);
        for (int64_t c = 0; c < C; c += LANES) sum += row_load(x, c, C);
        float mean = v_sum(sum) / (float)C;
        for (int64_t c = 0; c < C; c += LANES) {  /* the second pass avoids E[x^2] - E[x]^2 */
            vf d = (row_load(x, c, C) - v_set(mean)) * row_ones(c, C);
            squares = v_fma(d, d, squares);
        }
        float rstd = 1.0f / __builtin_sqrtf(v_sum(squares) / (float)C + a->eps);
        a->mean[i] = mean;
        a->rstd[i] = rstd;
        for (int64_t c = 0; c < C; c += LANES) {
            vf n = (row_load(x, c, C) - v_set(mean)) * v_set(rstd);
            row_store(a->out + i * C, c, C, v_fma(n, row_load(a->weight, c, C), row_load(a->bias, c, C)));
        }
    }
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

/* out = gate * sigmoid(gate) * up */
ME_KERNEL(swiglu_forward) {
    const struct me_elementwise *a = args;
    for (int64_t i = begin; i < end; i += LANES) {
        vf gate = row_load(a->b, i, end);
        row_store(a->out, i, end, gate * v_sigmoid(gate) * row_load(a->c, i, end));
    }
}

/* d silu(g)/dg = s * (1 + g * (1 - s)) with s = sigmoid(g) */
ME_KERNEL(swiglu_backward) {
    const struct me_elementwise *a = args;
    for (int64_t i = begin; i < end; i += LANES) {
        vf dout = row_load(a->a, i, end), gate = row_load(a->b, i, end), s = v_sigmoid(gate), one = v_set(1);
        row_store(a->out, i, end, dout * row_load(a->c, i, end) * s * (one + gate * (one - s)));
        row_store(a->out2, i, end, dout * gate * s);
    }
}

/* x/2 (1 + tanh u) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3) */
INLINE vf gelu_gate(vf x) { return v_sigmoid(v_set(1.5957691216f) * (x + v_set(0.044715f) * x * x * x)); }

ME_KERNEL(gelu_forward) {
    const struct me_elementwise *a = args;
    for (int64_t i = begin; i < end; i += LANES) {
        vf x = row_load(a->b, i, end);
        row_store(a->out, i, end, x * gelu_gate(x));
    }
}

/* d/dx x s(2u) = s + x * s * (1 - s) * 2 du/dx */
ME_KERNEL(gelu_backward) {
    const struct me_elementwise *a = args;
    for (int64_t i = begin; i < end; i += LANES) {
        vf x = row_load(a->b, i, end), s = gelu_gate(x), one = v_set(1);
        vf slope = v_set(1.5957691216f) * (one + v_set(0.134145f) * x * x);
        row_store(a->out, i, end, row_load(a->a, i, end) * (s + x * s * (one - s) * slope));
    }
}
