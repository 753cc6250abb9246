#include "float_ops_table.h"
#include "lanes_avx2.h"

namespace edge {

const FloatOps kFloatOpsAvx2 = kTable<Avx2Lanes>;

}  // namespace edge
