/* Matrix products of float32, after Goto and van de Geijn (doi:10.1145/1356052.1356053): a panel of b stays in the first-level
 * cache while the rows of a pass by. Every result is the sum, in order, of partial sums over DEPTH products, each of which
 * is one chain of multiply-adds: neither the number of threads nor the number of rows changes a bit. What it replaces:
 *
 *     for (m < M) for (n < N) for (k < K) c[m][n] += a[m][k] * b[k][n]
 *
 *                         16 columns of b, packed: [k][16]        in registers: 6 x 16 results, which go through k = 0 .. DEPTH - 1
 *     6 rows of a [k] -->  6 x 16 results of c                    then to c; the next six rows meet the same panel
 *
 * Instructions of the inner loop for 96 multiply-adds (tile.h): AVX2 24, 12 of them multiply-adds; AVX-512 11 and 6. One core of
 * an AMD EPYC (Zen 4), 768 x 384 x 384, 2026-11-23, best of nine: 106.5 GFLOP/s with AVX2, 111.7 with AVX-512. Limit: 16
 * multiply-adds a cycle, 118 GFLOP/s at 3.7 GHz. */
#ifndef ME_ISA
#include "isa.h"
#endif
#include "../internal.h"
#include "../tile.h"
#include <stdlib.h>

#define DEPTH 384  /* part of K that is packed at a time: 16 columns of it are 16 KiB */
#define ROWS 96    /* rows of a that pass before the next panel of b */
#define UNPACKED (TILE_COLUMNS * DEPTH)  /* floats of a packed weight that are unpacked at a time */

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* pack_b for a packed weight: its rows become floats a few at a time, in `unpacked`, on their way into the panels. */
static void read_b(float *packed, float *unpacked, const struct me_gemm *g, int64_t k0, int64_t depth, int64_t n0, int64_t n1) {
    if (g->b_k == 1) {  /* a row of the weight is a column of b */
        for (int64_t n = n0; n < n1; n += TILE_COLUMNS, packed += depth * TILE_COLUMNS) {
            int64_t count = smaller(TILE_COLUMNS, n1 - n);
            for (int64_t j = 0; j < count; j++) g->read(unpacked + j * depth, g->weight, n + j, k0, k0 + depth);
            pack_panel(packed, unpacked, depth, count, depth);
        }
        return;
    }
    for (int64_t k = 0; k < depth; k++) {
        g->read(unpacked, g->weight, k0 + k, n0, n1);
        for (int64_t n = n1; n < (n1 + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS; n++) unpacked[n - n0] = 0;
        for (int64_t n = 0; n < n1 - n0; n += TILE_COLUMNS) {
            float *to = packed + n * depth + k * TILE_COLUMNS;
            v_store(to, v_load(unpacked + n));
            v_store(to + LANES, v_load(unpacked + n + LANES));
        }
    }
}

/* pack_b for w + scale z and, behind all its panels, for w - scale z: 16 rows of w meet their z in `made` and nowhere else. */
static void perturb_b(float *packed, float *made, const struct me_gemm *g, int64_t k0, int64_t depth, int64_t n0, int64_t n1) {
    float *minus = packed + (n1 - n0 + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS * depth;
    struct me_noise tile = *g->noise;
    tile.out = made, tile.other = made + UNPACKED, tile.n = depth, tile.row = g->K;
    for (int64_t n = n0; n < n1; n += TILE_COLUMNS, packed += depth * TILE_COLUMNS, minus += depth * TILE_COLUMNS) {
        int64_t count = smaller(TILE_COLUMNS, n1 - n);
        tile.start = g->noise->start + n * g->K + k0, tile.weight = g->noise->weight + n * g->K + k0;
        g->perturb_tile(&tile, 0, count);
        pack_panel(packed, tile.out, depth, count, depth);
        pack_panel(minus, tile.other, depth, count, depth);
    }
}

/* b's rows k0.. and columns n0.. as panels of 16 columns: packed[panel][k][16] */
static void pack_b(float *packed, const struct me_gemm *g, int64_t k0, int64_t depth, int64_t n0, int64_t n1) {
    if (g->b_k == 1) {
        for (int64_t n = n0; n < n1; n += TILE_COLUMNS, packed += depth * TILE_COLUMNS)
            pack_panel(packed, g->b + n * g->b_n + k0, g->b_n, smaller(TILE_COLUMNS, n1 - n), depth);
        return;
    }
    for (int64_t k = 0; k < depth; k++) {  /* a row of b is read to its end before the next */
        const float *row = g->b + (k0 + k) * g->b_k;
        float *to = packed + k * TILE_COLUMNS;
        for (int64_t n = n0; n < n1; n += TILE_COLUMNS, to += depth * TILE_COLUMNS) {
            if (n + TILE_COLUMNS <= n1) {
                v_store(to, v_load(row + n));
                v_store(to + LANES, v_load(row + n + LANES));
            } else {
                for (int64_t j = 0; j < TILE_COLUMNS; j++) to[j] = n + j < n1 ? row[n + j] : 0;
            }
        }
    }
}

/* Rows m0.. of a, one after the other: rows far apart would each take an entry of the address cache. */
static void copy_a(float *packed, const struct me_gemm *g, int64_t k0, int64_t depth, int64_t m0, int64_t m1) {
    for (int64_t m = m0; m < m1; m++, packed += depth) memcpy(packed, g->a + m * g->a_row + k0, (size_t)depth * sizeof(float));
}

/* Transposed a: rows m0.. as groups of six, packed[group][k][6]; missing rows are zeros. A row of the array is read to its
 * end before the next: the rows may be a page apart. */
static void pack_a(float *packed, const struct me_gemm *g, int64_t k0, int64_t depth, int64_t m0, int64_t m1) {
    for (int64_t k = 0; k < depth; k++) {
        const float *column = g->a + (k0 + k) * g->a_k;
        float *to = packed + k * TILE_ROWS;
        for (int64_t m = m0; m < m1; m += TILE_ROWS, to += depth * TILE_ROWS) {
            if (m + LANES <= g->M && k + 1 < depth) {
                v_store(to, v_load(column + m));  /* the last two are overwritten by the next k */
                if (m + TILE_ROWS <= m1) continue;
            }
            for (int r = 0; r < TILE_ROWS; r++) to[r] = m + r < m1 ? column[m + r] : 0;
        }
    }
}

/* tile() for any number of rows and columns up to 6 x 16 */
INLINE void any_tile(int64_t rows, int64_t columns, float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_k,
                     const float *b, int64_t depth, int add) {
    float part[TILE_ROWS * TILE_COLUMNS], *to = c;
    int64_t to_row = c_row;
    if (columns < TILE_COLUMNS) {  /* tile writes whole vectors: let it write elsewhere */
        to = part;
        to_row = TILE_COLUMNS;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < TILE_COLUMNS; j++) part[r * TILE_COLUMNS + j] = add && j < columns ? c[r * c_row + j] : 0;
    }
    switch (rows) {
    case 6: tile(6, to, to_row, a, a_row, a_k, b, TILE_COLUMNS, depth, add); break;
    case 5: tile(5, to, to_row, a, a_row, a_k, b, TILE_COLUMNS, depth, add); break;
    case 4: tile(4, to, to_row, a, a_row, a_k, b, TILE_COLUMNS, depth, add); break;
    case 3: tile(3, to, to_row, a, a_row, a_k, b, TILE_COLUMNS, depth, add); break;
    case 2: tile(2, to, to_row, a, a_row, a_k, b, TILE_COLUMNS, depth, add); break;
    default: tile(1, to, to_row, a, a_row, a_k, b, TILE_COLUMNS, depth, add);
    }
    if (columns < TILE_COLUMNS)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < columns; j++) c[r * c_row + j] = part[r * TILE_COLUMNS + j];
}

