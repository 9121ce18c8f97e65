/* Few rows of x with AVX-512: few_tile of int4_tiles.h, few_tokens of int_product.h (int8).
 *
 * few_tile, for each of 16 rows r of the weight, here the lanes:
 *     sum = -8 * sum of x's block;  for j in 0..31: sum += code[r][j] * x[j];  y[r] = fma(sum, scale[r] * xscale, y[r])
 *
 *     a piece of the tile  [r0: 4p..4p+3 | r1: 4p..4p+3 | .. | r15]   low nibbles: columns 4p.., high ones: columns 16+4p..
 *     x                    [4p..4p+3 in all sixteen lanes]            one vpdpbusd adds 64 products to 16 sums
 *
 * A block, 512 weights and one row of x: 4 x (load, and, shift, and), 8 vpdpbusd that load x spread, a start and a zero of the
 * sums, an addition, a conversion, the scale, multiply-add: 30 instructions and 4 prefetches; a group 2 more. Zen 4 does two of
 * 512 bits a cycle: 15 cycles, 71 GB/s of codes and scales at 3.7 GHz are the limit in the cache.
 * One row of x, one core of an AMD EPYC (Zen 4, 3.7 GHz), 2026-11-23, best of runs through cffi, eight rows stored one after the
 * other, as before this layout, in brackets: 576 x 1536 in the second-level cache, groups of 32: 49 GB/s (34), of 128: 56 (34).
 * From memory, three rounds in turn, 4096 x 4096: 25 to 28 (24 to 26), groups of 128 23 to 29 (22 to 24); 576 x 1536: 23 to 28 (20 to
 * 23); plain reads came at 23 to 26 between them: there the limit is the memory's.
 *
 * few_tokens (int8): eight rows of the weight, two blocks of each in a vector,
 *     row o     [ block b | b+1 ]    p[r] = codes + 128 times x: four sums in each quarter, turned over while they are added up
 *      ..
 *     row o+7   [ block b | b+1 ]    -> rows o..o+7 of block b, of b+1
 * Sums of int8 start at -128 * x, since codes enter as code + 128. In the second-level cache 55.5 GB/s (AVX2 41.6); from memory
 * 0.92 to 1.07 times AVX2's rate. */

/* y[t] += blocks b..end-1 of a tile, codes and s from block b on. */
INLINE void few_tile(vf y[FEW][2], const struct me_int_linear *a, const uint8_t *codes, const uint16_t *s, struct ahead next, int64_t n,
                     const int tokens, int64_t b, int64_t end) {
    const __m512i low = _mm512_set1_epi8(15);
    const int64_t blocks = a->in / BLOCK, group = a->group / BLOCK;
    __m512 sum[FEW];
    for (int t = 0; t < tokens; t++) memcpy(sum + t, y[t], sizeof *sum);
    for (; b < end; s += TILE) {
        const __m512 ws = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)s));
        fetch_ahead(&next.s, 2 * TILE, next.soon);
        for (const int64_t stop = b + group; b < stop; b++, codes += TILE_BLOCK) {
            __m512i c[8];
            fetch_ahead(&next.codes, TILE_BLOCK, next.soon);
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) {
                __m512i v = _mm512_loadu_si512(codes + 64 * p);
                c[p] = _mm512_and_si512(v, low);
                c[4 + p] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
            }
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                const int64_t at = (n + t) * blocks + b;
                const uint8_t *x = (const uint8_t *)a->xq + at * BLOCK;
                __m512i p0 = _mm512_set1_epi32(-a->xsums[at]), p1 = _mm512_setzero_si512();
#pragma GCC unroll 4
                for (int p = 0; p < 4; p++) {
                    p0 = _mm512_dpbusd_epi32(p0, c[p], _mm512_set1_epi32(four(x + 4 * p)));
                    p1 = _mm512_dpbusd_epi32(p1, c[4 + p], _mm512_set1_epi32(four(x + 16 + 4 * p)));
                }
                __m512 part = _mm512_cvtepi32_ps(_mm512_add_epi32(p0, p1));
                sum[t] = _mm512_fmadd_ps(part, _mm512_mul_ps(ws, _mm512_set1_ps(a->xscales[at])), sum[t]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) memcpy(y[t], sum + t, sizeof *sum);
}

