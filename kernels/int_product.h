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
 * threads nor on how the weight is stored. Two paths, by who sits in the lanes of a vector:
 *
 *   few rows of x: rows of the weight                  many rows of x: eight or sixteen rows of x (tokens)
 *
 *       int4: sixteen rows in a tile, int4_tiles.h         x, turned over once:   [t0 t1 .. t7] columns 0..3
 *       int8: block b of rows o .. o+7                                            [t0 t1 .. t7] columns 4..7 ...
 *       row o   [ 32 bytes ] . x[b] --+                    four columns of one weight row, spread to all lanes, times
 *       row o+1 [          ] . x[b] --+--> one vector      that, adds to eight results; a row of the weight is
 *        ...                          |    of sums         unpacked once for all tokens
 *       row o+7 [          ] . x[b] --+
 *
 * An instruction set's int_sums.h supplies tile_sums and row_sums (few) and, where it has one, many_sums (many, ME_MANY).
 * avx512 has few_tile and few_tokens of its own (ME_OWN_TILES, ME_OWN_FEW). Counts, figures and limits: avx2/int_sums.h,
 * avx512/int_few.h. */
#ifndef MINEDGE_INT_PRODUCT_H
#define MINEDGE_INT_PRODUCT_H
#define ME_INT_SUMS
#include "int4_tiles.h"
#include <stdlib.h>

#define CODES_AHEAD (16 << 10)  /* bytes, beyond the next eight rows, that are asked for while these are worked on */
#define SCALES_AHEAD (2 << 10)
#define MANY_BYTES (384 << 10)  /* of x that many rows of the weight pass by: about a second-level cache */

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
INLINE void few_tokens(const struct me_int_linear *a, int64_t n, const int tokens, int64_t o, int64_t rows);
#else
/* y[n + t][o .. o + rows) of an int8 weight for t < tokens: `tokens` a constant, rows <= 8 */
INLINE void few_tokens(const struct me_int_linear *a, int64_t n, const int tokens, int64_t o, int64_t rows) {
    const int64_t blocks = a->in / BLOCK;
    const uint8_t *q[LANES];
    const uint16_t *s[LANES];
    const int8_t *x[FEW];
    vf y[FEW], ws[LANES];
    for (int r = 0; r < LANES; r++) {
        int64_t at = o + at_most(r, rows - 1);  /* missing rows repeat the last one and are not stored */
        q[r] = a->q + at * a->in;
        s[r] = a->s + at * blocks;
    }
    for (int t = 0; t < tokens; t++) {
        x[t] = a->xq + (n + t) * a->in;
        y[t] = v_set(0);
    }
    for (int64_t b0 = 0; b0 < blocks; b0 += LANES) {
        fetch(s[0], (blocks + b0) * LANES * (int64_t)sizeof **s + SCALES_AHEAD, LANES * LANES * (int64_t)sizeof **s);
        eight_scales(ws, s, b0, at_most(LANES, blocks - b0));
        for (int64_t b = b0; b < at_most(b0 + LANES, blocks); b++) {
            vi sums[FEW];
            fetch(q[0], (blocks + b) * LANES * BLOCK + CODES_AHEAD, LANES * BLOCK);
            row_sums(sums, q, b, x, tokens);
            for (int t = 0; t < tokens; t++)
                y[t] = v_fma(__builtin_convertvector(sums[t], vf), ws[b - b0] * v_set(a->xscales[(n + t) * blocks + b]), y[t]);
        }
    }
    for (int t = 0; t < tokens; t++) v_store_part(a->y + (n + t) * a->out + o, y[t], rows);
}
#endif

/* Rows begin..end of an int8 weight against rows n..N of x, a few at a time. */
INLINE void by_few(const struct me_int_linear *a, int64_t n, int64_t begin, int64_t end) {
    for (; n < a->N; n += at_most(FEW, a->N - n))
        for (int64_t o = begin; o < end; o += LANES) {
            int64_t rows = at_most(LANES, end - o);
            switch (a->N - n) {
            case 1: few_tokens(a, n, 1, o, rows); break;
            case 2: few_tokens(a, n, 2, o, rows); break;
            case 3: few_tokens(a, n, 3, o, rows); break;
            default: few_tokens(a, n, FEW, o, rows);
            }
        }
}

