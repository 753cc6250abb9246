#include "dense_f32.h"
#include "portable.h"

EDGE_F32_AFFINE(2, portable, Portable)
EDGE_F32_AFFINE(3, portable, Portable)
EDGE_F32_AFFINE(4, portable, Portable)
EDGE_F32_AFFINE(8, portable, Portable)
EDGE_F32_SCALARS(1, portable, Portable)
EDGE_F32_SCALARS(2, portable, Portable)
EDGE_F32_SCALARS(3, portable, Portable)
EDGE_F32_SCALARS(4, portable, Portable)
EDGE_F32_VECTORS(2, portable, Portable)
EDGE_F32_VECTORS(3, portable, Portable)
EDGE_F32_VECTORS(4, portable, Portable)
