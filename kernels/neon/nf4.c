/* The eight-lane loops of scalar/nf4.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/nf4.c"
