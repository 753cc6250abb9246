// The float work around the matrix products: what comes before and after each, and attention. One table of functions
// per instruction set; all give the same bits.
#pragma once

#include "attention.h"
#include "format.h"

namespace edge {

// Tokens on their way into a product: s = x + skip, then the norm, then int8 where `q` is there.
struct Prologue {
  Geometry matrix;
  edge_norm norm;
  float epsilon;
  const float* x;     // [tokens, columns]
  const float* skip;  // the same, or null
  const float* weight;
  const float* bias;
  float* sum;  // s [tokens, columns], or null
  // a8: as in LinearTask
  int8_t* q;
  int32_t* sums;
  float* scales;
};

struct FloatOps {
  // Tokens first .. end - 1. `rows` gets what goes into the product as floats, `stride` elements per token (0: one row,
  // scratch for all); not touched when that is x or `sum`.
  void (*prepare)(const Prologue& prologue, size_t first, size_t end, float* rows, size_t stride);
  // out = activation(gate), times up where there is one; out may be either
  void (*activate)(edge_epilogue epilogue, const float* gate, const float* up, float* out, size_t count);
  // By edge_cache: keys and values of tokens first .. end - 1 into the cache of a head; then rows first .. end - 1 of
  // the queries that read it, with score_stride(first, end) + 2 * width floats of scratch a row, and for
  // EDGE_CACHE_TABLE kTableScratch * width more.
  void (*append[4])(const AttentionTask& task, size_t kv_head, size_t first, size_t end);
  void (*attend[4])(const AttentionTask& task, size_t kv_head, size_t first, size_t end, float* scratch);
};

#if defined(__x86_64__)
extern const FloatOps kFloatOpsAvx2, kFloatOpsAvx512;
#elif defined(__aarch64__)
extern const FloatOps kFloatOpsNeon;
#endif
extern const FloatOps kFloatOpsPortable;

// The functions for an instruction set that runs here.
const FloatOps& float_ops(edge_isa isa);

}  // namespace edge
