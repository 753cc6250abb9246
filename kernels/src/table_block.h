// Attention of a block of queries over EDGE_CACHE_TABLE: tile by tile, which becomes floats once for all rows.
#pragma once

#include "attention_block.h"
#include "table_cache.h"

namespace edge {
namespace {

// Scores of `Rows` rows over a tile of keys [head_dim][16]: sums over pairs' first elements (and what is in no pair)
// plus sums over their second ones. A pair is what is rotated together.
template <class L, int Rows, bool Turned>
void score_tile(const AttentionTask& task, const float* q, const float* keys, float* scores, size_t stride) {
  const size_t width = task.width, head_dim = task.head_dim, rotary_dim = static_cast<size_t>(task.call.rotary_dim);
  const size_t half = (rotary_dim ? rotary_dim : head_dim) / 2;
  typename L::Floats sum[2][Rows];
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) sum[0][r] = sum[1][r] = L::zero();
  for (size_t d = 0; d < half; ++d) {
    auto first = L::load(keys + kLanes * d), second = L::load(keys + kLanes * (half + d));
    if (!Turned) turn<L>(task, d, &first, &second);
    EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
      sum[0][r] = L::fma(L::all(q[r * width + d]), first, sum[0][r]);
      sum[1][r] = L::fma(L::all(q[r * width + half + d]), second, sum[1][r]);
    }
  }
  for (size_t d = 2 * half; d < head_dim; ++d) {
    const auto key = L::load(keys + kLanes * d);
    EDGE_UNROLL for (int r = 0; r < Rows; ++r) sum[0][r] = L::fma(L::all(q[r * width + d]), key, sum[0][r]);
  }
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
    L::store(scores + r * stride, L::mul(L::add(sum[0][r], sum[1][r]), L::all(task.call.scale)));
  }
}

// A query as keys see it that are rotated by their places in the tile that begins at `start`.
template <class L>
EDGE_INLINE void turn_query(const AttentionTask& task, size_t position, size_t start, const float* q, float* to) {
  for (size_t d = 0; d < task.width; d += kLanes) L::store(to + d, L::load(q + d));
  if (task.call.rotary_dim) rotate<L>(task, position < start ? 0 : position - start, to);
}

// `turned`: whether the keys are rotated already.
template <class L>
EDGE_INLINE void score_block(const AttentionTask& task, const Block& block, size_t tile, bool turned, const float* keys,
                             float* queries) {
  const size_t start = tile * kTilePositions;
  float* scores = block.scores + start - block.first_tile * kTilePositions;
  for (size_t row = 0; row < block.rows;) {
    row += with_row_count(block.rows - row, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      const size_t first = block.first_row + row;
      if (task.position_of(first + kRows - 1) < start || task.start_of(first) >= start + kTilePositions) return;
      for (size_t r = 0; r < kRows; ++r) {
        const float* q = block.q + (row + r) * task.width;
        turn_query<L>(task, task.position_of(first + r), start, q, queries + r * task.width);
      }
      if (turned) {
        score_tile<L, kRows, true>(task, queries, keys, scores + row * block.stride, block.stride);
      } else {
        score_tile<L, kRows, false>(task, queries, keys, scores + row * block.stride, block.stride);
      }
    });
  }
}

// Adds p * value over positions from .. to - 1 of a tile [16][width]; p[position] per row.
template <class L, int Rows, int Vectors>
void add_columns(const AttentionTask& task, const float* values, const float* p, size_t stride, size_t from, size_t to,
                 float* out) {
  const size_t width = task.width;
  typename L::Floats sum[Rows][Vectors];
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
    EDGE_UNROLL for (int v = 0; v < Vectors; ++v) sum[r][v] = L::load(out + r * width + v * kLanes);
  }
  for (size_t position = from; position < to; ++position) {
    typename L::Floats value[Vectors];
    EDGE_UNROLL for (int v = 0; v < Vectors; ++v) value[v] = L::load(values + width * position + v * kLanes);
    EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
      const auto weight = L::all(p[r * stride + position]);
      EDGE_UNROLL for (int v = 0; v < Vectors; ++v) sum[r][v] = L::fma(weight, value[v], sum[r][v]);
    }
  }
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
    EDGE_UNROLL for (int v = 0; v < Vectors; ++v) L::store(out + r * width + v * kLanes, sum[r][v]);
  }
}

