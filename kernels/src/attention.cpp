// edge_attention: keys and values of the new tokens into the cache, then blocks of queries over the host's threads.
#include "attention.h"

#include "dispatch.h"
#include "float_ops.h"
#include "parallel.h"
#include "scratch.h"

namespace edge {
namespace {

constexpr int64_t kMaxHeads = 1 << 16, kMaxPositions = 1 << 30;  // all sizes of a call fit 64 bits
constexpr size_t kAppendTokens = 64;          // of a piece, which has whole tiles: positions of one share bytes
constexpr uint64_t kAppendShare = 32 * 1024;  // elements a thread
constexpr uint64_t kWorkerCost = 256 * 1024;  // of attention; see cost_of
constexpr size_t kScoreFloats = 64 * 1024;    // scores of a block: with its keys and values in the second-level cache

struct Work {
  AttentionTask task;
  const FloatOps* ops;
  size_t rows;  // queries of a key and value head
  size_t append_blocks, block_rows, blocks;
  float* scratch;
  size_t worker_stride;
  size_t lanes;  // of EDGE_CACHE_TABLE: half of rotary_dim, where a key needs it
};

void append_piece(void* argument, size_t, size_t index) {
  const Work& work = *static_cast<const Work*>(argument);
  const size_t skipped = work.task.call.position % kAppendTokens,
               end = (index % work.append_blocks + 1) * kAppendTokens;
  const size_t first = end - kAppendTokens < skipped ? 0 : end - kAppendTokens - skipped;
  work.ops->append[work.task.call.cache](work.task, index / work.append_blocks, first,
                                         smaller(work.task.tokens, end - skipped));
}

// The last blocks, which see most, begin.
void attend_piece(void* argument, size_t worker, size_t index) {
  const Work& work = *static_cast<const Work*>(argument);
  const size_t first = (work.blocks - 1 - index % work.blocks) * work.block_rows;
  const size_t end = smaller(work.rows, first + work.block_rows);
  float* scratch = work.scratch + worker * work.worker_stride;
  work.ops->attend[work.task.call.cache](work.task, index / work.blocks, first, end, scratch);
}

// In bytes that take about as long to read: every block of rows goes over the keys and values that it sees.
uint64_t cost_of(const Work& work) {
  const uint64_t seen = work.task.score_stride(work.rows - 1, work.rows) * work.task.width;
  return static_cast<uint64_t>(work.task.call.kv_heads) * seen * (kRowBlock + work.rows);
}

// Blocks small enough for the scratch to stay in the cache and for every worker to get some.
void choose_blocks(Work* work, size_t workers) {
  const size_t longest = work->task.score_stride(0, work->rows), window = static_cast<size_t>(work->task.call.window);
  const size_t seen = window ? smaller(longest, window) : longest;
  const size_t fit = kScoreFloats / seen / kRowBlock * kRowBlock;
  const size_t fair = rounded_up(pieces_of(work->rows * work->task.call.kv_heads, workers), kRowBlock);
  work->block_rows = smaller(smaller(work->rows, kMaxRows), fit > kRowBlock ? fit : kRowBlock);
  if (workers > 1) work->block_rows = smaller(work->block_rows, fair);
  work->blocks = pieces_of(work->rows, work->block_rows);
  // the longest a block can be: its own tokens, a window before them, and what fills the tiles at both ends
  const size_t own = work->block_rows / work->task.group + 2;
  const size_t stride = window ? smaller(longest, rounded_up(own + window, kTilePositions) + kTilePositions) : longest;
  work->worker_stride = work->block_rows * (stride + 2 * work->task.width);
  if (work->task.call.cache == EDGE_CACHE_TABLE) work->worker_stride += kTableScratch * work->task.width;
}

// The rows of the first 16 positions, by which the keys of EDGE_CACHE_TABLE are rotated.
void transpose_tables(Work* work, float* to) {
  float *cos = to, *sin = to + work->lanes * kTilePositions;
  for (size_t position = 0; position < kTilePositions; ++position) {
    for (size_t d = 0; d < work->lanes; ++d) {
      cos[kTilePositions * d + position] = work->task.call.cos.data[position * work->lanes + d];
      sin[kTilePositions * d + position] = work->task.call.sin.data[position * work->lanes + d];
    }
  }
  work->task.lane_cos = cos;
  work->task.lane_sin = sin;
}

edge_status attend_all(Work* work, const edge_parallel* parallel) {
  const size_t kv_heads = static_cast<size_t>(work->task.call.kv_heads), tokens = work->task.tokens;
  const size_t appended = 2 * kv_heads * tokens * work->task.width;
  const size_t workers = workers_for(parallel, cost_of(*work), kWorkerCost);
  choose_blocks(work, workers);
  Scratch scratch;
  const size_t offset = scratch.plan<float>(work->worker_stride * smaller(workers, kv_heads * work->blocks));
  const size_t tables = scratch.plan<float>(work->lanes ? 2 * work->lanes * kTilePositions : 0);
  if (!scratch.reserve()) return EDGE_OUT_OF_MEMORY;
  work->scratch = scratch.at<float>(offset);
  if (work->lanes) transpose_tables(work, scratch.at<float>(tables));
  work->append_blocks = pieces_of(work->task.call.position % kAppendTokens + tokens, kAppendTokens);
  run_pieces(parallel, workers_for(parallel, appended, kAppendShare), kv_heads * work->append_blocks, append_piece,
             work);
  run_pieces(parallel, workers, kv_heads * work->blocks, attend_piece, work);
  return EDGE_OK;
}

size_t head_bytes(const edge_attention_task& call, bool values) {
  const int64_t bits = values ? call.value_bits : call.key_bits;
  return edge_table_cache_bytes(values, call.head_dim, bits, call.outliers, call.capacity);
}

TableSide side_of(bool values, size_t head_dim, size_t bits, size_t outliers, size_t capacity) {
  const size_t width = rounded_up(head_dim, 16);
  TableSide side = {};
  side.bits = bits;
  side.code_bytes = (values ? width : head_dim) * 2 * bits;
  const size_t kept = TableSide::scale_bytes(values) + kTilePositions * outliers * (sizeof(Half) + 1);
  side.tile_bytes = rounded_up(side.code_bytes + (kept > 4 ? kept : 4), 4);
  side.first_bytes = kTilePositions * width * sizeof(Half);
  side.head_bytes = side.first_bytes + (capacity / kTilePositions - 1) * side.tile_bytes;
  return side;
}

bool sizes_make_sense(const edge_attention_task& call) {
  if (!is_one_of(call.isa, EDGE_AUTO, EDGE_NEON_I8MM) || !is_one_of(call.cache, EDGE_CACHE_F32, EDGE_CACHE_TABLE)) {
    return false;
  }
  if (call.kv_heads < 1 || call.heads < 1 || call.heads > kMaxHeads || call.heads % call.kv_heads != 0) return false;
  if (call.rotary_dim < 0 || call.rotary_dim > call.head_dim || call.rotary_dim % 2 != 0) return false;
  if (call.capacity < 1 || call.capacity > kMaxPositions || call.capacity % 16 != 0) return false;
  if (call.cache != EDGE_CACHE_TABLE && !edge_cache_tile_bytes(call.cache, call.head_dim)) return false;
  if (call.cache == EDGE_CACHE_TABLE && (!head_bytes(call, false) || !head_bytes(call, true))) return false;
  return call.window >= 0 && call.softcap >= 0 && call.position >= 0 && call.position <= call.capacity;
}

bool is_cache(const void* memory, size_t bytes, uint64_t expected) {
  return memory && bytes == expected && reinterpret_cast<uintptr_t>(memory) % sizeof(float) == 0;
}

bool is_level_table(const edge_input& table, size_t levels) {
  return table.count == 2 * levels && (table.data != nullptr) == (levels != 0);
}

bool is_weight(const edge_input& weight, size_t head_dim) {
  return weight.count == (weight.data ? head_dim : 0);
}

// Cosines or sines that reach to position `end`.
bool is_table(const edge_input& table, size_t rotary_dim, size_t end) {
  if (rotary_dim == 0) return !table.data && table.count == 0;
  return table.data && table.count % (rotary_dim / 2) == 0 && table.count / (rotary_dim / 2) >= end;
}

bool arguments_fit(const edge_attention_task& call, const AttentionTask& task) {
  const size_t kv_heads = static_cast<size_t>(call.kv_heads), rotary_dim = static_cast<size_t>(call.rotary_dim);
  const size_t token = (static_cast<size_t>(call.heads) + 2 * kv_heads) * task.head_dim;
  const bool table = call.cache == EDGE_CACHE_TABLE;
  const uint64_t tile_bytes = static_cast<uint64_t>(task.tiles) * task.tile_bytes;
  const uint64_t key_bytes = kv_heads * (table ? task.key_side.head_bytes : tile_bytes);
  const uint64_t value_bytes = kv_heads * (table ? task.value_side.head_bytes : tile_bytes);
  if (call.qkv.count % token != 0 || task.tokens > static_cast<size_t>(call.capacity - call.position)) return false;
  const size_t end = static_cast<size_t>(call.position) + task.tokens;
  if (!is_table(call.cos, rotary_dim, end) || !is_table(call.sin, rotary_dim, end)) return false;
  if (!is_weight(call.q_norm, task.head_dim) || !is_weight(call.k_norm, task.head_dim)) return false;
  if (!is_cache(call.keys, call.key_bytes, key_bytes)) return false;
  if (!is_cache(call.values, call.value_bytes, value_bytes)) return false;
  const size_t channels = kv_heads * task.head_dim;
  if (!is_level_table(call.key_table, table ? channels * (call.key_bits == 8 ? 1 : size_t{1} << call.key_bits) : 0)) {
    return false;
  }
  if (!is_level_table(call.value_table, table && call.value_bits != 8 ? size_t{1} << call.value_bits : 0)) return false;
  const bool there = call.qkv.data && call.out.data;
  return call.out.count == task.tokens * static_cast<size_t>(call.heads) * task.head_dim && (there || !task.tokens);
}

AttentionTask task_of(const edge_attention_task& call) {
  AttentionTask task = {};
  task.call = call;
  task.group = static_cast<size_t>(call.heads / call.kv_heads);
  task.head_dim = static_cast<size_t>(call.head_dim);
  task.width = rounded_up(task.head_dim, 16);
  task.tiles = static_cast<size_t>(call.capacity) / kTilePositions;
  if (call.cache != EDGE_CACHE_TABLE) {
    task.tile_bytes = edge_cache_tile_bytes(call.cache, call.head_dim);
  } else {
    const size_t outliers = static_cast<size_t>(call.outliers), capacity = static_cast<size_t>(call.capacity);
    task.key_side = side_of(false, task.head_dim, static_cast<size_t>(call.key_bits), outliers, capacity);
    task.value_side = side_of(true, task.head_dim, static_cast<size_t>(call.value_bits), outliers, capacity);
  }
  task.tokens = call.qkv.count / (static_cast<size_t>(call.heads + 2 * call.kv_heads) * task.head_dim);
  return task;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t edge_cache_tile_bytes(edge_cache cache, int64_t head_dim) {
  if (!edge::is_one_of(cache, EDGE_CACHE_F32, EDGE_CACHE_INT8)) return 0;
  if (head_dim < 1 || head_dim > static_cast<int64_t>(edge::kMaxHeadDim)) return 0;
  const size_t elements = edge::kTilePositions * edge::rounded_up(static_cast<uint64_t>(head_dim), 16);
  switch (cache) {
    case EDGE_CACHE_F32:
      return elements * sizeof(float);
    case EDGE_CACHE_F16:
      return elements * sizeof(edge::Half);
    case EDGE_CACHE_INT8:
      return elements + edge::kTilePositions * sizeof(float);
    default:
      return 0;
  }
}

size_t edge_table_cache_bytes(int values, int64_t head_dim, int64_t bits, int64_t outliers, int64_t capacity) {
  if (head_dim < 1 || head_dim > static_cast<int64_t>(edge::kMaxTableHeadDim)) return 0;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return 0;
  if (outliers < 0 || outliers > static_cast<int64_t>(edge::kMaxOutliers) || outliers > head_dim) return 0;
  if (capacity < 1 || capacity > edge::kMaxPositions || capacity % 16 != 0) return 0;
  return edge::side_of(values, static_cast<size_t>(head_dim), static_cast<size_t>(bits), static_cast<size_t>(outliers),
                       static_cast<size_t>(capacity))
      .head_bytes;
}

edge_status edge_attention(const edge_attention_task* call, const edge_parallel* parallel) {
  if (!call || (parallel && !parallel->run) || !edge::sizes_make_sense(*call)) return EDGE_BAD_ARGUMENT;
  edge::Work work = {};
  work.task = edge::task_of(*call);
  if (!edge::arguments_fit(*call, work.task)) return EDGE_BAD_ARGUMENT;
  edge_isa isa;
  const edge_status status = edge::pick_isa(call->isa, &isa);
  if (status != EDGE_OK || work.task.tokens == 0) return status;
  work.ops = &edge::float_ops(isa);
  work.rows = work.task.tokens * work.task.group;
  const bool beyond = work.task.position_of(work.rows - 1) >= edge::kTilePositions;  // the first tile
  work.lanes = call->cache == EDGE_CACHE_TABLE && beyond ? static_cast<size_t>(call->rotary_dim) / 2 : 0;
  return edge::attend_all(&work, parallel);
}

}  // extern "C"
