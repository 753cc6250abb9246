#include "dense_a8.h"
#include "neon_i8mm.h"

EDGE_A8_AFFINE(2, neon_i8mm, NeonI8mm)
EDGE_A8_AFFINE(3, neon_i8mm, NeonI8mm)
EDGE_A8_AFFINE(4, neon_i8mm, NeonI8mm)
EDGE_A8_AFFINE(8, neon_i8mm, NeonI8mm)
EDGE_A8_CODEBOOK(2, neon_i8mm, NeonI8mm)
EDGE_A8_CODEBOOK(3, neon_i8mm, NeonI8mm)
EDGE_A8_CODEBOOK(4, neon_i8mm, NeonI8mm)
