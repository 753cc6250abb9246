#include "float_ops_table.h"
#include "lanes_neon.h"

namespace edge {

const FloatOps kFloatOpsNeon = kTable<NeonLanes>;

}  // namespace edge
