/* The eight-lane loops of scalar/layers.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/layers.c"
