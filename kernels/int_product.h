/* Products of packed integer weights with int8 activations, for one row of x or many.
 *
 * The scalar loop that all of this replaces, per result:
 *
 *     y = 0
 *     for each block b of 32 columns:
 *         sum = 0;  for j in 0..31: sum += code[b][j] * xq[b][j]           exact, int32
 *         y = fma(sum - offset * sum of xq[b], scale[b] * xscale[b], y)    offset: 8 (int4), 0 (int8)
 *
 * Blocks are added in their order whatever path a result takes, so its bits depend neither on the number of rows nor on
 * threads. Two paths, by who sits in the eight lanes of a vector:
 *
 *   few rows of x: eight rows of the weight            many rows of x: eight rows of x (tokens)
 *
 *       block b of weight rows o .. o+7                    x, turned over once:   [t0 t1 .. t7] columns 0..3
 *       row o   [ 16 or 32 bytes ] . x[b] --+                                     [t0 t1 .. t7] columns 4..7 ...
 *       row o+1 [                ] . x[b] --+--> one       four columns of one weight row, spread to all lanes, times
 *        ...                                |    vector    that, adds to eight results; a row of the weight is
 *       row o+7 [                ] . x[b] --+    of sums   unpacked once for all tokens
 *
 * An instruction set's int_sums.h supplies row_pair_sums (few) and, where it has one, tile_sums (many, ME_TILES).
 * avx512, which takes four blocks of a row at once, has few_tokens of its own (ME_OWN_FEW). */
#ifndef MINEDGE_INT_PRODUCT_H
#define MINEDGE_INT_PRODUCT_H
#include "internal.h"
#include "vec.h"
#include <stdlib.h>

#define BLOCK 32
#define FEW 4           /* rows of x that share one reading of the weights */
#define CODES_AHEAD (16 << 10)  /* bytes, beyond the next eight rows, that are asked for while these are worked on */
#define SCALES_AHEAD (2 << 10)
#define TILE_BYTES (384 << 10)  /* of x that many rows of the weight pass by: about a second-level cache */

INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int group_shift(int64_t group) { return group == 32 ? 0 : group == 64 ? 1 : 2; }

/* Asks for the cache lines of `bytes` bytes from p + offset on, which may lie anywhere: nothing is read. Eight rows at once
 * are eight short streams, which no processor's own prefetching follows; asked for in the order in which they lie in
 * memory, rows of 512 bytes come four times as fast, rows of 2 KiB twice. */
INLINE void fetch(const void *p, int64_t offset, int64_t bytes) {
    uintptr_t at = (uintptr_t)p + (uintptr_t)offset;
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch((const void *)(at + (uintptr_t)line), 0, 1);
}

/* ws[g] = lane r: scale of group g0 + g of row r; count <= 8 groups */
INLINE void eight_scales(vf ws[LANES], const uint16_t *const row[LANES], int64_t g0, int64_t count) {
    int g = 0;
#if defined(ME_AVX2)
    if (count == LANES) {  /* 8 x 8 halves turned over: rows r and r + 4 share a register */
        __m256i h[4], u[4];
        for (int r = 0; r < 4; r++)
            h[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row[r] + g0))),
                                           _mm_loadu_si128((const __m128i *)(row[r + 4] + g0)), 1);
        u[0] = _mm256_unpacklo_epi16(h[0], h[1]), u[1] = _mm256_unpackhi_epi16(h[0], h[1]);
        u[2] = _mm256_unpacklo_epi16(h[2], h[3]), u[3] = _mm256_unpackhi_epi16(h[2], h[3]);
        for (int i = 0; i < 2; i++) {
            __m256i a = _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(u[i], u[i + 2]), 0xd8);
            __m256i b = _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(u[i], u[i + 2]), 0xd8);
            ws[4 * i] = (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(a));
            ws[4 * i + 1] = (vf)_mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
            ws[4 * i + 2] = (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(b));
            ws[4 * i + 3] = (vf)_mm256_cvtph_ps(_mm256_extracti128_si256(b, 1));
        }
        return;
    }
#endif
    for (; g < count; g++) {
        uint16_t h[LANES];
        for (int r = 0; r < LANES; r++) h[r] = row[r][g0 + g];
        ws[g] = v_half(h);
    }
}

#if defined(ME_OWN_FEW)
INLINE void few_tokens(const struct me_int_linear *a, const int bytes, int64_t n, const int tokens, int64_t o, int64_t rows);
#else
/* y[n + t][o .. o + rows) for t < tokens: `tokens` a constant, rows <= 8; bytes: of a block of the weight, 16 or 32 */
INLINE void few_tokens(const struct me_int_linear *a, const int bytes, int64_t n, const int tokens, int64_t o, int64_t rows) {
    int64_t blocks = a->in / BLOCK, groups = a->in / a->group;
    int shift = group_shift(a->group);
    const uint8_t *q[LANES];
    const uint16_t *s[LANES];
    const int8_t *x[FEW];
    vf y[FEW], ws[LANES];
    for (int r = 0; r < LANES; r++) {
        int64_t at = o + at_most(r, rows - 1);  /* missing rows repeat the last one and are not stored */
        q[r] = a->q + at * blocks * bytes;
        s[r] = a->s + at * groups;
    }
    for (int t = 0; t < tokens; t++) {
        x[t] = a->xq + (n + t) * a->in;
        y[t] = v_set(0);
    }
    for (int64_t g0 = 0; g0 < groups; g0 += LANES) {
        fetch(s[0], (groups + g0) * LANES * (int64_t)sizeof **s + SCALES_AHEAD, LANES * LANES * (int64_t)sizeof **s);
        eight_scales(ws, s, g0, at_most(LANES, groups - g0));
        int64_t end = at_most((g0 + LANES) << shift, blocks);
        for (int64_t b = g0 << shift; b < end; b += 2) {
            int two = b + 1 < end;
            vi sums[FEW][2];
            fetch(q[0], (blocks * LANES + b * LANES) * bytes + CODES_AHEAD, 2 * LANES * bytes);
            row_pair_sums(sums, bytes, q, b, two, x, tokens);
            for (int i = 0; i <= two; i++)
                for (int t = 0; t < tokens; t++) {
                    int64_t at = (n + t) * blocks + b + i;
                    vi part = bytes == 16 ? sums[t][i] - v_seti(a->xsums[at]) : sums[t][i];
                    y[t] = v_fma(__builtin_convertvector(part, vf), ws[((b + i) >> shift) - g0] * v_set(a->xscales[at]), y[t]);
                }
        }
    }
    for (int t = 0; t < tokens; t++) v_store_part(a->y + (n + t) * a->out + o, y[t], rows);
}
#endif

