/* The eight-lane loops of scalar/activations.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/activations.c"
