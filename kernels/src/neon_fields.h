// One token times matrices of 2 and 3 bits: the products of a byte's fields where they stand, without shifting most of
// them down. Fields that stand 2^n too high have sums of their own, which come down by exact shifts at the end of a
// run.
#pragma once

#include "neon_dot.h"

namespace edge {
namespace {

template <class E>
struct Fields {
  static constexpr bool kInPlace = false;
};

template <>
struct Fields<Affine<2>> {
  static constexpr bool kInPlace = true;
  static constexpr int kSums = 3;

  // The top field would be negative as a signed byte, so it is shifted.
  template <class M>
  static EDGE_INLINE void atom(uint8x16_t codes, int8x16_t q, int32x4_t (&sum)[kSums]) {
    sum[0] = M::template add<0>(sum[0], NeonQuarter::field<0, 0x03>(codes), q);
    sum[1] = M::template add<1>(sum[1], NeonQuarter::field<0, 0x0c>(codes), q);
    sum[2] = M::template add<2>(sum[2], NeonQuarter::field<0, 0x30>(codes), q);
    sum[0] = M::template add<3>(sum[0], NeonQuarter::field<6, 0x03>(codes), q);
  }
  template <class M>
  static EDGE_INLINE void step(const uint8_t* at, int8x16_t q0, int8x16_t q1, int32x4_t (&sum)[kSums]) {
    uint8x16_t codes[2] = {vld1q_u8(at), vld1q_u8(at + kLine)};
    in_order(codes);
    atom<M>(codes[0], q0, sum);
    atom<M>(codes[1], q1, sum);
  }
  static EDGE_INLINE int32x4_t total(const int32x4_t (&sum)[kSums]) {
    return vsraq_n_s32(vsraq_n_s32(sum[0], sum[1], 2), sum[2], 4);
  }
};

template <>
struct Fields<Affine<3>> {
  static constexpr bool kInPlace = true;
  static constexpr int kSums = 2;

  // Pairs of codes, j in the low nibble and j + 4 in the high one: their low bits from the first two atoms, bit 2 (and
  // a bit that is nobody's, masked off) from the third.
  template <class M, int J>
  static EDGE_INLINE void pair(uint8x16_t low, uint8x16_t high, int8x16_t q0, int8x16_t q1, int32x4_t (&sum)[kSums]) {
    const uint8x16_t both = vbslq_u8(vdupq_n_u8(0x33), low, NeonQuarter::shifted<J - 2>(high));
    sum[0] = M::template add<J>(sum[0], NeonQuarter::field<0, 0x07>(both), q0);
    sum[1] = M::template add<J>(sum[1], NeonQuarter::field<0, 0x70>(both), q1);
  }
  template <class M>
  static EDGE_INLINE void step(const uint8_t* at, int8x16_t q0, int8x16_t q1, int32x4_t (&sum)[kSums]) {
    uint8x16_t codes[3] = {vld1q_u8(at), vld1q_u8(at + kLine), vld1q_u8(at + 2 * kLine)};
    in_order(codes);
    const uint8x16_t low = vsliq_n_u8(codes[0], codes[1], 4);   // quads 0, 1, 4, 5
    const uint8x16_t high = vsriq_n_u8(codes[1], codes[0], 4);  // quads 2, 3, 6, 7
    pair<M, 0>(low, codes[2], q0, q1, sum);
    pair<M, 1>(NeonQuarter::shifted<2>(low), codes[2], q0, q1, sum);
    pair<M, 2>(high, codes[2], q0, q1, sum);
    pair<M, 3>(NeonQuarter::shifted<2>(high), codes[2], q0, q1, sum);
  }
  static EDGE_INLINE int32x4_t total(const int32x4_t (&sum)[kSums]) { return vsraq_n_s32(sum[0], sum[1], 4); }
};

template <class M, class E>
EDGE_INLINE void dot_fields(const Run& run, Neon::Ints& sum) {
  using F = Fields<E>;
  int32x4_t part[4][F::kSums];
  EDGE_UNROLL for (int r = 0; r < 4; ++r) {
    part[r][0] = sum.quarter[r];
    EDGE_UNROLL for (int i = 1; i < F::kSums; ++i) part[r][i] = vdupq_n_s32(0);
  }
  const uint8_t* at = run.at;
  const int8_t* q = run.q;
  for (size_t step = 0; step < run.steps; ++step, at += kLine * E::kBits, q += kStep) {
    const int8x16_t q0 = vld1q_s8(q), q1 = vld1q_s8(q + 16);
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      F::template step<M>(at + kQuarter * r, q0, q1, part[r]);
      in_order(part[r]);
    }
  }
  EDGE_UNROLL for (int r = 0; r < 4; ++r) sum.quarter[r] = F::total(part[r]);
}

}  // namespace
}  // namespace edge
