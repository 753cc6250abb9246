#include "neon_i8mm.h"
#include "sparse_kernels.h"

namespace edge {
namespace {

struct MixedNeonI8mm : NeonI8mm {
  static constexpr int kMixedTokens = 8;
};

}  // namespace
}  // namespace edge

EDGE_OTHER_KERNEL(mixed1_a8_neon_i8mm, (mixed_a8<MixedNeonI8mm, 1>))
EDGE_OTHER_KERNEL(mixed2_a8_neon_i8mm, (mixed_a8<MixedNeonI8mm, 2>))
