#include "avx512vnni.h"
#include "dense_f32.h"

EDGE_F32_AFFINE(2, avx512vnni, Avx512Vnni)
EDGE_F32_AFFINE(3, avx512vnni, Avx512Vnni)
EDGE_F32_AFFINE(4, avx512vnni, Avx512Vnni)
EDGE_F32_AFFINE(8, avx512vnni, Avx512Vnni)
EDGE_F32_CODEBOOK(2, avx512vnni, Avx512Vnni)
EDGE_F32_CODEBOOK(3, avx512vnni, Avx512Vnni)
EDGE_F32_CODEBOOK(4, avx512vnni, Avx512Vnni)
