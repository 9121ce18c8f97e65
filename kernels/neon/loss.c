/* The eight-lane loops of scalar/loss.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/loss.c"
