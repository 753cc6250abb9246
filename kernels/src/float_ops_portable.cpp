#include "float_ops_table.h"
#include "lanes_portable.h"

namespace edge {

const FloatOps kFloatOpsPortable = kTable<PortableLanes>;

}  // namespace edge
