/* few_tokens of int_product.h with AVX-512: eight rows of the weight, four int4 blocks (or two int8 blocks) of each in a vector.
 *
 *     row o       [ block b | b+1 | b+2 | b+3 ]   each: bytes 0..15, columns 0..15 in the low nibbles, 16..31 in the high
 *      ..                                         x0 = columns 0..15 of the four blocks of x, x1 = columns 16..31
 *     row o+7     [ block b | b+1 | b+2 | b+3 ]   p[r] = low nibbles . x0 + high nibbles . x1: four sums in each quarter
 *
 *     p[0..7], turned over while they are added up   ->   rows o..o+7 of block b, of b+1, of b+2, of b+3
 *
 * int4, 1,024 weights and one row of x: 8 x (load, 2 and, shift, 2 vpdpbusd, a zero), 18 to add up, 2 to set in order, 4 for x,
 * 4 x (take off, convert, 2 for the scale, multiply-add) and 2 halves, 8 prefetches: 110 instructions, where AVX2 has 200.
 * Sums of int8 start at -128 * x, since codes enter as code + 128.
 * One row of x, weights in the second-level cache, one core of an AMD EPYC (Zen 4, 3.7 GHz) beside other work, best of
 * alternating runs with AVX2's kernel, 2026-11-23, AVX2's in brackets: int4, groups of 32: 36.5 GB/s of codes and scales (28.7),
 * groups of 128: 40.1 (31.0); int8: 55.5 (41.6). From memory both wait for it: int4 1.04 to 1.2 times AVX2's rate, int8 0.92
 * to 1.07. Zen 4 has four vector pipes and needs two passes for 512 bits: some 36 cycles for 1,024 weights, 59 GB/s, are the limit;
 * 48 to 58 are spent. */
/* y[t] += blocks b..end-1 of a tile, codes and s from block b on: four columns of sixteen rows times four columns of x in all lanes.
 * A block, 512 weights and one row of x: 4 x (load, and, shift, and), 8 vpdpbusd that load x spread, an addition, a conversion,
 * multiply-add, and the start of the sums: 29 instructions; scales of a group 2 more. */
INLINE void few_tile(vf y[FEW][2], const struct me_int_linear *a, const uint8_t *codes, const uint16_t *s, int64_t n, const int tokens,
                     int64_t b, int64_t end) {
    const __m512i low = _mm512_set1_epi8(15);
    const int64_t blocks = a->in / BLOCK, group = a->group / BLOCK;
    __m512 sum[FEW];
    for (int t = 0; t < tokens; t++) memcpy(sum + t, y[t], sizeof *sum);
    for (; b < end; s += TILE) {
        const __m512 ws = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)s));
        fetch_near(s, TILE_AHEAD / 8, 2 * TILE);
        for (const int64_t stop = b + group; b < stop; b++, codes += TILE_BLOCK) {
            __m512i c[8];
            fetch_near(codes, TILE_AHEAD, TILE_BLOCK);
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
