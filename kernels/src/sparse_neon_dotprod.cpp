#include "neon_dotprod.h"
#include "sparse_kernels.h"

namespace edge {
namespace {

struct SparseNeonDotprod : NeonDotprod {
  static constexpr bool kAhead = true;
  static constexpr int kBias = 0, kSparseTokens = 4, kMixedTokens = 8;

  static EDGE_INLINE Bytes repeated(uint8x16_t quarter) {
    return make<Bytes>([&](int) { return quarter; });
  }
  static EDGE_INLINE Bytes rows_of(uint32_t bytes) { return repeated(vreinterpretq_u8_u32(vdupq_n_u32(bytes))); }
  static EDGE_INLINE Bytes quad_of(const int8_t* q) { return rows_of(edge::load<uint32_t>(q)); }
  static EDGE_INLINE Bytes lane_of(const int8_t* q) { return repeated(vreinterpretq_u8_s8(vld1q_s8(q))); }
  static EDGE_INLINE Bytes lowered(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return vsubq_u8(x.quarter[r], y.quarter[r]); });
  }
  static EDGE_INLINE Bytes joined(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return vorrq_u8(x.quarter[r], y.quarter[r]); });
  }
  template <uint32_t Bits>
  static EDGE_INLINE Ints signed_dot(const Ints& sum, const Bytes& activations, const Bytes& codes) {
    return make<Ints>([&](int r) {
      return vdotq_s32(sum.quarter[r], vreinterpretq_s8_u8(activations.quarter[r]),
                       vreinterpretq_s8_u8(codes.quarter[r]));
    });
  }
};

}  // namespace
}  // namespace edge

EDGE_OTHER_KERNELS(neon_dotprod, SparseNeonDotprod)
