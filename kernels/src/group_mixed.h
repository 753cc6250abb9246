// Group-mixed matrices (EDGE_GROUP_MIXED), for any instruction set: the groups at 2 bits, then those at 4 (or at 1 and
// 8), each with the activations that the order of the tile names.
#pragma once

#include "mixed_stream.h"
#include "tokens.h"

namespace edge {
namespace {

template <class V>
EDGE_INLINE typename V::Floats scales_of(const MixedStream& stream) {
  if (!stream.row_scales) return V::load(reinterpret_cast<const Half*>(stream.scales()));
  return V::mul(V::floats(V::bytes(stream.scales())), V::load(stream.row_scales));
}

template <class V, uint32_t Bits, int Tokens>
EDGE_INLINE void mixed_groups_a8(const LinearTask& task, size_t token, size_t count, MixedStream& stream,
                                 typename V::Floats (&total)[Tokens]) {
  constexpr int32_t offset = V::template kOffset<Affine<Bits>>;
  const Geometry& m = task.matrix;
  const int32_t* q_sums = task.sums + token * m.groups;
  const float* q_scales = task.q_scales + token * m.groups;
  const size_t steps = m.group_columns / kStep;
  for (size_t i = 0; i < count; ++i) {
    const size_t group = stream.enter(i == 0);
    constexpr int shift = shift_of(Bits), zero = shift ? 0 : middle_of(Bits);  // what is shifted is centred after it
    const typename V::Ints zeros = m.zero_points ? V::bytes(stream.zero_points()) : V::spread(zero);
    const typename V::Ints factor = V::minus(V::spread(offset), zeros);
    typename V::Ints sum[Tokens][1];
    EDGE_UNROLL for (int t = 0; t < Tokens; ++t) sum[t][0] = V::times(factor, q_sums[t * m.groups + group]);
    const int8_t* q = task.q + token * m.padded_columns + group * m.group_columns;
    V::template dot<Affine<Bits>>({stream.at, steps, 0, nullptr, 0, q, m.padded_columns}, sum);
    stream.at += steps * (kLine * Bits);
    if constexpr (shift > 0) {
      EDGE_UNROLL for (int t = 0; t < Tokens; ++t) {
        const typename V::Ints middle = V::spread(-middle_of(Bits) * q_sums[t * m.groups + group]);
        sum[t][0] = V::template shifted_add<shift>(sum[t][0], middle);
      }
    }
    const typename V::Floats scales = scales_of<V>(stream);
    EDGE_UNROLL for (int t = 0; t < Tokens; ++t) {
      const typename V::Floats both = V::mul(scales, V::all(q_scales[t * m.groups + group]));
      total[t] = V::add(total[t], V::mul(V::floats(sum[t][0]), both));
    }
  }
}

template <class V, uint32_t Bits, int Tokens>
void mixed_block_a8(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  MixedStream stream(task, tile);
  typename V::Floats total[Tokens];
  EDGE_UNROLL for (int t = 0; t < Tokens; ++t) total[t] = V::zero();
  mixed_groups_a8<V, Bits>(task, token, m.groups - m.high_groups, stream, total);
  mixed_groups_a8<V, high_bits_of(Bits)>(task, token, m.high_groups, stream, total);
  EDGE_UNROLL for (int t = 0; t < Tokens; ++t) store_tile<V>(task, tile, token + t, total[t]);
}

template <class V, uint32_t Bits, int Tokens>
EDGE_INLINE void mixed_groups_f32(const LinearTask& task, size_t token, size_t count, MixedStream& stream,
                                  FloatSums<V, Tokens>& sums) {
  const Geometry& m = task.matrix;
  for (size_t i = 0; i < count; ++i) {
    size_t column = stream.enter(i == 0) * m.group_columns;
    constexpr float spacing = 1 << shift_of(Bits);  // a power of two: taking it out of the integers rounds nothing
    const typename V::Floats scales = V::mul(scales_of<V>(stream), V::all(spacing));
    const typename V::Floats zeros =
        m.zero_points ? V::floats(V::bytes(stream.zero_points())) : V::all(middle_of(Bits) / spacing);
    for (size_t atoms = m.group_columns / kStep * Bits; atoms > 0; --atoms) {
      repeat<8 / Bits>([&](auto quad) __attribute__((always_inline)) {
        typename V::Floats values[4];
        dequantize_quad<V>(codes<V, Bits, decltype(quad)::value>(stream.at), zeros, scales, values);
        sums.add_quad(task, token, column, values);
        column += 4;
      });
      stream.at += kLine;
    }
  }
}

template <class V, uint32_t Bits, int Tokens>
void mixed_block_f32(const LinearTask& task, size_t tile, size_t token) {
  const Geometry& m = task.matrix;
  MixedStream stream(task, tile);
  FloatSums<V, Tokens> sums;
  mixed_groups_f32<V, Bits>(task, token, m.groups - m.high_groups, stream, sums);
  mixed_groups_f32<V, high_bits_of(Bits)>(task, token, m.high_groups, stream, sums);
  sums.store(task, tile, token);
}

template <class V, uint32_t Bits>
EDGE_INLINE void mixed_a8(const LinearTask& task, size_t first_tile, size_t end_tile) {
  const size_t token_bytes = task.matrix.padded_columns;
  tile_blocks<V::kMixedTokens>(task, token_bytes, first_tile, end_tile, [&](auto tokens, size_t tile, size_t token) {
    mixed_block_a8<V, Bits, decltype(tokens)::value>(task, tile, token);
  });
}

template <class V, uint32_t Bits>
EDGE_INLINE void mixed_f32(const LinearTask& task, size_t first_tile, size_t end_tile) {
  const size_t token_bytes = task.matrix.columns * sizeof(float);
  tile_blocks<V::kFloatTokens>(task, token_bytes, first_tile, end_tile, [&](auto tokens, size_t tile, size_t token) {
    mixed_block_f32<V, Bits, decltype(tokens)::value>(task, tile, token);
  });
}

}  // namespace
}  // namespace edge
