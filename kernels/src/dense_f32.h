// The f32 kernels over dense steps, for any instruction set and encoding: a column of a tile is dequantized once for
// all tokens of a block. The order of the sums is in edge_kernels.h.
#pragma once

#include "dense.h"

namespace edge {
namespace {

// What makes values of the integers of a group: scale * (integer - zero).
template <class V>
struct Grid {
  typename V::Floats zero, scale;
};

template <class V, class E>
EDGE_INLINE Grid<V> grid_of(const Stream<E>& stream) {
  const Geometry& m = stream.m;
  const typename V::Floats scale = V::load(stream.scales(0));
  if constexpr (E::kTables) return {V::all(E::kZero), scale};
  if (m.zero_points) return {V::floats(V::bytes(stream.zero_points())), scale};
  // scale * (2 * code - (2^bits - 1)) in other words; nothing here is rounded
  if (m.grid == EDGE_HALF_INTEGER) return {V::all(((1 << E::kBits) - 1) / 2.0f), V::add(scale, scale)};
  return {V::all(1 << (E::kBits - 1)), scale};
}

template <class V, int K, int Planes>
EDGE_INLINE typename V::Floats dequantized(const typename V::Bytes (&quad)[Planes], const Grid<V>& grid) {
  typename V::Ints integer = V::template column<K>(quad[0]);
  if constexpr (Planes == 2) integer = V::template shifted_add<8>(V::template column<K>(quad[1]), integer);
  return V::mul(V::sub(V::floats(integer), grid.zero), grid.scale);
}

template <class V, class E, int Tokens>
EDGE_INLINE void add_step(const uint8_t* at, const uint8_t* table, const Grid<V>& grid, const float* x, size_t x_stride,
                          typename V::Floats (&sum)[4][Tokens]) {
  typename V::Bytes quads[E::kQuads][E::kPlanes];
  expand<V, E>(at, table, quads);
  for (int quad = 0; quad < E::kQuads; ++quad, x += 4) {
    repeat<4>([&](auto column) __attribute__((always_inline)) {
      constexpr int k = decltype(column)::value;
      const typename V::Floats value = dequantized<V, k>(quads[quad], grid);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        sum[k][i] = V::add(sum[k][i], V::mul(V::all(x[i * x_stride + k]), value));
      }
    });
  }
}

template <class V, class E, int Tokens>
void block_f32(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  Stream<E> stream(task, tile);
  typename V::Floats sum[4][Tokens];
  EDGE_UNROLL for (int i = 0; i < 4 * Tokens; ++i) sum[i / Tokens][i % Tokens] = V::zero();
  const float* x = task.x + token * m.columns;
  float last[Tokens][E::kColumns] = {};  // the last step's activations, with zeros for the columns of padding
  size_t left = m.columns;
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    const Grid<V> grid = grid_of<V>(stream);
    for (size_t steps = m.columns_of(group) / E::kColumns; steps > 0; --steps) {
      size_t x_stride = m.columns;
      if (left < E::kColumns) {
        for (int i = 0; i < Tokens; ++i) memcpy(last[i], x + i * m.columns, left * sizeof(float));
        x = last[0];
        x_stride = E::kColumns;
      }
      add_step<V, E>(stream.at, stream.table, grid, x, x_stride, sum);
      stream.at += kLine * E::kBits;
      x += E::kColumns;
      left -= E::kColumns;
    }
  }
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
    store_tile<V>(task, tile, token + i, V::add(V::add(sum[0][i], sum[1][i]), V::add(sum[2][i], sum[3][i])));
  }
}

template <class V, class E>
EDGE_INLINE void multiply_f32(const LinearTask& task, size_t first_tile, size_t end_tile) {
  constexpr int tokens = V::kFloatTokens;
  for (size_t tile = first_tile; tile < end_tile; ++tile) {
    size_t token = 0;
    for (; token + tokens <= task.tokens; token += tokens) block_f32<V, E, tokens>(task, tile, token);
    for (; token < task.tokens; ++token) block_f32<V, E, 1>(task, tile, token);
  }
}

}  // namespace
}  // namespace edge

#define EDGE_F32_AFFINE(bits, isa, V)                                                               \
  void edge::affine##bits##_f32_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    multiply_f32<V, Affine<bits>>(task, first_tile, end_tile);                                      \
  }
#define EDGE_F32_SCALARS(bits, isa, V)                                                                           \
  void edge::codebook##bits##d1_f32_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) {          \
    with_scalars<bits>(task.matrix,                                                                              \
                       [&](auto encoding) { multiply_f32<V, decltype(encoding)>(task, first_tile, end_tile); }); \
  }
#define EDGE_F32_VECTORS(bits, isa, V)                                                                  \
  void edge::codebook##bits##d2_f32_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    multiply_f32<V, Pairs<bits>>(task, first_tile, end_tile);                                           \
  }                                                                                                     \
  void edge::codebook##bits##d4_f32_##isa(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    multiply_f32<V, Fours<bits>>(task, first_tile, end_tile);                                           \
  }
