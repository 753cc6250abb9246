// edge_verify: what edge_check leaves out because it takes a look at every byte.
#include "sparse_tile.h"

namespace edge {
namespace {

bool checksum_matches(const edge_packed_header& header, const uint8_t* packed, size_t bytes) {
  const uint64_t position = offsetof(edge_packed_header, checksum) / 8;
  uint64_t sum = -(2 * position + 1) * header.checksum;  // takes the field itself out again
  for (uint64_t i = 0; i < bytes / 8; ++i) sum += (2 * i + 1) * load<uint64_t>(packed + 8 * i);
  return sum == header.checksum;
}

// The groups at fewer bits, ascending, and those at more bits, ascending, are all groups.
bool order_is_right(const Geometry& m, const uint8_t* order) {
  const size_t low_count = m.groups - m.high_groups;
  size_t low = 0, high = low_count;
  for (size_t group = 0; group < m.groups; ++group) {
    if (low < low_count && load<uint16_t>(order + 2 * low) == group) {
      ++low;
    } else if (high < m.groups && load<uint16_t>(order + 2 * high) == group) {
      ++high;
    } else {
      return false;
    }
  }
  return true;
}

// Blocks of group `group`: within it and ascending; one that fills up a unit repeats the one before.
bool indices_are_right(const Geometry& m, size_t group, const uint8_t* indices, size_t count) {
  const size_t first = group * m.group_columns / m.block_columns;
  const size_t end =
      smaller(first + m.group_columns / m.block_columns, (m.columns + m.block_columns - 1) / m.block_columns);
  const bool filled = m.bits == 4 && m.block_columns == 4;
  size_t next = first;
  for (size_t i = 0; i < count; ++i) {
    const size_t index = load<uint16_t>(indices + 2 * i);
    const bool fills = filled && i % 2 == 1 && i + 1 == count && index + 1 == next;
    if ((index < next && !fills) || index >= end) return false;
    next = index + 1;
  }
  return true;
}

bool tile_is_right(const Geometry& m, const SparseTile& tile) {
  const uint8_t* indices = tile.indices;
  for (size_t group = 0; group < m.groups; ++group) {
    const size_t count = load<uint16_t>(tile.counts + 2 * group);
    if (!indices_are_right(m, group, indices, count)) return false;
    indices += 2 * count;
  }
  return true;
}

// Tiles follow each other from the table of offsets to the blob's end.
bool blocks_are_right(const Geometry& m, const uint8_t* payload) {
  if (load<uint32_t>(payload) * uint64_t{kLine} != m.prefix_bytes) return false;
  if (load<uint32_t>(payload + 4 * m.tiles) * uint64_t{kLine} != m.payload_bytes) return false;
  for (size_t tile = 0; tile < m.tiles; ++tile) {
    SparseTile found;
    if (!find_sparse_tile(m, payload, tile, &found) || !tile_is_right(m, found)) return false;
  }
  return true;
}

bool numbers_are_right(const Geometry& m, const uint8_t* payload) {
  if (m.block_columns) return blocks_are_right(m, payload);
  if (m.encoding != EDGE_GROUP_MIXED) return true;
  for (size_t tile = 0; tile < m.tiles; ++tile) {
    if (!order_is_right(m, payload + m.prefix_bytes + tile * m.tile_bytes)) return false;
  }
  return true;
}

}  // namespace
}  // namespace edge

extern "C" edge_status edge_verify(const void* packed, size_t packed_bytes) {
  edge_packed_header header;
  const edge_status status = edge_check(packed, packed_bytes, &header);
  if (status != EDGE_OK) return status;
  const uint8_t* bytes = static_cast<const uint8_t*>(packed);
  if (!edge::checksum_matches(header, bytes, packed_bytes)) return EDGE_BAD_CHECKSUM;
  const bool right = edge::numbers_are_right(edge::geometry_of(header), bytes + sizeof(header));
  return right ? EDGE_OK : EDGE_BAD_HEADER;
}
