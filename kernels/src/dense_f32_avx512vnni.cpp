#include "avx512vnni.h"
#include "dense_f32.h"

EDGE_F32_AFFINE(2, avx512vnni, Avx512Vnni)
EDGE_F32_AFFINE(3, avx512vnni, Avx512Vnni)
EDGE_F32_AFFINE(4, avx512vnni, Avx512Vnni)
EDGE_F32_AFFINE(8, avx512vnni, Avx512Vnni)
EDGE_F32_SCALARS(1, avx512vnni, Avx512Vnni)
EDGE_F32_SCALARS(2, avx512vnni, Avx512Vnni)
EDGE_F32_SCALARS(3, avx512vnni, Avx512Vnni)
EDGE_F32_SCALARS(4, avx512vnni, Avx512Vnni)
EDGE_F32_VECTORS(2, avx512vnni, Avx512Vnni)
EDGE_F32_VECTORS(3, avx512vnni, Avx512Vnni)
EDGE_F32_VECTORS(4, avx512vnni, Avx512Vnni)
