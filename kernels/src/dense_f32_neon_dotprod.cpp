#include "dense_f32.h"
#include "neon.h"

EDGE_F32_AFFINE(2, neon_dotprod, Neon)
EDGE_F32_AFFINE(3, neon_dotprod, Neon)
EDGE_F32_AFFINE(4, neon_dotprod, Neon)
EDGE_F32_AFFINE(8, neon_dotprod, Neon)
EDGE_F32_CODEBOOK(2, neon_dotprod, Neon)
EDGE_F32_CODEBOOK(3, neon_dotprod, Neon)
EDGE_F32_CODEBOOK(4, neon_dotprod, Neon)
