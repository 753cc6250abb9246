#include "avx2.h"
#include "dense_f32.h"

EDGE_F32_AFFINE(2, avx2, Avx2)
EDGE_F32_AFFINE(3, avx2, Avx2)
EDGE_F32_AFFINE(4, avx2, Avx2)
EDGE_F32_AFFINE(8, avx2, Avx2)
EDGE_F32_CODEBOOK(2, avx2, Avx2)
EDGE_F32_CODEBOOK(3, avx2, Avx2)
EDGE_F32_CODEBOOK(4, avx2, Avx2)
