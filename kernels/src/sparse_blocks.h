// Block-sparse matrices (EDGE_16X8, EDGE_16X4), for any instruction set. The index of a block is where its activations
// lie, so time goes with the bytes that are stored. What `V` brings is described in dense.h and sparse.h.
#pragma once

#include "sparse.h"
#include "sparse_tile.h"

namespace edge {
namespace {

constexpr int8_t kNoActivations[8] = {};

// One group of one tile, and the activations of its tokens.
struct BlockGroup {
  const uint8_t* indices;
  const uint8_t* values;
  size_t units;
  const int8_t* q;
  size_t q_stride;
};

// `yes` where mask is all ones, `no` where it is 0. The compiler must not make a branch of it.
EDGE_INLINE const int8_t* choose(size_t mask, const int8_t* yes, const int8_t* no) {
  __asm__("" : "+r"(mask));
  const uintptr_t from = reinterpret_cast<uintptr_t>(no);
  return reinterpret_cast<const int8_t*>(from + ((reinterpret_cast<uintptr_t>(yes) - from) & mask));
}

// Quad J of a unit.
template <class V, uint32_t Bits, size_t J>
EDGE_INLINE typename V::Bytes unit_codes(const uint8_t* unit) {
  if constexpr (Bits == 4) return V::template field<4 * J, 15>(V::atom(unit));
  if constexpr (Bits == 8) return V::atom(unit + kLine * J);
}

// Unit `unit` of the group; one that isn't `live` meets zeros.
template <class V, uint32_t Bits, size_t Width, int Tokens, bool MayBeDead>
EDGE_INLINE void add_unit(const BlockGroup& group, size_t unit, bool live, SignedSums<V, Tokens>& sums) {
  using Unit = BlockUnit<Bits, Width>;
  const size_t mask = size_t{0} - live;
  if constexpr (Tokens == 1) fetch_ahead<Unit::kBytes / kLine>(group.values + unit * Unit::kBytes);
  size_t column[Unit::kBlocks];
  EDGE_UNROLL for (size_t b = 0; b < Unit::kBlocks; ++b) {
    column[b] = load<uint16_t>(group.indices + 2 * (unit * Unit::kBlocks + b)) * Width;
  }
  repeat<Unit::kQuads>([&](auto j) __attribute__((always_inline)) {
    constexpr size_t quad = decltype(j)::value;
    const auto codes = signed_codes<V, Bits>(unit_codes<V, Bits, quad>(group.values + unit * Unit::kBytes));
    sums.template count<Bits>(codes);
    EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
      const int8_t* q = group.q + i * group.q_stride + column[quad % Unit::kBlocks];
      if constexpr (MayBeDead) q = choose(mask, q, kNoActivations);
      sums.template add<Bits>(i, V::quad_of(q + (Unit::kBlocks == 1 ? 4 * quad : 0)), codes);
    }
  });
}

// The counts of a group's blocks are small and random: a loop over them would be mispredicted at most of its ends. So
// `Ahead` units are always done, those beyond the group's last with zeros.
template <class V, uint32_t Bits, size_t Width, int Tokens, size_t Ahead>
EDGE_INLINE void add_group(const BlockGroup& group, SignedSums<V, Tokens>& sums) {
  if constexpr (Ahead == 1) {
    for (size_t unit = 0; unit < group.units; ++unit) add_unit<V, Bits, Width, Tokens, false>(group, unit, true, sums);
    return;
  }
  size_t unit = 0;
  do {
    EDGE_UNROLL for (size_t a = 0; a < Ahead; ++a) {
      add_unit<V, Bits, Width, Tokens, (Ahead > 1)>(group, unit + a, unit + a < group.units, sums);
    }
    unit += Ahead;
  } while (unit < group.units);
}

template <class V, uint32_t Bits, size_t Width, int Tokens, size_t Ahead>
void blocks_of_tile(const LinearTask& task, const SparseTile& found, size_t tile, size_t token) {
  using Unit = BlockUnit<Bits, Width>;
  const Geometry& m = task.matrix;
  const float* q_scales = task.q_scales + token * m.groups;
  const uint8_t* head = found.stream;
  BlockGroup group = {found.indices, found.stream, 0, task.q + token * m.padded_columns, m.padded_columns};
  typename V::Floats total[Tokens];
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) total[i] = V::zero();
  for (size_t g = 0; g < m.groups; ++g) {
    if (g % 2 == 0) {
      head = group.values;
      group.values += m.head_bytes;
    }
    group.units = load<uint16_t>(found.counts + 2 * g) / Unit::kBlocks;
    SignedSums<V, Tokens> sums;
    add_group<V, Bits, Width, Tokens, Ahead>(group, sums);
    const typename V::Floats scales = V::load(reinterpret_cast<const Half*>(head + g % 2 * kScaleBytes));
    sums.add_to(total, scales, q_scales + g, m.groups);
    group.indices += 2 * Unit::kBlocks * group.units;
    group.values += Unit::kBytes * group.units;
  }
  EDGE_UNROLL for (int i = 0; i < Tokens; ++i) store_tile<V>(task, tile, token + i, total[i]);
}

