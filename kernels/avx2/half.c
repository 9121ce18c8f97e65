/* The eight-lane loops of scalar/half.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/half.c"
