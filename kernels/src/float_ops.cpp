#include "float_ops.h"

namespace edge {

const FloatOps& float_ops(edge_isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case EDGE_AVX2:
      return kFloatOpsAvx2;
    case EDGE_AVX512VNNI:
      return kFloatOpsAvx512;
#elif defined(__aarch64__)
    case EDGE_NEON_DOTPROD:
    case EDGE_NEON_I8MM:
      return kFloatOpsNeon;
#endif
    default:
      return kFloatOpsPortable;
  }
}

}  // namespace edge
