#include "float_ops_table.h"
#include "lanes_avx512.h"

namespace edge {

const FloatOps kFloatOpsAvx512 = kTable<Avx512Lanes>;

}  // namespace edge
