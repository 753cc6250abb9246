#include "avx2.h"
#include "sparse_kernels.h"

namespace edge {
namespace {

struct SparseAvx2 : Avx2 {
  static constexpr bool kAhead = true;
  static constexpr int kBias = 0, kSparseTokens = 4, kMixedTokens = 4;

  static EDGE_INLINE Bytes rows_of(uint32_t bytes) { return spread(static_cast<int32_t>(bytes)); }
  static EDGE_INLINE Bytes quad_of(const int8_t* q) { return rows_of(edge::load<uint32_t>(q)); }
  static EDGE_INLINE Bytes lane_of(const int8_t* q) {
    const __m128i lane = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    return make<Bytes>([&](int) { return _mm256_broadcastsi128_si256(lane); });
  }
  static EDGE_INLINE Bytes lowered(Bytes x, Bytes y) {
    return make<Bytes>([&](int h) { return _mm256_sub_epi8(x.half[h], y.half[h]); });
  }
  static EDGE_INLINE Bytes joined(Bytes x, Bytes y) { return either(x, y); }

  // The activation takes the code's sign, so that one factor is unsigned: 128 * 127 * 2 stays within 16 bits.
  template <uint32_t Bits>
  static EDGE_INLINE Ints signed_dot(Ints sum, Bytes activations, Bytes codes) {
    EDGE_UNROLL for (int h = 0; h < 2; ++h) {
      const __m256i signs = _mm256_sign_epi8(activations.half[h], codes.half[h]);
      add_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(codes.half[h]), signs), sum.half[h]);
    }
    return sum;
  }
};

}  // namespace
}  // namespace edge

EDGE_OTHER_KERNELS(avx2, SparseAvx2)