/* A store waits for its cache line, and stores wait for one another: results beyond the second-level cache are asked for while
 * the tile is computed. Products of a training step of 4 layers x 128 rose from 101 to 105 GFLOP/s, of 118 (Zen 4). */
INLINE void ask_for(const float *line) {
#if defined(ME_AVX2)
    __asm__ volatile("prefetchw %0" : : "m"(*line));
#else
    __builtin_prefetch(line, 1, 3);
#endif
}

/* What the products k0 .. k0 + depth - 1 add to one block of results, rows m0..m1-1, columns n0..n1-1. */
static void add_depth(const struct me_gemm *g, const float *packed_b, float *packed_a, int64_t k0, int64_t depth, int64_t m0,
                      int64_t m1, int64_t n0, int64_t n1) {
    for (int64_t i0 = m0; i0 < m1; i0 += ROWS) {
        int64_t i1 = smaller(i0 + ROWS, m1);
        const float *a = g->a + i0 * g->a_row + k0;
        int64_t a_row = g->a_row, a_k = 1, a_group = TILE_ROWS * g->a_row;  /* a_group: from six rows to the next six */
        if (g->a_row == 1) {
            pack_a(packed_a, g, k0, depth, i0, i1);
            a = packed_a, a_row = 1, a_k = TILE_ROWS, a_group = TILE_ROWS * depth;
        } else if (g->a_row > depth && n1 - n0 >= 4 * TILE_COLUMNS && i1 - i0 > TILE_ROWS) {
            copy_a(packed_a, g, k0, depth, i0, i1);
            a = packed_a, a_row = depth, a_group = TILE_ROWS * depth;
        }
        for (int64_t n = n0; n < n1; n += TILE_COLUMNS)
            for (int64_t i = i0; i < i1; i += TILE_ROWS) {
                int64_t rows = smaller(TILE_ROWS, i1 - i), columns = smaller(TILE_COLUMNS, n1 - n);
                float *c = g->c + i * g->N + n;
                for (int64_t r = 0; r < rows; r++) ask_for(c + r * g->N + columns - 1);
                any_tile(rows, columns, c, g->N, a + (i - i0) / TILE_ROWS * a_group, a_row, a_k, packed_b + (n - n0) * depth, depth,
                         k0 > 0);
            }
    }
}

