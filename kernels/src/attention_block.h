// Attention of a block of queries over the cache of one key and value head, for any lanes. Blocks of rows x vectors
// stay in registers: keys lie as [element][16 positions], so that 16 scores grow with one broadcast of the query.
#pragma once

#include "attention_cache.h"

namespace edge {
namespace {

// Vectors beside each other in a block of `Rows` rows.
template <class L, int Rows>
constexpr int kVectors = L::kAccumulators / Rows < 4 ? L::kAccumulators / Rows : 4;

template <int Rows>
struct RowCount {
  static constexpr int value = Rows;
};

// Calls f with the number of rows (as a type) to take next of `left`: at most kRowBlock, blocks of about one size.
template <class F>
EDGE_INLINE size_t with_row_count(size_t left, F f) {
  const size_t blocks = (left + kRowBlock - 1) / kRowBlock, even = (left + blocks - 1) / blocks;
  if (even == 6) return f(RowCount<6>()), 6;
  if (even == 4) return f(RowCount<4>()), 4;
  if (even == 3 || even == 5) return f(RowCount<3>()), 3;
  if (even == 2) return f(RowCount<2>()), 2;
  return f(RowCount<1>()), 1;
}

// Rows of one block: queries, scores (later their exponentials) and weighted sums of values.
struct Block {
  size_t kv_head, first_row, rows;
  size_t first_tile, stride;  // scores [rows, stride] start with position 16 * first_tile
  float* q;                   // [rows, width]
  float* scores;
  float* out;  // [rows, width]
};

template <class L, class T, int Rows, int Tiles>
void score_tiles(const AttentionTask& task, const float* q, const uint8_t* tile, float* scores, size_t stride) {
  typename L::Floats sum[Rows][Tiles];
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) sum[r][t] = L::zero();
  }
  for (size_t d = 0; d < task.head_dim; ++d) {
    typename L::Floats keys[Tiles];
    EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
      keys[t] = L::load(reinterpret_cast<const T*>(tile + t * task.tile_bytes) + kTilePositions * d);
    }
    EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
      const auto query = L::all(q[r * task.width + d]);
      EDGE_UNROLL for (int t = 0; t < Tiles; ++t) sum[r][t] = L::fma(query, keys[t], sum[r][t]);
    }
  }
  EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
    const float* scales = reinterpret_cast<const float*>(tile + t * task.tile_bytes + kTilePositions * task.width);
    EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
      if (kScaled<T>) sum[r][t] = L::mul(sum[r][t], L::load(scales));
      L::store(scores + r * stride + t * kTilePositions, L::mul(sum[r][t], L::all(task.call.scale)));
    }
  }
}

// Scores of `Rows` rows from `row` of the block on, over all tiles that any of them sees.
template <class L, class T, int Rows>
void score_rows(const AttentionTask& task, const Block& block, size_t row) {
  constexpr int kTiles = kVectors<L, Rows>;
  const size_t end = task.position_of(block.first_row + row + Rows - 1) / kTilePositions + 1;
  size_t tile = task.first_tile_of(block.first_row + row);
  const float* q = block.q + row * task.width;
  float* scores = block.scores + row * block.stride - block.first_tile * kTilePositions;
  for (; tile + kTiles <= end; tile += kTiles) {
    score_tiles<L, T, Rows, kTiles>(task, q, task.key_tile(block.kv_head, tile), scores + tile * kTilePositions,
                                    block.stride);
  }
  for (; tile < end; ++tile) {
    score_tiles<L, T, Rows, 1>(task, q, task.key_tile(block.kv_head, tile), scores + tile * kTilePositions,
                               block.stride);
  }
}

// scores[start .. end - 1] -> their exponentials, and the sum of those. What the row doesn't see of its first and last
// tile becomes 0.
template <class L>
EDGE_INLINE float exponentials(float* scores, size_t start, size_t end, float softcap) {
  const size_t first = start / kLanes * kLanes, last = (end + kLanes - 1) / kLanes * kLanes;
  const float lowest = float_from_bits(0xff800000u);
  if (softcap != 0) {
    const auto cap = L::all(softcap);
    for (size_t k = first; k < last; k += kLanes) {
      L::store(scores + k, L::mul(cap, tanh<L>(L::div(L::load(scores + k), cap))));
    }
  }
  for (size_t k = first; k < start; ++k) scores[k] = lowest;
  for (size_t k = end; k < last; ++k) scores[k] = lowest;
  auto most = L::all(lowest);
  for (size_t k = first; k < last; k += kLanes) most = L::at_least(most, L::load(scores + k));
  const auto highest = L::all(L::highest(most));
  auto sum = L::zero();
  for (size_t k = first; k < last; k += kLanes) {
    const auto e = exp<L>(L::sub(L::load(scores + k), highest));
    L::store(scores + k, e);
    sum = L::add(sum, e);
  }
  return L::sum(sum);
}

