/* Int4 weights in tiles of 16 rows, and their product with up to four rows of x.
 *
 * A tile holds a block of 32 columns of 16 rows in 256 bytes, so that one vector has four columns of many rows:
 *
 *     stored rows (numpy_ops/int4.py)                  tile, in memory order: piece 0, piece 1, piece 2, piece 3
 *
 *     row 0   [ 0123 | 4567 | 89ab | cdef ]            piece p: [ row 0: bytes 4p..4p+3 | row 1 | row 2 | ... | row 15 ]
 *     row 1   [ 0123 | 4567 | 89ab | cdef ]                     low nibbles: columns 4p..4p+3 of the block, high nibbles:
 *      ..                                                       columns 16+4p..16+4p+3
 *     row 15  [ 0123 | 4567 | 89ab | cdef ]            scales of a group: [ row 0 | row 1 | ... | row 15 ], float16
 *
 * Sixteen sums then grow side by side and nothing is added across a vector; a weight is one stream of codes and one of
 * scales. Rows stored one after the other give eight streams at a time, or sums that lie across a vector. The last tile of a
 * weight is filled up with zeros.
 *
 * The scalar loop that few_tile replaces, for each of 16 rows r and each row t of x:
 *
 *     for each block b:  sum = 0;  for j in 0..31: sum += code[b][r][j] * x[t][32 b + j]
 *                        y[t][r] = fma(sum - 8 * sum of x[t]'s block, scale[r] * xscale[t][b], y[t][r])
 *
 * An instruction set's int_sums.h supplies tile_sums, all of the first line; avx512 has few_tile of its own (ME_OWN_TILES). Counts,
 * figures and limits: avx2/int_sums.h, avx512/int_few.h. */
#ifndef MINEDGE_INT4_TILES_H
#define MINEDGE_INT4_TILES_H
#include "internal.h"
#include "vec.h"

#define BLOCK 32
#define FEW 4               /* rows of x that share one reading of the weights */
#define TILE 16             /* rows of the weight */
#define TILE_BLOCK 256      /* bytes of codes of one block of a tile */
#define TILE_AHEAD 4096     /* bytes of codes that are asked for ahead of time, for the first-level cache alone: what a token leaves in the
                             * others, keys and values among it, stays there. The loop alone, one core of a Zen 4, from memory: up to 33 GB/s;
                             * 29 asked for in all caches 2 KiB ahead, 26 by the processor's own prefetching */
#define PART 32             /* blocks that are brought into tiles at a time where the weight is stored by rows */

typedef uint32_t v_words __attribute__((vector_size(16)));
typedef uint16_t v_halves __attribute__((vector_size(16)));

INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int group_shift(int64_t group) { return group == 32 ? 0 : group == 64 ? 1 : 2; }

/* Four rows of four words -> w[p] = word p of the four rows */
INLINE void turn_words(v_words w[4]) {
    v_words a[4];
    for (int i = 0; i < 2; i++) {
        a[i] = (v_words){w[i][0], w[i + 2][0], w[i][1], w[i + 2][1]};
        a[i + 2] = (v_words){w[i][2], w[i + 2][2], w[i][3], w[i + 2][3]};
    }
    for (int i = 0; i < 4; i += 2) {
        w[i] = (v_words){a[i][0], a[i + 1][0], a[i][1], a[i + 1][1]};
        w[i + 1] = (v_words){a[i][2], a[i + 1][2], a[i][3], a[i + 1][3]};
    }
}

/* Blocks of up to 16 rows stored by rows, `row` bytes apart -> the tile's codes */
INLINE void tile_codes(uint8_t *codes, const uint8_t *q, int64_t row, int64_t rows, int64_t blocks) {
    int64_t b0 = 0;
#if defined(ME_AVX2)
    if (rows == TILE) {  /* eight rows by eight words */
        b0 = blocks / 2 * 2;
        for (int64_t r = 0; r < TILE; r += LANES)
            for (int64_t b = 0; b < b0; b += 2) {
                vf words[LANES];
                transpose8(words, (const float *)(const void *)(q + r * row + b * 16), row / 4);
                for (int w = 0; w < LANES; w++) memcpy(codes + (b + w / 4) * TILE_BLOCK + w % 4 * 64 + r * 4, words + w, sizeof *words);
            }
    }
#endif
    for (int64_t r = 0; r < TILE; r += 4)
        for (int64_t b = b0; b < blocks; b++) {
            v_words w[4] = {{0}};
            for (int i = 0; i < 4; i++)
                if (r + i < rows) memcpy(w + i, q + (r + i) * row + b * 16, sizeof *w);
            turn_words(w);
            for (int p = 0; p < 4; p++) memcpy(codes + b * TILE_BLOCK + p * 64 + r * 4, w + p, sizeof *w);
        }
}

/* The same of `count` scales a row, `row` scales apart. */
INLINE void tile_scales(uint16_t *to, const uint16_t *s, int64_t row, int64_t rows, int64_t count) {
    int64_t g = 0;
    for (; rows == TILE && g + 8 <= count; g += 8)
        for (int64_t r = 0; r < TILE; r += 8) {
            v_halves h[8];
            for (int i = 0; i < 8; i++) memcpy(h + i, s + (r + i) * row + g, sizeof *h);
            for (int step = 0; step < 3; step++) {  /* three times: pairs four rows apart, taken one by one */
                v_halves t[8];
                for (int i = 0; i < 4; i++) {
                    const v_halves x = h[i], y = h[i + 4];
                    t[2 * i] = (v_halves){x[0], y[0], x[1], y[1], x[2], y[2], x[3], y[3]};
                    t[2 * i + 1] = (v_halves){x[4], y[4], x[5], y[5], x[6], y[6], x[7], y[7]};
                }
                memcpy(h, t, sizeof h);
            }
            for (int i = 0; i < 8; i++) memcpy(to + (g + i) * TILE + r, h + i, sizeof *h);
        }
    for (; g < count; g++)
        for (int64_t r = 0; r < TILE; r++) to[g * TILE + r] = r < rows ? s[r * row + g] : 0;
}

