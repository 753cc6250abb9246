// One matrix product, as every kernel gets it.
#pragma once

#include "format.h"

namespace edge {

struct LinearTask {
  Geometry matrix;
  const uint8_t* prefix;  // what stands between header and tiles
  const uint8_t* tiles;
  size_t tokens;
  // a8: each token quantized to [padded_columns] int8, with [sums] sums and a scale per group
  const int8_t* q;
  const int32_t* sums;
  const float* q_scales;
  // f32: [tokens, columns]
  const float* x;
  const float* bias;  // [rows] or null
  float* out;         // [tokens, rows]
};

// Computes the rows of tiles first .. end - 1 for all tokens.
using LinearKernel = void (*)(const LinearTask& task, size_t first_tile, size_t end_tile);

#define EDGE_KERNEL(name, encoding, bits, variant, activations, isa) \
  void name##_##activations##_##isa(const LinearTask& task, size_t first_tile, size_t end_tile);
#include "kernels.inc"
#undef EDGE_KERNEL

}  // namespace edge
