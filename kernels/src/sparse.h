// What the sparse kernels have in common. Their grid is symmetric, so codes go into products as signed bytes, and what
// `V` brings is (beyond dense.h)
//
//   kBias                     what an instruction set needs added to activations that it takes as unsigned bytes, or 0
//   quad_of(q)                4 activations + kBias, the same for every row
//   lane_of(q)                16 activations + kBias in every 16-byte lane
//   rows_of(n)                the same 4 bytes for every row
//   lowered(x, y), joined(x, y)   byte by byte: x - y, x | y
//   signed_dot<Bits>(sum, a, codes)   adds to each row the products of its 4 activations + kBias and 4 signed codes
//   kAhead                    whether unneeded products are cheaper than mispredicted branches
//   kSparseTokens, kFloatTokens   tokens of a block with int8 and with float activations
#pragma once

#include "tokens.h"

namespace edge {
namespace {

template <class V>
EDGE_INLINE typename V::Bytes bytes_of(uint8_t value) {
  return V::rows_of(value * 0x01010101u);
}

template <class V, uint32_t Bits>
EDGE_INLINE typename V::Bytes signed_codes(typename V::Bytes codes) {
  if constexpr (Bits == 8) return V::flipped(codes);
  return V::lowered(codes, bytes_of<V>(1 << (Bits - 1)));
}

// Integer sums of one group and some tokens. Those of the bias are the same for all tokens.
template <class V, int Tokens>
struct SignedSums {
  typename V::Ints sum[Tokens];
  typename V::Ints bias;

  EDGE_INLINE SignedSums() : bias(V::no_ints()) { EDGE_UNROLL for (int i = 0; i < Tokens; ++i) sum[i] = V::no_ints(); }

  template <uint32_t Bits>
  EDGE_INLINE void count(typename V::Bytes codes) {
    if constexpr (V::kBias != 0) bias = V::template signed_dot<Bits>(bias, bytes_of<V>(V::kBias), codes);
  }
  template <uint32_t Bits>
  EDGE_INLINE void add(int token, typename V::Bytes activations, typename V::Bytes codes) {
    sum[token] = V::template signed_dot<Bits>(sum[token], activations, codes);
  }
  EDGE_INLINE void add_to(typename V::Floats (&total)[Tokens], typename V::Floats scales, const float* q_scales,
                          size_t stride) const {
    EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
      const typename V::Floats both = V::mul(scales, V::all(q_scales[i * stride]));
      total[i] = V::add(total[i], V::mul(V::floats(V::minus(sum[i], bias)), both));
    }
  }
};

}  // namespace
}  // namespace edge
