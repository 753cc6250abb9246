// One tile of a block-sparse matrix (EDGE_16X8, EDGE_16X4): where its parts lie. Its sizes come from the blob itself
// and are held against the blob's end here, so that the kernels may follow them.
#pragma once

#include "format.h"

namespace edge {

// Blocks come in units that fill whole atoms: two blocks of 16x4 at 4 bits, else one block.
template <uint32_t Bits, size_t Width>
struct BlockUnit {
  static constexpr size_t kQuads = Bits == 8 && Width == 4 ? 1 : 2;
  static constexpr size_t kBlocks = Width == 4 ? kQuads : 1;
  static constexpr size_t kBytes = kLine * kQuads * Bits / 8;
};

struct SparseTile {
  const uint8_t* counts;   // u16 [groups]
  const uint8_t* indices;  // u16 [blocks]
  const uint8_t* stream;   // heads and blocks
  size_t blocks;
  bool last_in_blob;
};

// False when the tile's offsets or counts don't add up, or an index names a block that no row has.
bool find_sparse_tile(const Geometry& matrix, const uint8_t* prefix, size_t tile, SparseTile* found);

}  // namespace edge