/* Rows begin..end of the weight against rows n..N of x, a few at a time. */
INLINE void by_few(const struct me_int_linear *a, const int bytes, int64_t n, int64_t begin, int64_t end) {
    for (; n < a->N; n += at_most(FEW, a->N - n))
        for (int64_t o = begin; o < end; o += LANES) {
            int64_t rows = at_most(LANES, end - o);
            switch (a->N - n) {
            case 1: few_tokens(a, bytes, n, 1, o, rows); break;
            case 2: few_tokens(a, bytes, n, 2, o, rows); break;
            case 3: few_tokens(a, bytes, n, 3, o, rows); break;
            default: few_tokens(a, bytes, n, FEW, o, rows);
            }
        }
}

#if defined(ME_TILES)
/* ws[b * TILE_ROWS + r] = scale of block b of row r */
INLINE void tile_scales(float *ws, const uint16_t *const row[TILE_ROWS], int64_t blocks, int shift) {
#if TILE_ROWS == LANES
    vf group[LANES];
    for (int64_t b = 0; b < blocks; b++) {
        int64_t g = b >> shift;
        if ((g & 7) == 0 && g << shift == b) eight_scales(group, row, g, at_most(LANES, (blocks >> shift) - g));
        v_store(ws + b * LANES, group[g & 7]);
    }
#else
    for (int r = 0; r < TILE_ROWS; r++)
        for (int64_t b = 0; b < blocks; b++) ws[b * TILE_ROWS + r] = half_to_float(row[r][b >> shift]);
#endif
}

/* y[t][r] = sums[r], lane t, for eight t and r < rows; y_row: from one t to the next */
INLINE void store_tile(float *y, int64_t y_row, vf sums[TILE_ROWS][2], int g, int64_t rows) {
#if TILE_ROWS == LANES
    if (rows == LANES) {
        vf column[LANES];
        transpose8(column, (const float *)(sums[0] + g), 2 * LANES);
        for (int l = 0; l < LANES; l++) v_store(y + l * y_row, column[l]);
        return;
    }
#endif
    for (int64_t r = 0; r < rows; r++)
        for (int l = 0; l < LANES; l++) y[l * y_row + r] = sums[r][g][l];
}

/* Rows begin..end of the weight against all whole groups of eight rows of x; 0 for want of memory. */
INLINE int by_tiles(const struct me_int_linear *a, const int bytes, int64_t begin, int64_t end) {
    int64_t blocks = a->in / BLOCK, groups8 = a->N / LANES, groups = a->in / a->group;
    int64_t step = at_most(groups8, (TILE_BYTES / (int64_t)(blocks * sizeof(struct me_x8)) + 2) / 2 * 2);
    int shift = group_shift(a->group);
    char *scratch = aligned_alloc(64, (size_t)(TILE_ROWS * blocks * (tile_code_bytes(bytes) + 4) + 63) / 64 * 64);
    if (scratch == NULL) return 0;
    uint8_t *codes = (uint8_t *)scratch;
    float *ws = (float *)(scratch + TILE_ROWS * blocks * tile_code_bytes(bytes));
    for (int64_t t0 = 0; t0 < groups8; t0 += step) {
        int64_t t1 = at_most(t0 + step, groups8);
        for (int64_t o = begin; o < end; o += TILE_ROWS) {
            int64_t rows = at_most(TILE_ROWS, end - o);
            const uint16_t *s[TILE_ROWS];
            for (int r = 0; r < TILE_ROWS; r++) {
                int64_t at = o + at_most(r, rows - 1);
                unpack_row(codes + r * blocks * tile_code_bytes(bytes), bytes, a->q + at * blocks * bytes, blocks);
                s[r] = a->s + at * groups;
            }
            tile_scales(ws, s, blocks, shift);
            for (int64_t t = t0; t < t1; t += 2) {
                vf y[TILE_ROWS][2];
                const int both = t + 1 < t1;
                if (both) tile_sums(y, bytes, codes, ws, a->x8 + t * blocks, 2, blocks);
                else tile_sums(y, bytes, codes, ws, a->x8 + t * blocks, 1, blocks);
                for (int g = 0; g <= both; g++) store_tile(a->y + (t + g) * LANES * a->out + o, a->out, y, g, rows);
            }
        }
    }
    free(scratch);
    return 1;
}
#endif

INLINE void int_product(const struct me_int_linear *a, const int bytes, int64_t begin, int64_t end) {
    int64_t n = 0;
#if defined(ME_TILES)
    if (a->x8 != NULL && by_tiles(a, bytes, begin, end)) n = a->N / LANES * LANES;
#endif
    by_few(a, bytes, n, begin, end);
}

#endif
