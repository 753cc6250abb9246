#include "avx512vnni.h"
#include "dense_a8.h"

EDGE_A8_AFFINE(2, avx512vnni, Avx512Vnni)
EDGE_A8_AFFINE(3, avx512vnni, Avx512Vnni)
EDGE_A8_AFFINE(4, avx512vnni, Avx512Vnni)
EDGE_A8_AFFINE(8, avx512vnni, Avx512Vnni)
EDGE_A8_SCALARS(1, avx512vnni, Avx512Vnni)
EDGE_A8_SCALARS(2, avx512vnni, Avx512Vnni)
EDGE_A8_SCALARS(3, avx512vnni, Avx512Vnni)
EDGE_A8_SCALARS(4, avx512vnni, Avx512Vnni)
EDGE_A8_VECTORS(2, avx512vnni, Avx512Vnni)
EDGE_A8_VECTORS(3, avx512vnni, Avx512Vnni)
EDGE_A8_VECTORS(4, avx512vnni, Avx512Vnni)
