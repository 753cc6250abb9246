// The groups of one tile of a group-mixed matrix, as they follow each other.
#pragma once

#include "task.h"

namespace edge {
namespace {

// Nothing that the tile says leads outside of the blob or the activations.
struct MixedStream {
  const Geometry& m;
  const uint8_t* order;
  const uint8_t* head;
  const uint8_t* at;                 // after `enter`: the steps of the group; the caller moves it past them
  const Half* row_scales = nullptr;  // with second-order scales
  size_t half = 1;

  EDGE_INLINE MixedStream(const LinearTask& task, size_t tile)
      : m(task.matrix), order(task.tiles + tile * m.tile_bytes), head(order), at(order + m.order_bytes) {
    if (m.row_scale_bytes) row_scales = reinterpret_cast<const Half*>(at);
    at += m.row_scale_bytes;
  }

  // Returns the next group. `first`: of those with as many bits.
  EDGE_INLINE size_t enter(bool first) {
    half = first ? 0 : 1 - half;
    if (half == 0) {
      head = at;
      at += m.head_bytes;
    }
    const size_t group = load<uint16_t>(order);
    order += sizeof(uint16_t);
    return smaller(group, m.groups - 1);
  }

  EDGE_INLINE const uint8_t* scales() const { return head + half * (row_scales ? kRows : kScaleBytes); }
  EDGE_INLINE const uint8_t* zero_points() const {
    return head + 2 * (row_scales ? kRows : kScaleBytes) + half * kRows;
  }
};

}  // namespace
}  // namespace edge
