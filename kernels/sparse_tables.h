/* Where the kept values of eight columns go: for each byte of a mask, one instruction's worth of positions. */
#ifndef MINEDGE_SPARSE_TABLES_H
#define MINEDGE_SPARSE_TABLES_H
#include <stdint.h>

#define ME_BITS(b) (((b) & 1) + ((b) >> 1 & 1) + ((b) >> 2 & 1) + ((b) >> 3 & 1) + ((b) >> 4 & 1) + ((b) >> 5 & 1) + ((b) >> 6 & 1) + ((b) >> 7 & 1))
/* column j takes the value with as many kept ones before it, none where bit j is not set: `none` */
#define ME_PLACE(b, j, none) ((b) >> (j) & 1 ? ME_BITS((b) & ((1 << (j)) - 1)) : (none))
#define ME_4(X, b) X(b), X((b) + 1), X((b) + 2), X((b) + 3)
#define ME_16(X, b) ME_4(X, b), ME_4(X, (b) + 4), ME_4(X, (b) + 8), ME_4(X, (b) + 12)
#define ME_64(X, b) ME_16(X, b), ME_16(X, (b) + 16), ME_16(X, (b) + 32), ME_16(X, (b) + 48)
#define ME_256(X) ME_64(X, 0), ME_64(X, 64), ME_64(X, 128), ME_64(X, 192)

/* eight lanes, -1 for none */
#define ME_LANES(b) {ME_PLACE(b, 0, -1), ME_PLACE(b, 1, -1), ME_PLACE(b, 2, -1), ME_PLACE(b, 3, -1), \
                     ME_PLACE(b, 4, -1), ME_PLACE(b, 5, -1), ME_PLACE(b, 6, -1), ME_PLACE(b, 7, -1)}
/* bytes of lane j, of two or of four; 128 and above for none */
#define ME_PAIR(b, j) 2 * ME_PLACE(b, j, 64), 2 * ME_PLACE(b, j, 64) + 1
#define ME_PAIRS(b) {ME_PAIR(b, 0), ME_PAIR(b, 1), ME_PAIR(b, 2), ME_PAIR(b, 3), ME_PAIR(b, 4), ME_PAIR(b, 5), ME_PAIR(b, 6), ME_PAIR(b, 7)}
#define ME_QUAD(b, j) 4 * ME_PLACE(b, j, 32), 4 * ME_PLACE(b, j, 32) + 1, 4 * ME_PLACE(b, j, 32) + 2, 4 * ME_PLACE(b, j, 32) + 3
#define ME_QUADS(b) {ME_QUAD(b, 0), ME_QUAD(b, 1), ME_QUAD(b, 2), ME_QUAD(b, 3)}

#endif
