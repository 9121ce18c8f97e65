/* The eight-lane loops of scalar/optim.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/optim.c"