/* One block of results. */
static void block(const struct me_gemm *g, float *packed_b, float *packed_a, float *unpacked, int64_t m0, int64_t m1, int64_t n0,
                  int64_t n1) {
    struct me_gemm minus = *g;
    minus.a = g->a_minus, minus.c = g->c_minus;
    for (int64_t k0 = 0; k0 < g->K; k0 += DEPTH) {
        int64_t depth = smaller(DEPTH, g->K - k0);
        if (g->noise) perturb_b(packed_b, unpacked, g, k0, depth, n0, n1);
        else if (g->read) read_b(packed_b, unpacked, g, k0, depth, n0, n1);
        else pack_b(packed_b, g, k0, depth, n0, n1);
        add_depth(g, packed_b, packed_a, k0, depth, m0, m1, n0, n1);
        if (!g->noise) continue;
        const float *packed_minus = packed_b + (n1 - n0 + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS * depth;
        add_depth(&minus, packed_minus, packed_a, k0, depth, m0, m1, n0, n1);
    }
}

/* rows <= 2 of a against rows of a transposed b, as when one token is decoded: b is read once, so it is turned over in
 * registers instead of being packed. The same sums in the same order as block(). */
INLINE void few_columns(const int rows, const int vectors, const struct me_gemm *g, float *unpacked, int64_t m, int64_t n) {
    for (int64_t k0 = 0; k0 < g->K; k0 += DEPTH) {
        int64_t k = 0, end = smaller(DEPTH, g->K - k0), b_n = g->b_n;
        const float *a = g->a + m * g->a_row + k0, *b = unpacked;
        if (g->read) {
            for (int64_t j = 0; j < LANES * vectors; j++) g->read(unpacked + j * end, g->weight, n + j, k0, k0 + end);
            b_n = end;
        } else {
            b = g->b + n * g->b_n + k0;
        }
        vf s[2][2] = {{v_set(0), v_set(0)}, {v_set(0), v_set(0)}};
        for (; k + 8 <= end; k += 8) {
            vf columns[2][8];
            for (int v = 0; v < vectors; v++) transpose8(columns[v], b + 8 * v * b_n + k, b_n);
            for (int j = 0; j < 8; j++)
                for (int r = 0; r < rows; r++)
                    for (int v = 0; v < vectors; v++) s[r][v] = v_fma(v_set(a[r * g->a_row + k + j]), columns[v][j], s[r][v]);
        }
        for (; k < end; k++) {
            float column[2 * LANES];
            for (int i = 0; i < LANES * vectors; i++) column[i] = b[i * b_n + k];
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < vectors; v++)
                    s[r][v] = v_fma(v_set(a[r * g->a_row + k]), v_load(column + LANES * v), s[r][v]);
        }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) {
                float *c = g->c + (m + r) * g->N + n + 8 * v;
                v_store(c, k0 > 0 ? v_load(c) + s[r][v] : s[r][v]);
            }
    }
}

/* Whole groups of 16 columns, and of 8 (an adapter of rank 8 has no more); returns the first column that is left. */
INLINE int64_t few_rows(const int rows, const struct me_gemm *g, float *unpacked, int64_t m, int64_t n0, int64_t n1) {
    for (; n0 + 16 <= n1; n0 += 16) few_columns(rows, 2, g, unpacked, m, n0);
    for (; n0 + 8 <= n1; n0 += 8) few_columns(rows, 1, g, unpacked, m, n0);
    return n0;
}

ME_KERNEL(gemm) {
    const struct me_gemm *g = args;
    int64_t depth = smaller(DEPTH, g->K), columns = (smaller(g->block_n, g->N) + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    if (g->noise) columns *= 2;  /* the panels of both sides */
    size_t floats = (size_t)((columns + ROWS) * depth + 15) / 16 * 16;
    float *packed = NULL;  /* few rows need none */
    float *unpacked = NULL;
    if (g->read || g->noise) {
        unpacked = aligned_alloc(64, 2 * UNPACKED * sizeof(float));
        if (unpacked == NULL) {
            *g->failed = 1;
            return;
        }
    }
    int64_t across = (g->N + g->block_n - 1) / g->block_n;
    for (int64_t item = begin; item < end; item++) {
        int64_t m0 = item / across * g->block_m, n0 = item % across * g->block_n;
        int64_t m1 = smaller(m0 + g->block_m, g->M), n1 = smaller(n0 + g->block_n, g->N);
        if (g->a_k == 1 && g->b_k == 1 && m1 - m0 <= 2 && !g->noise) {
            if (m1 - m0 == 1) n0 = few_rows(1, g, unpacked, m0, n0, n1);
            else n0 = few_rows(2, g, unpacked, m0, n0, n1);
            if (n0 == n1) continue;  /* else the columns that are left take the general way */
        }
        if (packed == NULL) packed = aligned_alloc(64, floats * sizeof(float));
        if (packed == NULL) {
            *g->failed = 1;
            break;
        }
        block(g, packed, packed + columns * depth, unpacked, m0, m1, n0, n1);
    }
    free(packed);
    free(unpacked);
}
