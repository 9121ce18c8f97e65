/* Files of this folder are compiled with avx2's flags and -mavx512f, bw, dq, vl, vnni; their kernels are called me_avx512_*.
 * All that holds for avx2 holds here: eight float lanes, the same fused multiply-adds, the same bits. */
#define ME_ISA avx512
#define ME_AVX2
#define ME_AVX512
