#include "portable.h"
#include "sparse_kernels.h"

namespace edge {
namespace {

struct SparsePortable : Portable {
  static constexpr bool kAhead = false;
  static constexpr int kBias = 0, kSparseTokens = 2, kMixedTokens = 2, kFloatTokens = 2;

  static Bytes rows_of(uint32_t bytes) {
    return each([&](size_t i) { return bytes >> 8 * (i % 4); });
  }
  static Bytes quad_of(const int8_t* q) { return rows_of(edge::load<uint32_t>(q)); }
  static Bytes lane_of(const int8_t* q) {
    return each([&](size_t i) { return q[i % 16]; });
  }
  static Bytes lowered(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return x.lane[i] - y.lane[i]; });
  }
  static Bytes joined(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return x.lane[i] | y.lane[i]; });
  }

  template <uint32_t Bits>
  static Ints signed_dot(const Ints& sum, const Bytes& activations, const Bytes& codes) {
    int32_t products[kLine];
    for (size_t i = 0; i < kLine; ++i) {
      products[i] = static_cast<int8_t>(activations.lane[i]) * static_cast<int8_t>(codes.lane[i]);
    }
    return add(sum, rows(products));
  }
};

}  // namespace
}  // namespace edge

EDGE_OTHER_KERNELS(portable, SparsePortable)
