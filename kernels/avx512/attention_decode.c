/* The eight-lane loops of scalar/attention_decode.c, compiled for this folder's instruction set. */
#include "isa.h"
#include "../scalar/attention_decode.c"