#if defined(ME_INT_SUMS) /* what follows is for the products' files */
/* Addresses, maybe outside the weight, of what is asked for meanwhile; for the first-level cache alone where it is needed once and
 * `soon`. */
struct ahead { uintptr_t codes, s; int soon; };

INLINE void fetch_ahead(uintptr_t *at, int64_t bytes, const int soon) {
    for (int64_t line = 0; line < bytes; line += 64)
        if (soon) __builtin_prefetch((const void *)(*at + (uintptr_t)line), 0, 0);
        else __builtin_prefetch((const void *)(*at + (uintptr_t)line), 0, 1);
    *at += (uintptr_t)bytes;
}

#if defined(ME_OWN_TILES)
INLINE void few_tile(vf y[FEW][2], const struct me_int_linear *a, const uint8_t *codes, const uint16_t *s, struct ahead next, int64_t n,
                     const int tokens, int64_t b, int64_t end);
#else
/* y[t], rows 0..7 and 8..15 of the tile, += blocks b..end-1; codes and s: the tile from block b on. `tokens` a constant */
INLINE void few_tile(vf y[FEW][2], const struct me_int_linear *a, const uint8_t *codes, const uint16_t *s, struct ahead next, int64_t n,
                     const int tokens, int64_t b, int64_t end) {
    const int64_t blocks = a->in / BLOCK, group = a->group / BLOCK;
    for (; b < end; s += TILE) {
        vf ws[2] = {v_half(s), v_half(s + LANES)};
        fetch_ahead(&next.s, 2 * TILE, next.soon);
        for (int64_t stop = b + group; b < stop; b++, codes += TILE_BLOCK) {
            const int8_t *x[FEW];
            vi sums[FEW][2];
            fetch_ahead(&next.codes, TILE_BLOCK, next.soon);
            for (int t = 0; t < tokens; t++) x[t] = a->xq + (n + t) * a->in + b * BLOCK;
            tile_sums(sums, codes, x, tokens);
            for (int t = 0; t < tokens; t++)
                for (int h = 0; h < 2; h++) {
                    int64_t at = (n + t) * blocks + b;
                    vi part = sums[t][h] - v_seti(a->xsums[at]);
                    y[t][h] = v_fma(__builtin_convertvector(part, vf), ws[h] * v_set(a->xscales[at]), y[t][h]);
                }
        }
    }
}
#endif

/* y[n + t][o .. o + rows) for t < tokens: `tokens` a constant, rows <= 16 */
INLINE void few_of_tile(const struct me_int_linear *a, int64_t n, const int tokens, int64_t o, int64_t rows) {
    const int64_t blocks = a->in / BLOCK, groups = a->in / a->group;
    vf y[FEW][2];
    for (int t = 0; t < tokens; t++) y[t][0] = y[t][1] = v_set(0);
    if (a->tiled) {
        const uint8_t *codes = a->q + o * blocks * 16;
        const uint16_t *s = a->s + o * groups;
        few_tile(y, a, codes, s, (struct ahead){(uintptr_t)codes + TILE_AHEAD, (uintptr_t)s + TILE_AHEAD / 8, 1}, n, tokens, 0, blocks);
    } else {
        _Alignas(64) uint8_t codes[PART * TILE_BLOCK];
        _Alignas(64) uint16_t s[PART * TILE];
        const int shift = group_shift(a->group);
        for (int64_t b = 0; b < blocks; b += PART) {
            /* the next sixteen rows, in the order in which they lie in memory */
            const struct ahead next = {(uintptr_t)a->q + (uintptr_t)((o + TILE) * blocks * 16 + b * TILE_BLOCK),
                                       (uintptr_t)a->s + (uintptr_t)((o + TILE) * groups + (b >> shift) * TILE) * sizeof *s, 0};
            const int64_t end = at_most(b + PART, blocks);
            tile_codes(codes, a->q + (o * blocks + b) * 16, blocks * 16, rows, end - b);
            tile_scales(s, a->s + o * groups + (b >> shift), groups, rows, (end - b) >> shift);
            few_tile(y, a, codes, s, next, n, tokens, b, end);
        }
    }
    for (int t = 0; t < tokens; t++) {
        float *to = a->y + (n + t) * a->out + o;
        if (rows == TILE) {
            v_store(to, y[t][0]);
            v_store(to + LANES, y[t][1]);
        } else {
            v_store_part(to, y[t][0], at_most(LANES, rows));
            if (rows > LANES) v_store_part(to + LANES, y[t][1], rows - LANES);
        }
    }
}

/* Rows begin..end of the weight, begin a multiple of 16, against rows n..N of x, a few at a time. */
INLINE void by_few_of_tiles(const struct me_int_linear *a, int64_t n, int64_t begin, int64_t end) {
    for (; n < a->N; n += at_most(FEW, a->N - n))
        for (int64_t o = begin; o < end; o += TILE) {
            int64_t rows = at_most(TILE, end - o);
            switch (a->N - n) {
            case 1: few_of_tile(a, n, 1, o, rows); break;
            case 2: few_of_tile(a, n, 2, o, rows); break;
            case 3: few_of_tile(a, n, 3, o, rows); break;
            default: few_of_tile(a, n, FEW, o, rows);
            }
        }
}
#endif
#endif
