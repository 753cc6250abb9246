#include "dense_a8.h"
#include "neon_i8mm.h"

EDGE_A8_AFFINE(2, neon_i8mm, NeonI8mm)
EDGE_A8_AFFINE(3, neon_i8mm, NeonI8mm)
EDGE_A8_AFFINE(4, neon_i8mm, NeonI8mm)
EDGE_A8_AFFINE(8, neon_i8mm, NeonI8mm)
EDGE_A8_SCALARS(1, neon_i8mm, NeonI8mm)
EDGE_A8_SCALARS(2, neon_i8mm, NeonI8mm)
EDGE_A8_SCALARS(3, neon_i8mm, NeonI8mm)
EDGE_A8_SCALARS(4, neon_i8mm, NeonI8mm)
EDGE_A8_VECTORS(2, neon_i8mm, NeonI8mm)
EDGE_A8_VECTORS(3, neon_i8mm, NeonI8mm)
EDGE_A8_VECTORS(4, neon_i8mm, NeonI8mm)
