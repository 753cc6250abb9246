#include "sparse_tile.h"

namespace edge {
namespace {

struct Numbers {
  uint64_t sum;
  uint16_t largest, any_bits;
};

Numbers look_at(const uint8_t* numbers, size_t count) {
  Numbers all = {};
  for (size_t i = 0; i < count; ++i) {
    const uint16_t number = load<uint16_t>(numbers + 2 * i);
    all.sum += number;
    all.largest = number > all.largest ? number : all.largest;
    all.any_bits |= number;
  }
  return all;
}

}  // namespace

bool find_sparse_tile(const Geometry& m, const uint8_t* prefix, size_t tile, SparseTile* found) {
  const uint64_t start = load<uint32_t>(prefix + 4 * tile) * uint64_t{kLine};
  const uint64_t end = load<uint32_t>(prefix + 4 * tile + 4) * uint64_t{kLine};
  if (start < m.prefix_bytes || end > m.payload_bytes || start > end || end - start < 2 * m.groups) return false;
  const Numbers counts = look_at(prefix + start, m.groups);
  const size_t per_unit = m.bits == 4 && m.block_columns == 4 ? 2 : 1;
  if (counts.largest > m.group_columns / m.block_columns || counts.any_bits % per_unit != 0) return false;
  const uint64_t numbers = rounded_up(2 * (m.groups + counts.sum), kLine);
  const uint64_t heads = (m.groups + 1) / 2 * m.head_bytes;
  const uint64_t values = counts.sum * m.block_columns * kRows * m.bits / 8;
  if (numbers + heads + values != end - start) return false;
  found->counts = prefix + start;
  found->indices = found->counts + 2 * m.groups;
  found->stream = found->counts + numbers;
  found->blocks = counts.sum;
  if (look_at(found->indices, found->blocks).largest >= m.sums) return false;
  found->last_in_blob = end == m.payload_bytes;
  return true;
}

}  // namespace edge
