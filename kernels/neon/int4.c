/* The eight-lane loops of scalar/int4.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/int4.c"
