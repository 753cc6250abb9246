// The loops of the a8 kernels over dense steps, for any instruction set and encoding. The integer sum of a group starts
// at -zero * (sum of q), so the zero point costs nothing in the inner loop.
#pragma once

#include "dense.h"

namespace edge {
namespace {

constexpr size_t kPanelBytes = 384 * 1024;  // quantized tokens that stay in the second-level cache
constexpr size_t kManyTokens = 16;          // from here on several tiles at once pay

// Where the integer sums of a group start: each token's sum of q times what all values are too high by.
template <class V, class E, int Tokens, int Tiles>
EDGE_INLINE void start_sums(const Stream<E>& stream, const int32_t* q_sums, typename V::Ints (&sum)[Tokens][Tiles]) {
  constexpr int32_t offset = V::template kOffset<E>;
  const Geometry& m = stream.m;
  if (!E::kTables && m.zero_points) {
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
      const typename V::Ints zeros = V::bytes(stream.zero_points() + t * m.tile_bytes);
      const typename V::Ints factor = V::minus(V::spread(offset), zeros);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) sum[i][t] = V::times(factor, q_sums[i * m.groups]);
    }
    return;
  }
  int32_t zero = m.grid == EDGE_HALF_INTEGER ? 0 : 1 << (E::kBits - 1);
  if constexpr (E::kTables) zero = E::kZero;
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
    const typename V::Ints all = V::spread((offset - zero) * q_sums[i * m.groups]);
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) sum[i][t] = all;
  }
}

// The half-integer grid: 2 * code - (2^bits - 1).
template <class V, class E, int Tokens, int Tiles>
EDGE_INLINE void double_sums(const Geometry& m, const int32_t* q_sums, typename V::Ints (&sum)[Tokens][Tiles]) {
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
    const typename V::Ints middle = V::spread((1 - (1 << E::kBits)) * q_sums[i * m.groups]);
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) sum[i][t] = V::template shifted_add<1>(sum[i][t], middle);
  }
}

template <class V, class E, int Tokens, int Tiles>
void block(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  Stream<E> stream(task, tile);
  const int8_t* q = task.q + token * m.padded_columns;
  const int32_t* q_sums = task.sums + token * m.groups;
  const float* q_scales = task.q_scales + token * m.groups;
  typename V::Floats total[Tokens][Tiles];
  EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) total[i / Tiles][i % Tiles] = V::zero();
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    typename V::Ints sum[Tokens][Tiles];
    start_sums<V>(stream, q_sums + group, sum);
    const size_t steps = m.columns_of(group) / E::kColumns;
    V::template dot<E>({stream.at, steps, m.tile_bytes, stream.table, stream.table_stride(), q, m.padded_columns}, sum);
    if (!E::kTables && m.grid == EDGE_HALF_INTEGER) double_sums<V, E>(m, q_sums + group, sum);
    stream.at += steps * (kLine * E::kBits);
    q += steps * E::kColumns;
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
      const typename V::Floats scales = V::load(stream.scales(t));
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const typename V::Floats both = V::mul(scales, V::all(q_scales[i * m.groups + group]));
        total[i][t] = V::add(total[i][t], V::mul(V::floats(sum[i][t]), both));
      }
    }
  }
  EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) {
    store_tile<V>(task, tile + i % Tiles, token + i / Tiles, total[i / Tiles][i % Tiles]);
  }
}

// Blocks of `Tokens`, what remains in halves of that: the tile is near by now, reading it again costs little.
template <class V, class E, int Tokens>
EDGE_INLINE void token_range(const LinearTask& task, size_t tile, size_t token, size_t end) {
  for (; token + Tokens <= end; token += Tokens) block<V, E, Tokens, 1>(task, tile, token);
  if constexpr (Tokens > 1) token_range<V, E, Tokens / 2>(task, tile, token, end);
}

template <class V, class E>
EDGE_INLINE void multiply_a8(const LinearTask& task, size_t first_tile, size_t end_tile) {
  constexpr int tiles = V::template kTiles<E>;
  constexpr int tokens = V::template kTokens<E, tiles>;
  const size_t fit = kPanelBytes / task.matrix.padded_columns / tokens * tokens;
  const size_t panel = fit ? fit : tokens;
  for (size_t token = 0; token < task.tokens; token += panel) {
    const size_t end = smaller(task.tokens, token + panel), whole = end - (end - token) % tokens;
    size_t tile = first_tile, rest = token;
    if (tiles > 1 && end - token >= kManyTokens) {
      for (; tile + tiles <= end_tile; tile += tiles) {
        for (size_t i = token; i < whole; i += tokens) block<V, E, tokens, tiles>(task, tile, i);
      }
      rest = whole;
    }
    for (size_t one = first_tile; one < end_tile; ++one) {
      token_range<V, E, V::template kTokens<E, 1>>(task, one, one < tile ? rest : token, end);
    }
  }
}

}  // namespace
}  // namespace edge

#define EDGE_A8_AFFINE(bits, isa, V)                                                               \
  void edge::affine##bits##_a8_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    multiply_a8<V, Affine<bits>>(task, first_tile, end_tile);                                      \
  }
#define EDGE_A8_SCALARS(bits, isa, V)                                                                           \
  void edge::codebook##bits##d1_a8_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) {          \
    with_scalars<bits>(task.matrix,                                                                             \
                       [&](auto encoding) { multiply_a8<V, decltype(encoding)>(task, first_tile, end_tile); }); \
  }
#define EDGE_A8_VECTORS(bits, isa, V)                                                                  \
  void edge::codebook##bits##d2_a8_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    multiply_a8<V, Pairs<bits>>(task, first_tile, end_tile);                                           \
  }                                                                                                    \
  void edge::codebook##bits##d4_a8_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    multiply_a8<V, Fours<bits>>(task, first_tile, end_tile);                                           \
  }
