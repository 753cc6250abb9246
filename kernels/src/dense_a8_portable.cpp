#include "dense_a8.h"
#include "portable.h"

EDGE_A8_AFFINE(2, portable, Portable)
EDGE_A8_AFFINE(3, portable, Portable)
EDGE_A8_AFFINE(4, portable, Portable)
EDGE_A8_AFFINE(8, portable, Portable)
EDGE_A8_CODEBOOK(2, portable, Portable)
EDGE_A8_CODEBOOK(3, portable, Portable)
EDGE_A8_CODEBOOK(4, portable, Portable)
