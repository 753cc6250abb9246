// The packed format's arithmetic: sizes from the header, and one code out of a step. The diagrams are in
// edge_kernels.h.
#pragma once

#include "edge_kernels.h"
#include "support.h"

namespace edge {

constexpr size_t kLine = 64;  // bytes of an atom, a line of a table, the scales of a pair of groups
constexpr size_t kRows = EDGE_TILE_ROWS;
constexpr size_t kStep = EDGE_STEP_COLUMNS;
constexpr size_t kScaleBytes = 2 * kRows;  // of one group in one tile

// EDGE_GROUP_MIXED: bits of the groups at more bits.
constexpr uint32_t high_bits_of(uint32_t bits) {
  return bits == 1 ? 8 : 4;
}

// Its symmetric grids: value = scale * ((code << shift) - middle). Binary weights are 32 steps of the grid at 8 bits,
// up or down.
constexpr int shift_of(uint32_t bits) {
  return bits == 1 ? 6 : 0;
}
constexpr int middle_of(uint32_t bits) {
  return bits == 1 ? 32 : 1 << (bits - 1);
}

// EDGE_CODEBOOK, tables of single rows: a table of 2 entries takes the place of one of 4.
constexpr uint32_t slot_bits(uint32_t bits) {
  return bits == 1 ? 2 : bits;
}

// Sizes that follow from a checked header. What an encoding doesn't have is 0.
struct Geometry {
  uint32_t encoding, bits, dim, pattern, grid, scale, entry;  // as in the header
  size_t rows, columns;
  size_t padded_columns;
  size_t group_columns;  // of every group but the last
  size_t groups, tiles;
  size_t sum_columns, sums;  // columns behind each of the sums of activations that a kernel wants, and their number
  size_t step_columns, step_bytes;
  size_t head_bytes;       // scales and zero points before each pair of groups
  size_t prefix_bytes;     // between the header and the first tile
  size_t row_scale_bytes;  // at the start of a tile, or after its order
  size_t plane_bytes;      // of a table: the entries' low bytes, say
  size_t table_bytes;      // all planes of a table
  size_t table_groups;     // a table of the stream serves so many groups; 0 when the table is the prefix
  size_t block_columns;    // EDGE_16X8, EDGE_16X4: width of a block
  size_t high_groups;      // EDGE_GROUP_MIXED: groups at more bits, the last of the stream
  size_t order_bytes;      // EDGE_GROUP_MIXED: at the start of a tile
  uint64_t tile_bytes;     // 0 when tiles differ in size (EDGE_16X8, EDGE_16X4)
  uint64_t payload_bytes;  // all that follows the header: payload_bytes / tiles is what a tile costs on average
  bool zero_points, row_tables;

  EDGE_INLINE size_t columns_of(size_t group) const {
    return smaller(group_columns, padded_columns - group * group_columns);
  }
};

Geometry geometry_of(const edge_packed_header& header);

EDGE_INLINE uint64_t rounded_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Code in byte `lane` (4 * row + column % 4) of quad `quad` of the step that starts at `step`.
template <uint32_t Bits>
EDGE_INLINE uint8_t code_in_lane(const uint8_t* step, size_t quad, size_t lane) {
  if constexpr (Bits == 8) return step[64 * quad + lane];
  if constexpr (Bits == 1) return (step[lane] >> quad) & 1;
  if constexpr (Bits == 4) return (step[64 * (quad / 2) + lane] >> (4 * (quad & 1))) & 15;
  const uint8_t low = (step[64 * (quad / 4) + lane] >> (2 * (quad & 3))) & 3;
  if constexpr (Bits == 2) return low;
  return low | ((step[128 + lane] >> quad) & 1) << 2;
}

// Code of `row` (0-15) and `column` (0-31) in the step that starts at `step`.
template <uint32_t Bits>
EDGE_INLINE uint8_t code_at(const uint8_t* step, size_t row, size_t column) {
  return code_in_lane<Bits>(step, column / 4, 4 * row + column % 4);
}

}  // namespace edge
