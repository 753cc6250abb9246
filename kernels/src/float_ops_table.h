// The table of one set of lanes: included by the file that has the flags for them.
#pragma once

#include "prologue.h"

namespace edge {
namespace {

template <class L>
constexpr FloatOps kTable = {prepare<L>, activate<L>};

}  // namespace
}  // namespace edge
