#include "avx2.h"
#include "dense_a8.h"

EDGE_A8_AFFINE(2, avx2, Avx2)
EDGE_A8_AFFINE(3, avx2, Avx2)
EDGE_A8_AFFINE(4, avx2, Avx2)
EDGE_A8_AFFINE(8, avx2, Avx2)
EDGE_A8_CODEBOOK(2, avx2, Avx2)
EDGE_A8_CODEBOOK(3, avx2, Avx2)
EDGE_A8_CODEBOOK(4, avx2, Avx2)
