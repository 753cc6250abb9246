#include "dense_a8.h"
#include "portable.h"

EDGE_A8_AFFINE(2, portable, Portable)
EDGE_A8_AFFINE(3, portable, Portable)
EDGE_A8_AFFINE(4, portable, Portable)
EDGE_A8_AFFINE(8, portable, Portable)
EDGE_A8_SCALARS(1, portable, Portable)
EDGE_A8_SCALARS(2, portable, Portable)
EDGE_A8_SCALARS(3, portable, Portable)
EDGE_A8_SCALARS(4, portable, Portable)
EDGE_A8_VECTORS(2, portable, Portable)
EDGE_A8_VECTORS(3, portable, Portable)
EDGE_A8_VECTORS(4, portable, Portable)
