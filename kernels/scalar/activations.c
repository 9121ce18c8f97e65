/* Activations, forward and backward next to each other. What they replace, number by number, rows lying one after the other:
 *
 *     for (i = 0; i < n; i++) out[i] = x[i] / (1 + exp(-1.5957691216 * (x[i] + 0.044715 * x[i]^3)));   gelu
 *     for (i = 0; i < n; i++) out[i] = gate[i] / (1 + exp(-gate[i])) * up[i];                          swiglu
 *
 * Four vectors go side by side (v_exps says why): on Zen 4 that and AVX-512's scalef took gelu's forward from 0.66 to 0.41
 * nanoseconds a number, its backward from 0.88 to 0.56. Instructions of the loop over 32 numbers (AVX2, AVX-512 in brackets; most
 * are the exponential's), nanoseconds a number from the cache, one core of an AMD EPYC (Zen 4), 2026-11-23, best of nine:
 *
 *     swiglu forward 149 (101), backward 183 (136)      0.49 (0.36), 0.65 (0.49)
 *     gelu   forward 163 (114), backward 201 (150)      0.59 (0.44), 0.75 (0.75)
 *
 * Limit: swiglu's forward moves 12 bytes a number, gelu's 8; at the 89.7 GB/s of y = x + 1 in the second-level cache in that run
 * 0.13 and 0.09 ns. The exponential is what these loops cost. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../vec.h"

#define SIDE 4

/* step(n, a, i, end) for elements begin..end-1: n vectors from i, whole ones where n is SIDE */
#define STEPS(step) \
    const struct me_elementwise *a = args; \
    int64_t i = begin; \
    for (; i + SIDE * LANES <= end; i += SIDE * LANES) step(SIDE, a, i, end); \
    for (; i < end; i += LANES) step(1, a, i, end)

INLINE void load(const int n, vf *to, const float *x, int64_t at, int64_t end) {
    V_EACH to[i] = n == SIDE ? v_load(x + at + LANES * i) : row_load(x, at, end);
}
INLINE void store(const int n, float *x, int64_t at, int64_t end, const vf *from) {
    V_EACH {
        if (n == SIDE) v_store(x + at + LANES * i, from[i]);
        else row_store(x, at, end, from[i]);
    }
}

/* out = gate * sigmoid(gate) * up */
INLINE void swiglu_forward_step(const int n, const struct me_elementwise *a, int64_t at, int64_t end) {
    vf gate[SIDE], up[SIDE], s[SIDE];
    load(n, gate, a->b, at, end);
    load(n, up, a->c, at, end);
    V_EACH s[i] = gate[i];
    v_sigmoids(n, s);
    V_EACH s[i] = gate[i] * s[i] * up[i];
    store(n, a->out, at, end, s);
}
ME_KERNEL(swiglu_forward) { STEPS(swiglu_forward_step); }

/* d silu(g)/dg = s * (1 + g * (1 - s)) with s = sigmoid(g) */
INLINE void swiglu_backward_step(const int n, const struct me_elementwise *a, int64_t at, int64_t end) {
    vf dout[SIDE], gate[SIDE], up[SIDE], s[SIDE], one = v_set(1);
    load(n, gate, a->b, at, end);
    V_EACH s[i] = gate[i];
    v_sigmoids(n, s);
    load(n, dout, a->a, at, end);
    load(n, up, a->c, at, end);
    V_EACH up[i] = dout[i] * up[i] * s[i] * (one + gate[i] * (one - s[i]));
    V_EACH s[i] = dout[i] * gate[i] * s[i];
    store(n, a->out, at, end, up);
    store(n, a->out2, at, end, s);
}
ME_KERNEL(swiglu_backward) { STEPS(swiglu_backward_step); }

/* x/2 (1 + tanh u) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3) */
INLINE void gelu_gates(const int n, vf *s, const vf *x) {
    V_EACH s[i] = v_set(1.5957691216f) * (x[i] + v_set(0.044715f) * x[i] * x[i] * x[i]);
    v_sigmoids(n, s);
}

INLINE void gelu_forward_step(const int n, const struct me_elementwise *a, int64_t at, int64_t end) {
    vf x[SIDE], s[SIDE];
    load(n, x, a->b, at, end);
    gelu_gates(n, s, x);
    V_EACH s[i] = x[i] * s[i];
    store(n, a->out, at, end, s);
}
ME_KERNEL(gelu_forward) { STEPS(gelu_forward_step); }

/* d/dx x s(2u) = s + x * s * (1 - s) * 2 du/dx */
INLINE void gelu_backward_step(const int n, const struct me_elementwise *a, int64_t at, int64_t end) {
    vf x[SIDE], s[SIDE], dout[SIDE], one = v_set(1);
    load(n, x, a->b, at, end);
    gelu_gates(n, s, x);
    load(n, dout, a->a, at, end);
    V_EACH {
        vf slope = v_set(1.5957691216f) * (one + v_set(0.134145f) * x[i] * x[i]);
        s[i] = dout[i] * (s[i] + x[i] * s[i] * (one - s[i]) * slope);
    }
    store(n, a->out, at, end, s);
}
ME_KERNEL(gelu_backward) { STEPS(gelu_backward_step); }
