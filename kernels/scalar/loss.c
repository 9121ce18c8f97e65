/* Cross-entropy of rows of logits, without a second copy of them. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

#define ROWS_END ((int64_t)V / LANES * LANES)

/* lse = max + log(sum(exp(logits - max))); term = weight * (lse - logits[target]) */
ME_KERNEL(cross_entropy_forward) {
    const struct me_cross_entropy *a = args;
    int64_t V = a->V, whole = ROWS_END;
    for (int64_t i = begin; i < end; i++) {
        const float *x = a->logits + i * V;
        vf top = v_load_part(x + whole, V - whole, -INFINITY), sum = v_set(0);
        for (int64_t j = 0; j < whole; j += LANES) top = v_max(top, v_load(x + j));
        float max = v_largest(top);
        if (max == -INFINITY) max = 0;  /* a row of -inf: lse is -inf, not NaN */
        vf m = v_set(max);
        for (int64_t j = 0; j < whole; j += LANES) sum += v_exp(v_load(x + j) - m);
        if (whole < V) sum += v_exp(v_load_part(x + whole, V - whole, -INFINITY) - m);
        a->lse[i] = max + logf(v_sum(sum));
        a->terms[i] = a->weights[i] == 0 ? 0.0 : (double)a->weights[i] * ((double)a->lse[i] - (double)x[a->targets[i]]);
    }
}

/* dlogits = dloss * weight * (softmax - one_hot(target)), softmax = exp(logits - lse) */
ME_KERNEL(cross_entropy_backward) {
    const struct me_cross_entropy *a = args;
    int64_t V = a->V, whole = ROWS_END;
    for (int64_t i = begin; i < end; i++) {
        const float *x = a->logits + i * V;
        float *dx = a->dlogits + i * V, scale = a->dloss * a->weights[i];
        if (scale == 0) {  /* a masked token: nothing to compute, and 0 * inf does not become NaN */
            memset(dx, 0, (size_t)V * sizeof(float));
            continue;
        }
        vf lse = v_set(a->lse[i]), s = v_set(scale);
        for (int64_t j = 0; j < whole; j += LANES) v_store(dx + j, s * v_exp(v_load(x + j) - lse));
        if (whole < V) v_store_part(dx + whole, s * v_exp(v_load_part(x + whole, V - whole, 0) - lse), V - whole);
        dx[a->targets[i]] -= scale;
    }
}
