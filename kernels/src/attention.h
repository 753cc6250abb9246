// One call of edge_attention, checked, as the parts that each instruction set has get it.
#pragma once

#include "edge_kernels.h"
#include "support.h"

namespace edge {

constexpr size_t kTilePositions = 16;
constexpr size_t kMaxHeadDim = 512;
constexpr size_t kRowBlock = 6;             // rows that share what is loaded of keys and values
constexpr size_t kMaxRows = 8 * kRowBlock;  // of a block
constexpr size_t kMaxTableHeadDim = 256, kMaxOutliers = 4;
constexpr size_t kTableScratch = kTilePositions + kRowBlock;  // times the width: a tile and a block of queries

// Keys, or values, of EDGE_CACHE_TABLE.
struct TableSide {
  size_t bits, code_bytes, tile_bytes, first_bytes, head_bytes;

  // After the codes of a tile; `scales` only of values.
  EDGE_INLINE static size_t scale_bytes(bool values) { return values ? 2 * kTilePositions * sizeof(Half) : 0; }
  EDGE_INLINE uint8_t* tile(void* cache, size_t kv_head, size_t tile) const {
    uint8_t* head = static_cast<uint8_t*>(cache) + kv_head * head_bytes;
    return tile ? head + first_bytes + (tile - 1) * tile_bytes : head;
  }
};

// A row is a query: token row / group, head kv_head * group + row % group.
struct AttentionTask {
  edge_attention_task call;
  size_t tokens, group;    // query heads of a key and value head
  size_t head_dim, width;  // width: rounded up to 16
  size_t tiles, tile_bytes;
  TableSide key_side, value_side;    // of EDGE_CACHE_TABLE
  const float *lane_cos, *lane_sin;  // the first 16 rows of both tables, transposed: [rotary_dim / 2][16]

  EDGE_INLINE size_t position_of(size_t row) const { return static_cast<size_t>(call.position) + row / group; }
  // First position that a row sees.
  EDGE_INLINE size_t start_of(size_t row) const {
    const size_t window = static_cast<size_t>(call.window), end = position_of(row) + 1;
    return window && window < end ? end - window : 0;
  }
  EDGE_INLINE size_t end_of(size_t row) const { return position_of(row) + 1; }
  EDGE_INLINE size_t first_tile_of(size_t row) const { return start_of(row) / kTilePositions; }
  // Scores of a row of a block that begins with row `first` and ends before row `end`.
  EDGE_INLINE size_t score_stride(size_t first, size_t end) const {
    return (position_of(end - 1) / kTilePositions + 1 - first_tile_of(first)) * kTilePositions;
  }
  EDGE_INLINE uint8_t* key_tile(size_t kv_head, size_t tile) const {
    return static_cast<uint8_t*>(call.keys) + (kv_head * tiles + tile) * tile_bytes;
  }
  EDGE_INLINE uint8_t* value_tile(size_t kv_head, size_t tile) const {
    return static_cast<uint8_t*>(call.values) + (kv_head * tiles + tile) * tile_bytes;
  }
  // The scales of an int8 tile.
  EDGE_INLINE float* scales_of(uint8_t* tile) const { return reinterpret_cast<float*>(tile + kTilePositions * width); }
};

}  // namespace edge
