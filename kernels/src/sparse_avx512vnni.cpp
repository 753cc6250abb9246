#include "avx512vnni.h"
#include "sparse_kernels.h"

namespace edge {
namespace {

struct SparseAvx512Vnni : Avx512Vnni {
  static constexpr bool kAhead = true;
  static constexpr int kBias = 128, kSparseTokens = 8, kMixedTokens = 8;

  static EDGE_INLINE Bytes rows_of(uint32_t bytes) { return _mm512_set1_epi32(static_cast<int32_t>(bytes)); }
  static EDGE_INLINE Bytes quad_of(const int8_t* q) { return flipped(rows_of(edge::load<uint32_t>(q))); }
  static EDGE_INLINE Bytes lane_of(const int8_t* q) {
    return flipped(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q))));
  }
  static EDGE_INLINE Bytes lowered(Bytes x, Bytes y) { return _mm512_sub_epi8(x, y); }
  static EDGE_INLINE Bytes joined(Bytes x, Bytes y) { return _mm512_or_si512(x, y); }

  template <uint32_t Bits>
  static EDGE_INLINE Ints signed_dot(Ints sum, Bytes activations, Bytes codes) {
    return _mm512_dpbusd_epi32(sum, activations, codes);
  }
};

}  // namespace
}  // namespace edge

EDGE_OTHER_KERNELS(avx512vnni, SparseAvx512Vnni)
