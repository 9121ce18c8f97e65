/* Files of this folder are compiled with -mavx2 -mfma -mf16c; their kernels are called me_avx2_*. */
#define ME_ISA avx2
#define ME_AVX2