template <class L, int Rows>
EDGE_INLINE void add_tile(const AttentionTask& task, const Block& block, size_t row, size_t tile, const float* values) {
  constexpr int kWide = kVectors<L, Rows>;
  const size_t start = tile * kTilePositions, first = block.first_row + row;
  const size_t begin = task.start_of(first), end = task.end_of(first);
  const size_t from = begin > start ? begin - start : 0, to = smaller(end, start + kTilePositions);
  if (to <= start + from) return;
  const float* p = block.scores + row * block.stride + (tile - block.first_tile) * kTilePositions;
  float* out = block.out + row * task.width;
  size_t column = 0;
  for (; column + kWide * kLanes <= task.width; column += kWide * kLanes) {
    add_columns<L, Rows, kWide>(task, values + column, p, block.stride, from, to - start, out + column);
  }
  for (; column < task.width; column += kLanes) {
    add_columns<L, Rows, 1>(task, values + column, p, block.stride, from, to - start, out + column);
  }
}

// Values of a tile to all rows of a block: together where they see the same of it, else row by row.
template <class L>
EDGE_INLINE void add_block(const AttentionTask& task, const Block& block, size_t tile, const float* values) {
  const size_t start = tile * kTilePositions, end = start + kTilePositions;
  for (size_t row = 0; row < block.rows;) {
    row += with_row_count(block.rows - row, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      const size_t first = block.first_row + row, last = first + kRows - 1;
      const bool alike = task.position_of(first) == task.position_of(last);
      if (alike || (task.start_of(last) <= start && task.end_of(first) >= end)) {
        add_tile<L, kRows>(task, block, row, tile, values);
      } else {
        for (size_t r = row; r < row + kRows; ++r) add_tile<L, 1>(task, block, r, tile, values);
      }
    });
  }
}

// p becomes p * scale; returns the sum of p * offset over what the row sees, in 16 lanes.
template <class L>
EDGE_INLINE float weigh_offsets(const AttentionTask& task, const Block& block, size_t row) {
  const TableSide& side = task.value_side;
  const size_t begin = task.start_of(block.first_row + row), end = task.end_of(block.first_row + row);
  auto sum = L::zero();
  for (size_t tile = begin / kTilePositions; tile * kTilePositions < end; ++tile) {
    if (tile == 0) continue;
    const size_t start = tile * kTilePositions;
    const uint8_t* from = side.tile(task.call.values, block.kv_head, tile) + side.code_bytes;
    const Half* scales = reinterpret_cast<const Half*>(from);
    float* p = block.scores + row * block.stride + (tile - block.first_tile) * kTilePositions;
    auto offset = L::load(scales + kTilePositions);
    if (start < begin || start + kTilePositions > end) {  // some were left behind, or never written
      float offsets[kLanes];
      L::store(offsets, offset);
      for (size_t i = 0; i < kLanes; ++i) {
        if (start + i < begin || start + i >= end) offsets[i] = 0;
      }
      offset = L::load(offsets);
    }
    sum = L::fma(L::load(p), offset, sum);
    L::store(p, L::mul(L::load(p), L::load(scales)));
  }
  return L::sum(sum);
}

template <class L>
void attend_table(const AttentionTask& task, size_t kv_head, size_t first, size_t end, float* scratch) {
  const size_t rows = end - first, last_tile = task.position_of(end - 1) / kTilePositions;
  float *tile_floats = scratch, *queries = tile_floats + kTilePositions * task.width;
  Block block = {kv_head,
                 first,
                 rows,
                 task.first_tile_of(first),
                 task.score_stride(first, end),
                 scratch + kTableScratch * task.width,
                 nullptr,
                 nullptr};
  block.out = block.q + rows * task.width;
  block.scores = block.out + rows * task.width;
  prepare_queries<L>(task, block, false);
  memset(block.out, 0, rows * task.width * sizeof(float));
  for (size_t tile = block.first_tile; tile <= last_tile; ++tile) {
    const bool many = rows > kRowBlock;  // else the keys are rotated on their way into the scores
    read_keys<L>(task, kv_head, tile, tile_floats);
    if (many && tile > 0) turn_keys<L>(task, tile_floats);
    score_block<L>(task, block, tile, many || tile == 0 || !task.call.rotary_dim, tile_floats, queries);
  }
  float sums[kMaxRows], offsets[kMaxRows];
  for (size_t r = 0; r < rows; ++r) {
    const size_t origin = block.first_tile * kTilePositions;
    sums[r] = exponentials<L>(block.scores + r * block.stride, task.start_of(first + r) - origin,
                              task.end_of(first + r) - origin, task.call.softcap);
    offsets[r] = weigh_offsets<L>(task, block, r);
  }
  for (size_t tile = block.first_tile; tile <= last_tile; ++tile) {
    read_values<L>(task, kv_head, tile, tile_floats);
    add_block<L>(task, block, tile, tile_floats);
  }
  for (size_t r = 0; r < rows; ++r) {
    float* out = block.out + r * task.width;
    for (size_t d = 0; d < task.width; d += kLanes) L::store(out + d, L::add(L::load(out + d), L::all(offsets[r])));
    finish_row<L>(task, block, r, sums[r]);
  }
}

}  // namespace
}  // namespace edge
