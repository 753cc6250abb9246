// The table of one set of lanes: included by the file that has the flags for them.
#pragma once

#include "attention_block.h"
#include "prologue.h"

namespace edge {
namespace {

template <class L>
constexpr FloatOps kTable = {
    prepare<L>,
    activate<L>,
    {append<L, float>, append<L, Half>, append<L, int8_t>},
    {attend<L, float>, attend<L, Half>, attend<L, int8_t>},
};

}  // namespace
}  // namespace edge
