#include "dense_a8.h"
#include "neon_dotprod.h"

EDGE_A8_AFFINE(2, neon_dotprod, NeonDotprod)
EDGE_A8_AFFINE(3, neon_dotprod, NeonDotprod)
EDGE_A8_AFFINE(4, neon_dotprod, NeonDotprod)
EDGE_A8_AFFINE(8, neon_dotprod, NeonDotprod)
EDGE_A8_SCALARS(1, neon_dotprod, NeonDotprod)
EDGE_A8_SCALARS(2, neon_dotprod, NeonDotprod)
EDGE_A8_SCALARS(3, neon_dotprod, NeonDotprod)
EDGE_A8_SCALARS(4, neon_dotprod, NeonDotprod)
EDGE_A8_VECTORS(2, neon_dotprod, NeonDotprod)
EDGE_A8_VECTORS(3, neon_dotprod, NeonDotprod)
EDGE_A8_VECTORS(4, neon_dotprod, NeonDotprod)
