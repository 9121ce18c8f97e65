/* The eight-lane loops of scalar/masks.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/masks.c"
