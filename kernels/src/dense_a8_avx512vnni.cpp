#include "avx512vnni.h"
#include "dense_a8.h"

EDGE_A8_AFFINE(2, avx512vnni, Avx512Vnni)
EDGE_A8_AFFINE(3, avx512vnni, Avx512Vnni)
EDGE_A8_AFFINE(4, avx512vnni, Avx512Vnni)
EDGE_A8_AFFINE(8, avx512vnni, Avx512Vnni)
EDGE_A8_CODEBOOK(2, avx512vnni, Avx512Vnni)
EDGE_A8_CODEBOOK(3, avx512vnni, Avx512Vnni)
EDGE_A8_CODEBOOK(4, avx512vnni, Avx512Vnni)
