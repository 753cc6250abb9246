// ARMv8.2 with dotprod: `sdot` takes signed bytes.
#pragma once

#include "neon_fields.h"

namespace edge {
namespace {

struct Sdot {
  static constexpr bool kSigned = true;

  template <int Lane>
  static EDGE_INLINE int32x4_t add(int32x4_t sum, uint8x16_t values, int8x16_t q) {
    return vdotq_laneq_s32(sum, vreinterpretq_s8_u8(values), q, Lane);
  }
};

struct NeonDotprod : Neon {
  template <class E>
  static constexpr int kTiles = 1;
  template <class E, int Tiles>
  static constexpr int kTokens = E::kOneLookup ? 8 : 4;
  template <class E>
  static constexpr int32_t kOffset = !kFlip<Sdot, E>   ? 0
                                     : E::kPlanes == 2 ? 128 * 256 + 128
                                                       : 128;

  template <class E, int Tokens>
  static EDGE_INLINE void dot(const Run& run, Ints (&sum)[Tokens][1]) {
    if constexpr (Tokens == 1 && Fields<E>::kInPlace) {
      dot_fields<Sdot, E>(run, sum[0][0]);
    } else {
      dot_run<Sdot, E>(run, sum);
    }
  }
};

}  // namespace
}  // namespace edge