// As many units ahead as most groups have, but none past the blob's end.
template <class V, uint32_t Bits, size_t Width, int Tokens>
void few_tokens(const LinearTask& task, const SparseTile& found, size_t tile, size_t token) {
  const size_t units = found.blocks / BlockUnit<Bits, Width>::kBlocks, groups = task.matrix.groups;
  if constexpr (V::kAhead) {
    if (!found.last_in_blob && units <= groups) {
      return blocks_of_tile<V, Bits, Width, Tokens, 2>(task, found, tile, token);
    }
    if (!found.last_in_blob && units <= 4 * groups) {
      return blocks_of_tile<V, Bits, Width, Tokens, 4>(task, found, tile, token);
    }
  }
  blocks_of_tile<V, Bits, Width, Tokens, 1>(task, found, tile, token);
}

// A tile whose sizes don't add up, of a blob that nobody verified.
inline void store_damaged(const LinearTask& task, size_t tile, size_t token, size_t end) {
  const size_t first = tile * kRows, count = smaller(kRows, task.matrix.rows - first);
  for (; token < end; ++token) {
    float* out = task.out + token * task.matrix.rows + first;
    for (size_t row = 0; row < count; ++row) out[row] = float_from_bits(0x7fc00000u);
  }
}

template <class V, uint32_t Bits, size_t Width>
EDGE_INLINE void sparse_blocks_a8(const LinearTask& task, size_t first_tile, size_t end_tile) {
  constexpr int most = V::kSparseTokens;
  const size_t token_bytes = task.matrix.padded_columns;
  tile_panels<most>(task, token_bytes, first_tile, end_tile, [&](size_t tile, size_t first, size_t end) {
    SparseTile found;
    if (!find_sparse_tile(task.matrix, task.prefix, tile, &found)) return store_damaged(task, tile, first, end);
    token_blocks<most>(first, end, [&](auto tokens, size_t token) {
      constexpr int count = decltype(tokens)::value;
      if constexpr (count <= 2) few_tokens<V, Bits, Width, count>(task, found, tile, token);
      if constexpr (count > 2) blocks_of_tile<V, Bits, Width, count, 1>(task, found, tile, token);
    });
  });
}

template <class V, uint32_t Bits, size_t Width, int Tokens>
void blocks_of_tile_f32(const LinearTask& task, const SparseTile& found, size_t tile, size_t token) {
  using Unit = BlockUnit<Bits, Width>;
  const Geometry& m = task.matrix;
  const uint8_t *indices = found.indices, *values = found.stream, *head = values;
  const typename V::Floats zeros = V::all(1 << (Bits - 1));
  FloatSums<V, Tokens> sums;
  for (size_t g = 0; g < m.groups; ++g) {
    if (g % 2 == 0) {
      head = values;
      values += m.head_bytes;
    }
    const typename V::Floats scales = V::load(reinterpret_cast<const Half*>(head + g % 2 * kScaleBytes));
    for (size_t units = load<uint16_t>(found.counts + 2 * g) / Unit::kBlocks; units > 0; --units) {
      repeat<Unit::kQuads>([&](auto j) __attribute__((always_inline)) {
        constexpr size_t quad = decltype(j)::value;
        const size_t index = load<uint16_t>(indices + 2 * (quad % Unit::kBlocks));
        typename V::Floats four[4];
        dequantize_quad<V>(unit_codes<V, Bits, quad>(values), zeros, scales, four);
        sums.add_quad(task, token, index * Width + (Unit::kBlocks == 1 ? 4 * quad : 0), four);
      });
      indices += 2 * Unit::kBlocks;
      values += Unit::kBytes;
    }
  }
  sums.store(task, tile, token);
}

template <class V, uint32_t Bits, size_t Width>
EDGE_INLINE void sparse_blocks_f32(const LinearTask& task, size_t first_tile, size_t end_tile) {
  constexpr int most = V::kFloatTokens;
  const size_t token_bytes = task.matrix.columns * sizeof(float);
  tile_panels<most>(task, token_bytes, first_tile, end_tile, [&](size_t tile, size_t first, size_t end) {
    SparseTile found;
    if (!find_sparse_tile(task.matrix, task.prefix, tile, &found)) return store_damaged(task, tile, first, end);
    token_blocks<most>(first, end, [&](auto tokens, size_t token) {
      blocks_of_tile_f32<V, Bits, Width, decltype(tokens)::value>(task, found, tile, token);
    });
  });
}

}  // namespace
}  // namespace edge
