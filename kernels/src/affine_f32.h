// The f32 kernels: plain loops over 16 rows, compiled once per instruction set for the compiler to vectorize. Weights
// are dequantized a step at a time and used for all tokens of a block. The order of the sums is in edge_kernels.h.
#pragma once

#include "task.h"

namespace edge {
namespace {

constexpr size_t kTokenBlock = 8;

struct Partial {
  float sum[4][kRows];
};

template <uint32_t Bits>
EDGE_INLINE void dequantize_step(const uint8_t* step, const float* scales, const float* zeros,
                                 float (&values)[kStep][kRows]) {
  for (size_t column = 0; column < kStep; ++column) {
    for (size_t row = 0; row < kRows; ++row) {
      values[column][row] = (static_cast<float>(code_at<Bits>(step, row, column)) - zeros[row]) * scales[row];
    }
  }
}

EDGE_INLINE void accumulate(const float (&values)[kStep][kRows], const float* x, size_t columns, Partial& partial) {
  for (size_t column = 0; column < columns; ++column) {
    const float factor = x[column];
    float* sum = partial.sum[column % 4];
    EDGE_UNROLL for (size_t row = 0; row < kRows; ++row) sum[row] += factor * values[column][row];
  }
}

EDGE_INLINE void finish(const LinearTask& task, size_t tile, size_t token, const Partial& p) {
  const size_t first = tile * kRows, count = smaller(kRows, task.matrix.rows - first);
  float* out = task.out + token * task.matrix.rows + first;
  for (size_t row = 0; row < count; ++row) {
    const float value = (p.sum[0][row] + p.sum[1][row]) + (p.sum[2][row] + p.sum[3][row]);
    out[row] = task.bias ? value + task.bias[first + row] : value;
  }
}

template <uint32_t Bits>
EDGE_INLINE void tokens_of_tile(const LinearTask& task, size_t tile, size_t token, size_t tokens) {
  const Geometry& m = task.matrix;
  const uint8_t* stream = task.tiles + tile * m.tile_bytes;
  const uint8_t* head = stream;
  Partial partial[kTokenBlock] = {};
  size_t column = 0;
  for (size_t group = 0; group < m.groups; ++group) {
    const size_t half = group % 2;
    if (half == 0) {
      head = stream;
      stream += m.head_bytes;
    }
    float scales[kRows], zeros[kRows];
    for (size_t row = 0; row < kRows; ++row) {
      scales[row] = float_from_half(load<uint16_t>(head + half * kScaleBytes + 2 * row));
      zeros[row] = m.zero_points ? head[2 * kScaleBytes + half * kRows + row] : 1 << (Bits - 1);
    }
    for (size_t steps = m.columns_of(group) / kStep; steps > 0; --steps) {
      float values[kStep][kRows];
      dequantize_step<Bits>(stream, scales, zeros, values);
      const size_t used = smaller(kStep, m.columns - column);
      for (size_t i = 0; i < tokens; ++i) {
        accumulate(values, task.x + (token + i) * m.columns + column, used, partial[i]);
      }
      stream += 64 * Bits;
      column += kStep;
    }
  }
  for (size_t i = 0; i < tokens; ++i) finish(task, tile, token + i, partial[i]);
}

template <uint32_t Bits>
EDGE_INLINE void affine_f32(const LinearTask& task, size_t first_tile, size_t end_tile) {
  for (size_t tile = first_tile; tile < end_tile; ++tile) {
    for (size_t token = 0; token < task.tokens; token += kTokenBlock) {
      tokens_of_tile<Bits>(task, tile, token, smaller(kTokenBlock, task.tokens - token));
    }
  }
}

}  // namespace
}  // namespace edge

#define EDGE_F32_KERNEL(bits, isa)                                                                  \
  void edge::affine##bits##_f32_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    affine_f32<bits>(task, first_tile, end_tile);                                                   \
  }