#if defined(ME_MANY)
/* Unpacked codes of MANY_ROWS rows: [block][k][row], four bytes each, columns 4k .. 4k+3 of the block. Where int8 codes are taken
 * as two digits (MANY_DIGITS), a block has the low digits first, then the high ones. */
INLINE int64_t many_bytes(const int bytes) { return MANY_ROWS * BLOCK * (bytes == 16 ? 1 : MANY_DIGITS); }

/* From rows r0.. of an int4 tile. */
INLINE void unpack_tile(uint8_t *codes, const uint8_t *tile, int64_t r0, int64_t blocks) {
    typedef uint8_t piece __attribute__((vector_size(4 * MANY_ROWS)));
    for (int64_t b = 0; b < blocks; b++, codes += 8 * sizeof(piece))
        for (int p = 0; p < 4; p++) {
            piece v, low, high;
            memcpy(&v, tile + b * TILE_BLOCK + p * 64 + r0 * 4, sizeof v);
            low = v & 15, high = v >> 4;
            memcpy(codes + p * sizeof v, &low, sizeof v);
            memcpy(codes + (4 + p) * sizeof v, &high, sizeof v);
        }
}

/* From int8 rows of `blocks` blocks; missing rows repeat the last one. MANY_FLIP: 128 where codes have to be unsigned */
INLINE void unpack_rows(uint8_t *codes, const uint8_t *q, int64_t rows, int64_t blocks) {
    typedef uint8_t four __attribute__((vector_size(16)));
    for (int64_t r = 0; r < MANY_ROWS; r += 4)
        for (int64_t b = 0; b < 2 * blocks; b++) {
            uint8_t *to = codes + b / 2 * many_bytes(32) + b % 2 * MANY_ROWS * 16 + 4 * r;
            v_words w[4];
            for (int i = 0; i < 4; i++) memcpy(w + i, q + at_most(r + i, rows - 1) * blocks * BLOCK + b * 16, sizeof *w);
            turn_words(w);
            for (int p = 0; p < 4; p++, to += MANY_ROWS * 4) {
                four v = (four)w[p] ^ MANY_FLIP, digits[2] = {MANY_DIGITS == 2 ? v & 15 : v, v >> 4};
                for (int d = 0; d < MANY_DIGITS; d++) memcpy(to + d * MANY_ROWS * BLOCK, digits + d, sizeof v);
            }
        }
}

/* ws[b * MANY_ROWS + r] = scale of block b of row r0 + r of a tile */
INLINE void unpack_tile_scales(float *ws, const uint16_t *s, int64_t r0, int64_t blocks, int shift) {
    for (int64_t b = 0; b < blocks; b++) {
        float eight[LANES];
        v_store(eight, v_half(s + (b >> shift) * TILE + r0 / LANES * LANES));
        memcpy(ws + b * MANY_ROWS, eight + r0 % LANES, MANY_ROWS * sizeof *ws);
    }
}

/* ws[b * MANY_ROWS + r] = scale of block b of row r of an int8 weight */
INLINE void many_scales(float *ws, const uint16_t *const row[MANY_ROWS], int64_t blocks) {
#if MANY_ROWS == LANES
    for (int64_t b = 0; b < blocks; b += LANES) {
        vf scales[LANES];
        int64_t count = at_most(LANES, blocks - b);
        eight_scales(scales, row, b, count);
        for (int64_t i = 0; i < count; i++) v_store(ws + (b + i) * LANES, scales[i]);
    }
#else
    for (int r = 0; r < MANY_ROWS; r++)
        for (int64_t b = 0; b < blocks; b++) ws[b * MANY_ROWS + r] = half_to_float(row[r][b]);
#endif
}