// Adds p * value over positions start .. end - 1 to `Vectors` vectors of `Rows` rows; p[position] per row.
template <class L, class T, int Rows, int Vectors>
void add_values(const AttentionTask& task, size_t kv_head, const float* p, size_t stride, size_t start, size_t end,
                size_t column, float* out) {
  typename L::Floats sum[Rows][Vectors];
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
    EDGE_UNROLL for (int v = 0; v < Vectors; ++v) sum[r][v] = L::load(out + r * task.width + v * kLanes);
  }
  size_t position = start;
  while (position < end) {
    const T* values = reinterpret_cast<const T*>(task.value_tile(kv_head, position / kTilePositions)) + column;
    const size_t next = smaller(end, (position / kTilePositions + 1) * kTilePositions);
    for (; position < next; ++position) {
      typename L::Floats value[Vectors];
      EDGE_UNROLL for (int v = 0; v < Vectors; ++v) {
        value[v] = L::load(values + task.width * (position % kTilePositions) + v * kLanes);
      }
      EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
        const auto weight = L::all(p[r * stride + position]);
        EDGE_UNROLL for (int v = 0; v < Vectors; ++v) sum[r][v] = L::fma(weight, value[v], sum[r][v]);
      }
    }
  }
  EDGE_UNROLL for (int r = 0; r < Rows; ++r) {
    EDGE_UNROLL for (int v = 0; v < Vectors; ++v) L::store(out + r * task.width + v * kLanes, sum[r][v]);
  }
}

// The same for all columns of `Rows` rows from `row` of the block on.
template <class L, class T, int Rows>
void add_range(const AttentionTask& task, const Block& block, size_t row, size_t start, size_t end) {
  if (start >= end) return;
  constexpr int kWide = kVectors<L, Rows>;
  const float* p = block.scores + row * block.stride - block.first_tile * kTilePositions;
  float* out = block.out + row * task.width;
  size_t column = 0;
  for (; column + kWide * kLanes <= task.width; column += kWide * kLanes) {
    add_values<L, T, Rows, kWide>(task, block.kv_head, p, block.stride, start, end, column, out + column);
  }
  for (; column < task.width; column += kLanes) {
    add_values<L, T, Rows, 1>(task, block.kv_head, p, block.stride, start, end, column, out + column);
  }
}

// Values of `Rows` rows: what only some of them see goes row by row, before and after what all see.
template <class L, class T, int Rows>
void weigh_rows(const AttentionTask& task, const Block& block, size_t row) {
  const size_t first = block.first_row + row;
  const size_t end = task.end_of(first), start = smaller(task.start_of(first + Rows - 1), end);
  for (int r = 0; r < Rows; ++r) add_range<L, T, 1>(task, block, row + r, task.start_of(first + r), start);
  add_range<L, T, Rows>(task, block, row, start, end);
  for (int r = 0; r < Rows; ++r) {
    const size_t from = task.start_of(first + r);
    add_range<L, T, 1>(task, block, row + r, from > end ? from : end, task.end_of(first + r));
  }
}

template <class L>
EDGE_INLINE void prepare_queries(const AttentionTask& task, const Block& block, bool rotated = true) {
  const size_t heads = static_cast<size_t>(task.call.heads), kv_heads = static_cast<size_t>(task.call.kv_heads);
  for (size_t r = 0; r < block.rows; ++r) {
    const size_t row = block.first_row + r, head = block.kv_head * task.group + row % task.group;
    const float* from = task.call.qkv.data + (row / task.group * (heads + 2 * kv_heads) + head) * task.head_dim;
    prepare_head<L>(task, from, task.call.q_norm.data, task.position_of(row), block.q + r * task.width, rotated);
  }
}

// p times the scale of its position's values, for all tiles that a row sees.
template <class L>
EDGE_INLINE void scale_weights(const AttentionTask& task, const Block& block, size_t row) {
  float* p = block.scores + row * block.stride;
  const size_t end = task.position_of(block.first_row + row) / kTilePositions + 1;
  for (size_t tile = task.first_tile_of(block.first_row + row); tile < end; ++tile) {
    float* to = p + (tile - block.first_tile) * kTilePositions;
    L::store(to, L::mul(L::load(to), L::load(task.scales_of(task.value_tile(block.kv_head, tile)))));
  }
}

template <class L>
EDGE_INLINE void finish_row(const AttentionTask& task, const Block& block, size_t r, float sum) {
  const size_t heads = static_cast<size_t>(task.call.heads);
  const size_t row = block.first_row + r, head = block.kv_head * task.group + row % task.group;
  float* out = task.call.out.data + (row / task.group * heads + head) * task.head_dim;
  const auto factor = L::all(1.0f / sum);
  for (size_t d = 0; d < task.head_dim; d += kLanes) {
    store_some<L>(out + d, L::mul(L::load(block.out + r * task.width + d), factor), task.head_dim - d);
  }
}

// Rows first .. end - 1 of one key and value head; `scratch` has room for a Block's three arrays.
template <class L, class T>
void attend(const AttentionTask& task, size_t kv_head, size_t first, size_t end, float* scratch) {
  const size_t rows = end - first;
  Block block = {kv_head, first,   rows,   task.first_tile_of(first), task.score_stride(first, end),
                 scratch, nullptr, nullptr};
  block.out = block.q + rows * task.width;
  block.scores = block.out + rows * task.width;
  prepare_queries<L>(task, block);
  memset(block.out, 0, rows * task.width * sizeof(float));
  for (size_t row = 0; row < rows;) {
    float sums[kRowBlock];
    row += with_row_count(rows - row, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      score_rows<L, T, kRows>(task, block, row);
      for (size_t r = row; r < row + kRows; ++r) {
        const size_t origin = block.first_tile * kTilePositions;
        sums[r - row] = exponentials<L>(block.scores + r * block.stride, task.start_of(first + r) - origin,
                                        task.end_of(first + r) - origin, task.call.softcap);
        if (kScaled<T>) scale_weights<L>(task, block, r);
      }
      weigh_rows<L, T, kRows>(task, block, row);
      for (size_t r = row; r < row + kRows; ++r) finish_row<L>(task, block, r, sums[r - row]);
    });
  }
}

}  // namespace
}  // namespace edge
