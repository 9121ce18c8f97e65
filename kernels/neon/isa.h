/* Files of this folder use the NEON baseline of 64-bit ARM; their kernels are called me_neon_*. */
#define ME_ISA neon
#define ME_NEON