/* y[t][r] = sums[r], lane t, for eight t and r < rows; y_row: from one t to the next */
INLINE void store_many(float *y, int64_t y_row, vf sums[MANY_ROWS][2], int g, int64_t rows) {
#if MANY_ROWS == LANES
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

/* The products of MANY_ROWS weight rows, unpacked, with groups t0..t1 of eight rows of x; the first `rows` are stored. */
INLINE void rows_by_many(const struct me_int_linear *a, const int bytes, const uint8_t *codes, const float *ws, int64_t o, int64_t rows,
                         int64_t t0, int64_t t1) {
    const int64_t blocks = a->in / BLOCK;
    for (int64_t t = t0; t < t1; t += 2) {
        vf y[MANY_ROWS][2];
        const int both = t + 1 < t1;
        if (both) many_sums(y, bytes, codes, ws, a->x8 + t * blocks, 2, blocks);
        else many_sums(y, bytes, codes, ws, a->x8 + t * blocks, 1, blocks);
        for (int g = 0; g <= both; g++) store_many(a->y + (t + g) * LANES * a->out + o, a->out, y, g, rows);
    }
}

/* Rows begin..end of the weight against all whole groups of eight rows of x; 0 for want of memory. */
INLINE int by_many(const struct me_int_linear *a, const int bytes, int64_t begin, int64_t end) {
    const int64_t blocks = a->in / BLOCK, groups8 = a->N / LANES, groups = a->in / a->group;
    const int64_t step = at_most(groups8, (MANY_BYTES / (int64_t)(blocks * sizeof(struct me_x8)) + 2) / 2 * 2);
    const int64_t unpacked = blocks * many_bytes(bytes), floats = MANY_ROWS * blocks * (int64_t)sizeof(float);
    const int64_t packed = bytes == 16 && !a->tiled ? blocks * (TILE_BLOCK + TILE * 2) : 0;
    uint8_t *codes = aligned_alloc(64, (size_t)(unpacked + floats + packed + 63) / 64 * 64);
    if (codes == NULL) return 0;
    float *ws = (float *)(codes + unpacked);
    uint8_t *tile = codes + unpacked + floats;
    for (int64_t t0 = 0; t0 < groups8; t0 += step) {
        const int64_t t1 = at_most(t0 + step, groups8);
        if (bytes == 16)
            for (int64_t o = begin; o < end; o += TILE) {
                const uint8_t *q = a->q + o * blocks * 16;
                const uint16_t *s = a->s + o * groups;
                if (!a->tiled) {
                    uint16_t *tile_s = (uint16_t *)(tile + blocks * TILE_BLOCK);
                    tile_codes(tile, q, blocks * 16, at_most(TILE, end - o), blocks);
                    tile_scales(tile_s, s, groups, at_most(TILE, end - o), groups);
                    q = tile, s = tile_s;
                }
                for (int64_t r0 = 0; r0 < at_most(TILE, end - o); r0 += MANY_ROWS) {
                    unpack_tile(codes, q, r0, blocks);
                    unpack_tile_scales(ws, s, r0, blocks, group_shift(a->group));
                    rows_by_many(a, bytes, codes, ws, o + r0, at_most(MANY_ROWS, end - o - r0), t0, t1);
                }
            }
        else
            for (int64_t o = begin; o < end; o += MANY_ROWS) {
                const uint16_t *s[MANY_ROWS];
                for (int r = 0; r < MANY_ROWS; r++) s[r] = a->s + (o + at_most(r, end - o - 1)) * groups;
                unpack_rows(codes, a->q + o * a->in, end - o, blocks);
                many_scales(ws, s, blocks);
                rows_by_many(a, bytes, codes, ws, o, at_most(MANY_ROWS, end - o), t0, t1);
            }
    }
    free(codes);
    return 1;
}
#endif

INLINE void int_product(const struct me_int_linear *a, const int bytes, int64_t begin, int64_t end) {
    int64_t n = 0;
#if defined(ME_MANY)
    if (a->x8 != NULL && by_many(a, bytes, begin, end)) n = a->N / LANES * LANES;
#endif
    if (bytes == 16) by_few_of_tiles(a, n, begin, end);
    else by_few(a, n, begin, end);
}

#endif
