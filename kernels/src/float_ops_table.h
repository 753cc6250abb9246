// The table of one set of lanes: included by the file that has the flags for them.
#pragma once

#include "attention_block.h"
#include "prologue.h"
#include "table_block.h"

namespace edge {
namespace {

template <class L>
constexpr FloatOps kTable = {
    prepare<L>,
    activate<L>,
    {append<L, float>, append<L, Half>, append<L, int8_t>, append_table<L>},
    {attend<L, float>, attend<L, Half>, attend<L, int8_t>, attend_table<L>},
};

}  // namespace
}  // namespace edge
