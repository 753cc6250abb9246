#include "dense_f32.h"
#include "neon.h"

EDGE_F32_AFFINE(2, neon_dotprod, Neon)
EDGE_F32_AFFINE(3, neon_dotprod, Neon)
EDGE_F32_AFFINE(4, neon_dotprod, Neon)
EDGE_F32_AFFINE(8, neon_dotprod, Neon)
EDGE_F32_SCALARS(1, neon_dotprod, Neon)
EDGE_F32_SCALARS(2, neon_dotprod, Neon)
EDGE_F32_SCALARS(3, neon_dotprod, Neon)
EDGE_F32_SCALARS(4, neon_dotprod, Neon)
EDGE_F32_VECTORS(2, neon_dotprod, Neon)
EDGE_F32_VECTORS(3, neon_dotprod, Neon)
EDGE_F32_VECTORS(4, neon_dotprod, Neon)
