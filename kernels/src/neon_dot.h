// Products of a run of steps by instructions that multiply 4 rows x 4 columns by 4 activations of one token. `M` is
// that instruction: kSigned, when it takes values as signed bytes, and add<Lane>(sum, values, q), where quad `Lane` of
// the 16 activations q is meant.
#pragma once

#include "neon.h"

namespace edge {
namespace {

constexpr size_t kRunColumns = 256;  // of several tokens and a quarter of a tile: they stay in the first-level cache

// The compiler does what makes these values before what follows: left alone, it starts on all quarters of a step at
// once, and runs out of registers.
template <class Register, int Count>
EDGE_INLINE void in_order(Register (&values)[Count]) {
  EDGE_UNROLL for (int i = 0; i < Count; ++i) __asm__ volatile("" : "+w"(values[i]));
}

// Signed bytes: what needs all 8 bits goes in with the top one inverted.
template <class M, class E>
constexpr bool kFlip = M::kSigned && (E::kTables || E::kBits == 8);

// High bytes have their own sums; so have odd quads where there are few sums to hide the latency.
template <class E, int Tokens>
constexpr int kSums = E::kPlanes == 2 || Tokens == 1 ? 2 : 1;

template <class E>
EDGE_INLINE const uint8_t* table_of(const Run& run, size_t quarter) {
  return E::kTables ? run.table + kQuarter * quarter : nullptr;
}

template <class M, class E, int Tokens>
EDGE_INLINE void dot_step(const uint8_t* at, const uint8_t* table, const int8_t* q, size_t q_stride,
                          int32x4_t (&sum)[Tokens][kSums<E, Tokens>]) {
  repeat<E::kQuads / 4>([&](auto index) __attribute__((always_inline)) {
    constexpr int four = decltype(index)::value;
    int8x16_t a[Tokens];
    EDGE_UNROLL for (int i = 0; i < Tokens; ++i) a[i] = vld1q_s8(q + i * q_stride + 16 * four);
    repeat<4 * E::kPlanes>([&](auto item) __attribute__((always_inline)) {
      constexpr int lane = decltype(item)::value / E::kPlanes, plane = decltype(item)::value % E::kPlanes;
      constexpr int into = E::kPlanes == 2 ? plane : lane % kSums<E, Tokens>;
      const uint8x16_t values = E::template quad<NeonQuarter, 4 * four + lane, plane, kFlip<M, E>>(at, table);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) sum[i][into] = M::template add<lane>(sum[i][into], values, a[i]);
    });
  });
}

template <class E, int Tokens>
EDGE_INLINE int32x4_t joined(const int32x4_t (&sum)[kSums<E, Tokens>]) {
  if constexpr (E::kPlanes == 2) return vaddq_s32(sum[0], vshlq_n_s32(sum[1], 8));
  if constexpr (kSums<E, Tokens> == 2) return vaddq_s32(sum[0], sum[1]);
  return sum[0];
}

// Several tokens: quarter after quarter, with the sums of one in registers.
template <class M, class E, int Tokens>
EDGE_INLINE void dot_run(const Run& run, Neon::Ints (&sum)[Tokens][1]) {
  constexpr size_t limit = kRunColumns / E::kColumns;
  for (size_t from = 0; from < run.steps; from += limit) {
    const size_t steps = smaller(limit, run.steps - from);
    for (size_t r = 0; r < 4; ++r) {
      int32x4_t part[Tokens][kSums<E, Tokens>];
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        part[i][0] = sum[i][0].quarter[r];
        if constexpr (kSums<E, Tokens> == 2) part[i][1] = vdupq_n_s32(0);
      }
      const uint8_t* at = run.at + from * kLine * E::kBits + kQuarter * r;
      const int8_t* q = run.q + from * E::kColumns;
      for (size_t step = 0; step < steps; ++step, at += kLine * E::kBits, q += E::kColumns) {
        dot_step<M, E, Tokens>(at, table_of<E>(run, r), q, run.q_stride, part);
      }
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) sum[i][0].quarter[r] = joined<E, Tokens>(part[i]);
    }
  }
}

// One token: the stream is read from front to back, once.
template <class M, class E>
EDGE_INLINE void dot_run(const Run& run, Neon::Ints (&sum)[1][1]) {
  int32x4_t part[4][1][2];
  EDGE_UNROLL for (int r = 0; r < 4; ++r) {
    part[r][0][0] = sum[0][0].quarter[r];
    part[r][0][1] = vdupq_n_s32(0);
  }
  const uint8_t* at = run.at;
  const int8_t* q = run.q;
  for (size_t step = 0; step < run.steps; ++step, at += kLine * E::kBits, q += E::kColumns) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      dot_step<M, E, 1>(at + kQuarter * r, table_of<E>(run, r), q, 0, part[r]);
      in_order(part[r][0]);
    }
  }
  EDGE_UNROLL for (int r = 0; r < 4; ++r) sum[0][0].quarter[r] = joined<E, 1>(part[r][0]);
}

}  // namespace
}  // namespace edge
