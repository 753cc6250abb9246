#include "dense_f32.h"
#include "portable.h"

EDGE_F32_AFFINE(2, portable, Portable)
EDGE_F32_AFFINE(3, portable, Portable)
EDGE_F32_AFFINE(4, portable, Portable)
EDGE_F32_AFFINE(8, portable, Portable)
EDGE_F32_CODEBOOK(2, portable, Portable)
EDGE_F32_CODEBOOK(3, portable, Portable)
EDGE_F32_CODEBOOK(4, portable, Portable)
