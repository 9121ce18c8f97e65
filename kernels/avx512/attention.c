/* The eight-lane loops of scalar/attention.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/attention.c"
