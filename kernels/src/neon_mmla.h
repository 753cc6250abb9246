// Products of a run of steps for pairs of tokens, by the instruction that multiplies 2 rows x 8 columns by 8 columns x
// 2 tokens.
#pragma once

#include "neon_dot.h"

namespace edge {
namespace {

// Pairs of tokens take turns, 8 columns each: what one multiplication wants in a register.
template <int Tokens>
EDGE_INLINE void interleave(const int8_t* q, size_t q_stride, size_t columns, int8_t* to) {
  for (size_t column = 0; column < columns; column += 16) {
    EDGE_UNROLL for (int i = 0; i < Tokens; i += 2, to += 32) {
      const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(q + i * q_stride + column));
      const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(q + (i + 1) * q_stride + column));
      vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
      vst1q_s8(to + 16, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    }
  }
}

// Integer sums of 4 rows and pairs of tokens: a register is 2 rows x 2 tokens.
template <int Planes, int Tokens>
struct PairSums {
  int32x4_t rows[Planes][Tokens / 2][2];

  EDGE_INLINE PairSums(const Neon::Ints (&sum)[Tokens][1], size_t r) {
    EDGE_UNROLL for (int p = 0; p < Tokens / 2; ++p) {
      const int32x4_t a = sum[2 * p][0].quarter[r], b = sum[2 * p + 1][0].quarter[r];
      rows[0][p][0] = vzip1q_s32(a, b);
      rows[0][p][1] = vzip2q_s32(a, b);
      if constexpr (Planes == 2) rows[1][p][0] = rows[1][p][1] = vdupq_n_s32(0);
    }
  }

  EDGE_INLINE void store(Neon::Ints (&sum)[Tokens][1], size_t r) const {
    EDGE_UNROLL for (int p = 0; p < Tokens / 2; ++p) {
      int32x4_t low = rows[0][p][0], high = rows[0][p][1];
      if constexpr (Planes == 2) {
        low = vaddq_s32(low, vshlq_n_s32(rows[1][p][0], 8));
        high = vaddq_s32(high, vshlq_n_s32(rows[1][p][1], 8));
      }
      sum[2 * p][0].quarter[r] = vuzp1q_s32(low, high);
      sum[2 * p + 1][0].quarter[r] = vuzp2q_s32(low, high);
    }
  }
};

template <class E, int Tokens>
EDGE_INLINE void mmla_step(const uint8_t* at, const uint8_t* table, const int8_t* pairs,
                           PairSums<E::kPlanes, Tokens>& sums) {
  repeat<E::kQuads / 2 * E::kPlanes>([&](auto index) __attribute__((always_inline)) {
    constexpr int eight = decltype(index)::value / E::kPlanes, plane = decltype(index)::value % E::kPlanes;
    const uint32x4_t x = vreinterpretq_u32_u8(E::template quad<NeonQuarter, 2 * eight, plane, false>(at, table));
    const uint32x4_t y = vreinterpretq_u32_u8(E::template quad<NeonQuarter, 2 * eight + 1, plane, false>(at, table));
    const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(x, y)), high = vreinterpretq_u8_u32(vzip2q_u32(x, y));
    EDGE_UNROLL for (int p = 0; p < Tokens / 2; ++p) {
      const int8x16_t a = vld1q_s8(pairs + (eight / 2 * Tokens + 2 * p + eight % 2) * 16);
      int32x4_t(&rows)[2] = sums.rows[plane][p];
      rows[0] = vusmmlaq_s32(rows[0], low, a);
      rows[1] = vusmmlaq_s32(rows[1], high, a);
    }
  });
}

template <class E, int Tokens>
EDGE_INLINE void mmla_run(const Run& run, Neon::Ints (&sum)[Tokens][1]) {
  constexpr size_t limit = kRunColumns / E::kColumns;
  for (size_t from = 0; from < run.steps; from += limit) {
    const size_t steps = smaller(limit, run.steps - from);
    alignas(16) int8_t pairs[Tokens * kRunColumns];
    interleave<Tokens>(run.q + from * E::kColumns, run.q_stride, steps * E::kColumns, pairs);
    for (size_t r = 0; r < 4; ++r) {
      PairSums<E::kPlanes, Tokens> sums(sum, r);
      const uint8_t* at = run.at + from * kLine * E::kBits + kQuarter * r;
      for (size_t step = 0; step < steps; ++step, at += kLine * E::kBits) {
        mmla_step<E, Tokens>(at, table_of<E>(run, r), pairs + step * E::kColumns * Tokens, sums);
      }
      sums.store(sum, r);
    }
  }
}

}  // namespace
}  // namespace edge