/* c[r] = the 64 bytes at q + r * stride, or those eights of them that `here` has (255: all) */
INLINE void load8(__m512i c[8], const uint8_t *q, int64_t stride, const __mmask8 here) {
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) {
        const uint8_t *at = q + (r & 4) * stride + (r & 3) * stride;  /* two bases and three multiples: few registers */
        c[r] = here == 255 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi64(here, at);
    }
}

/* p[r], 128-bit part i: four partial sums -> rows0, rows4, part i: their sums for rows 0..3, for rows 4..7 */
INLINE void add_quarters(__m512i *rows0, __m512i *rows4, const __m512i p[8]) {
    __m512i a[4], b[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        a[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2 * i], p[2 * i + 1]), _mm512_unpackhi_epi32(p[2 * i], p[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        b[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
    *rows0 = b[0];
    *rows4 = b[1];
}

INLINE void add_int8(vf y[FEW], const struct me_int_linear *a, const uint8_t *q, int64_t stride, int64_t n, const int tokens,
                     int64_t b, const int count, const float *ws) {
    const __m512i offset = _mm512_set1_epi8((char)128);
    const int64_t blocks = a->in / BLOCK;
    __m512i c[8], p[8], rows0, rows4;
    const __mmask8 here = (__mmask8)(count > 1 ? 255 : 15);
    load8(c, q + b * 32, stride, here);
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) c[r] = _mm512_xor_si512(c[r], offset);
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        const int64_t at = (n + t) * blocks + b;
        __m512i x = _mm512_maskz_loadu_epi64(here, a->xq + at * 32);
        __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), offset, x));
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) p[r] = _mm512_dpbusd_epi32(start, c[r], x);
        add_quarters(&rows0, &rows4, p);
        __m512i both = _mm512_add_epi32(_mm512_shuffle_i64x2(rows0, rows4, 0x88), _mm512_shuffle_i64x2(rows0, rows4, 0xdd));
        both = _mm512_shuffle_i64x2(both, both, 0xd8);
#pragma GCC unroll 2
        for (int i = 0; i < count; i++) {
            vi part = (vi)(i ? _mm512_extracti64x4_epi64(both, 1) : _mm512_castsi512_si256(both));
            vf scale = v_load(ws + i * LANES) * v_set(a->xscales[at + i]);
            y[t] = v_fma(__builtin_convertvector(part, vf), scale, y[t]);
        }
    }
}

/* y[n + t][o .. o + rows) of an int8 weight for t < tokens: `tokens` a constant. Eight rows at once, or one in eight places: there
 * are never more than seven of those in a weight. */
INLINE void few_tokens(const struct me_int_linear *a, int64_t n, const int tokens, int64_t o, int64_t rows) {
    const int64_t blocks = a->in / BLOCK;
    const int64_t end_row = o + rows, take = rows == LANES ? LANES : 1, stride = take == LANES ? a->in : 0;
    for (; o < end_row; o += take) {
        const uint8_t *q = a->q + o * a->in;
        const uint16_t *s[LANES];
        vf y[FEW], ws[LANES];
        for (int r = 0; r < LANES; r++) s[r] = a->s + (o + (take == LANES ? r : 0)) * blocks;
        for (int t = 0; t < tokens; t++) y[t] = v_set(0);
        for (int64_t b0 = 0; b0 < blocks; b0 += LANES) {
            const float *w = (const float *)ws;
            const int64_t end = at_most(b0 + LANES, blocks);
            fetch(s[0], (blocks + b0) * LANES * (int64_t)sizeof **s + SCALES_AHEAD, LANES * LANES * (int64_t)sizeof **s);
            eight_scales(ws, s, b0, end - b0);
            for (int64_t b = b0; b < end; b += 2, w += 2 * LANES) {
                fetch(q, (blocks + b) * LANES * BLOCK + CODES_AHEAD, 2 * LANES * BLOCK);
                if (b + 2 <= end) add_int8(y, a, q, stride, n, tokens, b, 2, w);
                else add_int8(y, a, q, stride, n, tokens, b, 1, w);
            }
        }
        for (int t = 0; t < tokens; t++) v_store_part(a->y + (n + t) * a->out + o, y[t], take);
    }
}
