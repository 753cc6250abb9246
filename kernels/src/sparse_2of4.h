// 2:4 sparse matrices (EDGE_2OF4), for any instruction set. With int8 activations, weights stay as they are stored: the
// positions select the activations that meet them.
#pragma once

#include "sparse.h"

namespace edge {
namespace {

// Values of the pair of quads M of a step: byte i of a row belongs to quad 2M + i / 2.
template <class V, uint32_t Bits, size_t M>
EDGE_INLINE typename V::Bytes pair_codes(const uint8_t* step) {
  const uint8_t* values = step + kLine;
  if constexpr (Bits == 4) return V::template field<4 * (M % 2), 15>(V::atom(values + kLine * (M / 2)));
  if constexpr (Bits == 8) return V::atom(values + kLine * M);
}

template <class V, uint32_t Bits, int Tokens>
EDGE_INLINE void add_2of4_step(const uint8_t* step, const int8_t* q, size_t q_stride, SignedSums<V, Tokens>& sums) {
  constexpr uint32_t first_quads = 0x04040000,
                     last_quads = 0x0c0c0808;  // where a row's four quads begin, of 16 columns
  const typename V::Bytes positions = V::atom(step);
  if constexpr (Tokens == 1) fetch_ahead<1 + Bits / 2>(step);
  repeat<2>([&](auto half_step) __attribute__((always_inline)) {
    constexpr size_t half = decltype(half_step)::value;
    const auto first = V::joined(V::template field<4 * half, 3>(positions), V::rows_of(first_quads));
    const auto last = V::joined(V::template field<4 * half + 2, 3>(positions), V::rows_of(last_quads));
    const typename V::Bytes first_codes = signed_codes<V, Bits>(pair_codes<V, Bits, 2 * half>(step));
    const typename V::Bytes last_codes = signed_codes<V, Bits>(pair_codes<V, Bits, 2 * half + 1>(step));
    sums.template count<Bits>(first_codes);
    sums.template count<Bits>(last_codes);
    EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
      const typename V::Bytes sixteen = V::lane_of(q + i * q_stride + 16 * half);
      sums.template add<Bits>(i, V::lookup(sixteen, first), first_codes);
      sums.template add<Bits>(i, V::lookup(sixteen, last), last_codes);
    }
  });
}

template <class V, uint32_t Bits, int Tokens>
void block_2of4(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  Stream<Affine<Bits>> stream(task, tile);
  const int8_t* q = task.q + token * m.padded_columns;
  const float* q_scales = task.q_scales + token * m.groups;
  typename V::Floats total[Tokens];
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) total[i] = V::zero();
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    SignedSums<V, Tokens> sums;
    for (size_t steps = m.columns_of(group) / kStep; steps > 0; --steps) {
      add_2of4_step<V, Bits>(stream.at, q, m.padded_columns, sums);
      stream.at += m.step_bytes;
      q += kStep;
    }
    sums.add_to(total, V::load(stream.scales(0)), q_scales + group, m.groups);
  }
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) store_tile<V>(task, tile, token + i, total[i]);
}

template <class V, uint32_t Bits>
EDGE_INLINE void sparse_2of4_a8(const LinearTask& task, size_t first_tile, size_t end_tile) {
  const size_t token_bytes = task.matrix.padded_columns;
  tile_blocks<V::kSparseTokens>(task, token_bytes, first_tile, end_tile, [&](auto tokens, size_t tile, size_t token) {
    block_2of4<V, Bits, decltype(tokens)::value>(task, tile, token);
  });
}

// The four columns of a quad from its two kept values and their positions; columns in between are 0.
template <class V>
EDGE_INLINE void spread_quad(typename V::Floats left, typename V::Floats right, typename V::Floats left_at,
                             typename V::Floats right_at, typename V::Floats (&values)[4]) {
  const typename V::Floats none = V::zero(), half = V::all(0.5f), middle = V::all(1.5f), last = V::all(2.5f);
  values[0] = V::if_less(left_at, half, left, none);
  values[1] = V::if_less(left_at, half, none, V::if_less(left_at, middle, left, none));
  values[1] = V::if_less(right_at, middle, right, values[1]);
  values[2] = V::if_less(right_at, last, V::if_less(middle, right_at, right, none), none);
  values[2] = V::if_less(middle, left_at, left, values[2]);
  values[3] = V::if_less(last, right_at, right, none);
}

template <class V, uint32_t Bits, int Tokens>
void block_2of4_f32(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  Stream<Affine<Bits>> stream(task, tile);
  const typename V::Floats zeros = V::all(1 << (Bits - 1));
  FloatSums<V, Tokens> sums;
  size_t column = 0;
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    const typename V::Floats scales = V::load(stream.scales(0));
    for (size_t steps = m.columns_of(group) / kStep; steps > 0; --steps) {
      repeat<4>([&](auto index) __attribute__((always_inline)) {
        constexpr size_t pair = decltype(index)::value;
        typename V::Floats kept[4], at[4], four[4];
        dequantize_quad<V>(pair_codes<V, Bits, pair>(stream.at), zeros, scales, kept);
        dequantize_quad<V>(V::template field<2 * pair, 3>(V::atom(stream.at)), V::zero(), V::all(1.0f), at);
        for (size_t i = 0; i < 4; i += 2) {  // two quads
          spread_quad<V>(kept[i], kept[i + 1], at[i], at[i + 1], four);
          sums.add_quad(task, token, column, four);
          column += 4;
        }
      });
      stream.at += m.step_bytes;
    }
  }
  sums.store(task, tile, token);
}

template <class V, uint32_t Bits>
EDGE_INLINE void sparse_2of4_f32(const LinearTask& task, size_t first_tile, size_t end_tile) {
  const size_t token_bytes = task.matrix.columns * sizeof(float);
  tile_blocks<V::kFloatTokens>(task, token_bytes, first_tile, end_tile, [&](auto tokens, size_t tile, size_t token) {
    block_2of4_f32<V, Bits, decltype(tokens)::value>(task, tile, token);
  });
}

}  // namespace
}  // namespace edge
