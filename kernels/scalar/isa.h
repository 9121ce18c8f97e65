/* Files of this folder run on any processor; their kernels are called me_scalar_*. */
#define ME_ISA scalar
