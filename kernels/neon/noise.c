/* The eight-lane loops of scalar/noise.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/noise.c"
