// The loops of the a8 kernels, for any instruction set. `Isa` brings
//   Ints, Floats          one value per row of a tile (16)
//   kTokens, tiles<Bits>  the register block of a prefill: tokens x tiles at a time
//   code_offset<Bits>     what its dot products take off every code (128 where they want signed bytes, else 0)
//   zero, start, dot32, scales, add_scaled, scaled, add, load_floats, store
// The integer sum of a group starts at -zero * (sum of q), so the zero point costs nothing in the inner loop.
#pragma once

#include "task.h"

namespace edge {
namespace {

constexpr size_t kPanelBytes = 384 * 1024;  // quantized tokens that stay in the second-level cache
constexpr size_t kManyTokens = 16;          // from here on several tiles at once pay

template <class Isa>
EDGE_INLINE void store_tile(const LinearTask& task, size_t tile, size_t token, typename Isa::Floats value) {
  const size_t row = tile * kRows, count = smaller(kRows, task.matrix.rows - row);
  float* out = task.out + token * task.matrix.rows + row;
  if (count == kRows) {
    if (task.bias) value = Isa::add(value, Isa::load_floats(task.bias + row));
    Isa::store(out, value);
    return;
  }
  float lanes[kRows];
  Isa::store(lanes, value);
  for (size_t i = 0; i < count; ++i) out[i] = task.bias ? lanes[i] + task.bias[row + i] : lanes[i];
}

// Start of the integer sums of one group: -zero * sum of q, the same for all rows on the symmetric grid.
template <class Isa, uint32_t Bits, bool ZeroPoints>
EDGE_INLINE typename Isa::Ints start(const uint8_t* zeros, int32_t sum) {
  if constexpr (ZeroPoints) return Isa::start(zeros, Isa::template code_offset<Bits>, sum);
  return Isa::start((Isa::template code_offset<Bits> - (1 << (Bits - 1))) * sum);
}

template <class Isa, uint32_t Bits, bool ZeroPoints, int Tokens, int Tiles>
void block(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  const uint8_t* stream = task.tiles + tile * m.tile_bytes;
  const uint8_t* head = stream;
  const int8_t* q = task.q + token * m.padded_columns;
  const int32_t* sums = task.sums + token * m.groups;
  const float* q_scales = task.q_scales + token * m.groups;
  typename Isa::Floats total[Tokens][Tiles];
  EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) total[i / Tiles][i % Tiles] = Isa::zero();
  for (size_t group = 0; group < m.groups; ++group) {
    const size_t half = group % 2;
    if (half == 0) {
      head = stream;
      stream += m.head_bytes;
    }
    typename Isa::Ints sum[Tokens][Tiles];
    EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) {
      const uint8_t* zeros = head + (i % Tiles) * m.tile_bytes + 2 * kScaleBytes + half * kRows;
      sum[i / Tiles][i % Tiles] = start<Isa, Bits, ZeroPoints>(zeros, sums[(i / Tiles) * m.groups + group]);
    }
    for (size_t steps = m.columns_of(group) / kStep; steps > 0; --steps) {
      Isa::template dot32<Bits, Tokens, Tiles>(stream, m.tile_bytes, q, m.padded_columns, sum);
      stream += 64 * Bits;
      q += kStep;
    }
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
      const typename Isa::Floats scales = Isa::scales(head + t * m.tile_bytes + half * kScaleBytes);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const typename Isa::Floats both = Isa::scaled(scales, q_scales[i * m.groups + group]);
        total[i][t] = Isa::add_scaled(total[i][t], sum[i][t], both);
      }
    }
  }
  EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) {
    store_tile<Isa>(task, tile + i % Tiles, token + i / Tiles, total[i / Tiles][i % Tiles]);
  }
}

template <class Isa, uint32_t Bits, bool ZeroPoints, int Tiles>
void token_range(const LinearTask& task, size_t tile, size_t first, size_t end) {
  size_t token = first;
  for (; token + Isa::kTokens <= end; token += Isa::kTokens) {
    block<Isa, Bits, ZeroPoints, Isa::kTokens, Tiles>(task, tile, token);
  }
  for (; token + 2 <= end; token += 2) block<Isa, Bits, ZeroPoints, 2, Tiles>(task, tile, token);
  for (; token < end; ++token) block<Isa, Bits, ZeroPoints, 1, Tiles>(task, tile, token);
}

template <class Isa, uint32_t Bits, bool ZeroPoints>
void tile_range(const LinearTask& task, size_t first_tile, size_t end_tile) {
  constexpr size_t tiles = Isa::template tiles<Bits>, tokens = Isa::kTokens;
  const size_t fit = kPanelBytes / task.matrix.padded_columns / tokens * tokens;
  const size_t panel = fit ? fit : tokens;
  for (size_t token = 0; token < task.tokens; token += panel) {
    const size_t end = smaller(task.tokens, token + panel);
    size_t tile = first_tile;
    if (end - token >= kManyTokens) {
      for (; tile + tiles <= end_tile; tile += tiles) token_range<Isa, Bits, ZeroPoints, tiles>(task, tile, token, end);
    }
    for (; tile < end_tile; ++tile) token_range<Isa, Bits, ZeroPoints, 1>(task, tile, token, end);
  }
}

template <class Isa, uint32_t Bits>
EDGE_INLINE void affine_a8(const LinearTask& task, size_t first_tile, size_t end_tile) {
  if (task.matrix.zero_points) {
    tile_range<Isa, Bits, true>(task, first_tile, end_tile);
  } else {
    tile_range<Isa, Bits, false>(task, first_tile, end_tile);
  }
}

}  // namespace
}  // namespace edge

#define EDGE_A8_KERNEL(bits, isa, Isa)                                                             \
  void edge::affine##bits##_a8_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    affine_a8<Isa, bits>(task, first_tile, end_tile);                                              \
  }
