// ARMv8.6's matrix products of int8 (i8mm): `usdot` and `usmmla` take values as unsigned bytes.
#pragma once

#include "neon_fields.h"
#include "neon_mmla.h"

namespace edge {
namespace {

struct Usdot {
  static constexpr bool kSigned = false;

  template <int Lane>
  static EDGE_INLINE int32x4_t add(int32x4_t sum, uint8x16_t values, int8x16_t q) {
    return vusdotq_laneq_s32(sum, values, q, Lane);
  }
};

struct NeonI8mm : Neon {
  template <class E>
  static constexpr int kTiles = 1;
  template <class E, int Tiles>
  static constexpr int kTokens = !E::kTables     ? 16
                                 : E::kOneLookup ? 8
                                                 : 4;
  template <class E>
  static constexpr int32_t kOffset = 0;

  template <class E, int Tokens>
  static EDGE_INLINE void dot(const Run& run, Ints (&sum)[Tokens][1]) {
    if constexpr (Tokens > 1) {
      mmla_run<E>(run, sum);
    } else if constexpr (Fields<E>::kInPlace) {
      dot_fields<Usdot, E>(run, sum[0][0]);
    } else {
      dot_run<Usdot, E>(run, sum);
    }
  }
};

}  // namespace
}  // namespace edge
