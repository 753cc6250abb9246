#include "avx2.h"
#include "dense_a8.h"

EDGE_A8_AFFINE(2, avx2, Avx2)
EDGE_A8_AFFINE(3, avx2, Avx2)
EDGE_A8_AFFINE(4, avx2, Avx2)
EDGE_A8_AFFINE(8, avx2, Avx2)
EDGE_A8_SCALARS(1, avx2, Avx2)
EDGE_A8_SCALARS(2, avx2, Avx2)
EDGE_A8_SCALARS(3, avx2, Avx2)
EDGE_A8_SCALARS(4, avx2, Avx2)
EDGE_A8_VECTORS(2, avx2, Avx2)
EDGE_A8_VECTORS(3, avx2, Avx2)
EDGE_A8_VECTORS(4, avx2, Avx2)
