/* The loop of scalar/q8.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/q8.c"
