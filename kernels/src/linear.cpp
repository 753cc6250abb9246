// edge_linear: the tokens through the prologue, then pieces of the matrix over the host's threads, each with its own
// part of the epilogue while the results are hot.
#include "dispatch.h"
#include "float_ops.h"
#include "parallel.h"
#include "scratch.h"

namespace edge {
namespace {

constexpr size_t kMaxTokens = 1 << 24;          // all sizes of a call fit 64 bits
constexpr size_t kPieceTokens = 8;              // of the prologue
constexpr uint64_t kPrologueShare = 16 * 1024;  // elements a thread: some microseconds, well above a hand-over
constexpr uint64_t kWorkerCost = 128 * 1024;    // bytes of weights that a thread of a decode step should have
constexpr uint64_t kPieceCost = 64 * 1024;
constexpr uint64_t kPiecesEach = 16;  // more would not balance better
constexpr size_t kFewTokens = 16;
constexpr size_t kPieceTiles = 6;  // a multiple of every register block for many tokens

struct Work {
  LinearTask task;
  LinearKernel kernel;
  const FloatOps* ops;
  Prologue prologue;
  float* rows;  // what the prologue leaves as floats: all tokens, or one row for each worker
  size_t row_stride, worker_stride;
  edge_epilogue epilogue;
  float* out;          // what the caller gets
  size_t out_columns;  // rows of the matrix, or half of them
  size_t tiles, piece_tiles;
  size_t up_tile;  // gated: where the second half of the matrix begins when it begins with a tile
};

bool is_gated(edge_epilogue epilogue) {
  return epilogue >= EDGE_SILU_GATED;
}

void prepare_piece(void* argument, size_t worker, size_t index) {
  const Work& work = *static_cast<const Work*>(argument);
  const size_t first = index * kPieceTokens, end = smaller(work.task.tokens, first + kPieceTokens);
  work.ops->prepare(work.prologue, first, end, work.rows + worker * work.worker_stride, work.row_stride);
}

// The epilogue for columns first .. end - 1 of the results of all tokens.
void activate(const Work& work, size_t first, size_t end) {
  const size_t rows = work.task.matrix.rows;
  for (size_t token = 0; token < work.task.tokens; ++token) {
    const float* gate = work.task.out + token * rows + first;
    const float* up = is_gated(work.epilogue) ? gate + work.out_columns : nullptr;
    work.ops->activate(work.epilogue, gate, up, work.out + token * work.out_columns + first, end - first);
  }
}

void multiply_piece(void* argument, size_t, size_t index) {
  const Work& work = *static_cast<const Work*>(argument);
  const size_t first = index * work.piece_tiles, end = smaller(work.tiles, first + work.piece_tiles);
  work.kernel(work.task, first, end);
  if (work.up_tile) work.kernel(work.task, work.up_tile + first, work.up_tile + end);
  if (work.up_tile || work.epilogue == EDGE_GELU || work.epilogue == EDGE_GELU_TANH) {
    activate(work, first * kRows, smaller(end * kRows, work.out_columns));
  }
}

void run_prologue(Work* work, const edge_parallel* parallel, size_t workers) {
  run_pieces(parallel, workers, pieces_of(work->task.tokens, kPieceTokens), prepare_piece, work);
}

// Bytes of weights that take as long to read as the product takes: with many tokens the arithmetic counts.
uint64_t cost_of(const LinearTask& task) {
  return task.matrix.payload_bytes * (4 + task.tokens) / 5;
}

void run_product(Work* work, const edge_parallel* parallel) {
  const Geometry& m = work->task.matrix;
  const bool gated = is_gated(work->epilogue), aligned = work->out_columns % kRows == 0;
  work->up_tile = gated && aligned ? m.tiles / 2 : 0;
  work->tiles = work->up_tile ? work->up_tile : m.tiles;
  const uint64_t cost = cost_of(work->task);
  const size_t workers = workers_for(parallel, cost, kWorkerCost);
  const uint64_t pieces = smaller<uint64_t>(cost / kPieceCost + 1, workers * kPiecesEach);
  const size_t unit = work->task.tokens < kFewTokens ? 1 : kPieceTiles;
  work->piece_tiles = workers < 2 ? work->tiles : rounded_up(pieces_of(work->tiles, pieces), unit);
  run_pieces(parallel, workers, pieces_of(work->tiles, work->piece_tiles), multiply_piece, work);
  if (gated && !aligned) activate(*work, 0, work->out_columns);
}

edge_status multiply(const edge_linear_task& call, Work* work, const edge_parallel* parallel) {
  const Geometry& m = work->task.matrix;
  const size_t tokens = work->task.tokens;
  const bool a8 = call.activations == EDGE_A8, changed = call.norm != EDGE_NO_NORM || call.skip.data;
  const bool wants_rows = call.norm != EDGE_NO_NORM || (call.skip.data && !call.sum.data);
  const size_t workers = workers_for(parallel, static_cast<uint64_t>(tokens) * m.columns, kPrologueShare);
  work->row_stride = a8 ? 0 : m.columns;
  work->worker_stride = a8 && wants_rows ? m.columns : 0;
  Scratch scratch;
  const size_t q = scratch.plan<int8_t>(a8 ? tokens * m.padded_columns : 0);
  const size_t sums = scratch.plan<int32_t>(a8 ? tokens * m.sums : 0);
  const size_t scales = scratch.plan<float>(a8 ? tokens * m.groups : 0);
  const size_t rows = scratch.plan<float>(wants_rows ? m.columns * (a8 ? workers : tokens) : 0);
  const size_t wide = scratch.plan<float>(is_gated(call.epilogue) ? tokens * m.rows : 0);
  if (!scratch.reserve()) return EDGE_OUT_OF_MEMORY;
  work->rows = scratch.at<float>(rows);
  if (a8) {
    work->task.q = work->prologue.q = scratch.at<int8_t>(q);
    work->task.sums = work->prologue.sums = scratch.at<int32_t>(sums);
    work->task.q_scales = work->prologue.scales = scratch.at<float>(scales);
  } else {
    work->task.x = wants_rows ? work->rows : changed ? call.sum.data : call.x.data;
  }
  if (is_gated(call.epilogue)) work->task.out = scratch.at<float>(wide);
  if (a8 || changed) run_prologue(work, parallel, workers);
  run_product(work, parallel);
  return EDGE_OK;
}

// An array that has to be there with `count` elements, or may be absent.
template <class Array>
bool fits(const Array& array, size_t count, bool required) {
  return array.data ? array.count == count : array.count == 0 && (!required || count == 0);
}

bool arguments_fit(const edge_linear_task& call, const Geometry& m) {
  const size_t tokens = call.x.count / m.columns;
  if (!is_one_of(call.activations, EDGE_A8, EDGE_F32) || !is_one_of(call.isa, EDGE_AUTO, EDGE_NEON_I8MM)) return false;
  if (!is_one_of(call.norm, EDGE_NO_NORM, EDGE_LAYER_NORM)) return false;
  if (!is_one_of(call.epilogue, EDGE_NO_EPILOGUE, EDGE_GELU_TANH_GATED)) return false;
  const bool norm = call.norm != EDGE_NO_NORM, gated = is_gated(call.epilogue);
  const size_t out_columns = gated ? m.rows / 2 : m.rows;
  if (call.x.count % m.columns != 0 || tokens > kMaxTokens || (gated && m.rows % 2 != 0)) return false;
  if (!fits(call.x, call.x.count, true) || !fits(call.skip, call.x.count, false)) return false;
  if (!fits(call.sum, call.x.count, false) || (call.sum.data && !call.skip.data)) return false;
  if (!fits(call.norm_weight, norm ? m.columns : 0, norm)) return false;
  if (!fits(call.norm_bias, call.norm == EDGE_LAYER_NORM ? m.columns : 0, false)) return false;
  return fits(call.bias, m.rows, false) && fits(call.out, tokens * out_columns, true);
}

}  // namespace
}  // namespace edge

extern "C" {

edge_status edge_linear_kernel(const void* packed, size_t packed_bytes, edge_activations activations, edge_isa isa,
                               const char** name) {
  edge_packed_header header;
  const edge_status status = edge_check(packed, packed_bytes, &header);
  if (status != EDGE_OK) return status;
  if (!name) return EDGE_BAD_ARGUMENT;
  const edge::Kernel* kernel;
  const edge_status found = edge::find_kernel(header, activations, isa, &kernel);
  if (found == EDGE_OK) *name = kernel->name;
  return found;
}

edge_status edge_linear(const edge_linear_task* call, const edge_parallel* parallel) {
  if (!call || (parallel && !parallel->run)) return EDGE_BAD_ARGUMENT;
  edge_packed_header header;
  const edge_status status = edge_check(call->packed, call->packed_bytes, &header);
  if (status != EDGE_OK) return status;
  edge::Work work = {};
  edge::LinearTask& task = work.task;
  task.matrix = edge::geometry_of(header);
  if (!edge::arguments_fit(*call, task.matrix)) return EDGE_BAD_ARGUMENT;
  const edge::Kernel* kernel;
  edge_isa isa;
  edge_status found = edge::find_kernel(header, call->activations, call->isa, &kernel);
  if (found == EDGE_OK) found = edge::pick_isa(call->isa, &isa);
  if (found != EDGE_OK || call->x.count == 0) return found;
  task.prefix = static_cast<const uint8_t*>(call->packed) + sizeof(header);
  task.tiles = task.prefix + task.matrix.prefix_bytes;
  task.tokens = call->x.count / header.columns;
  task.bias = call->bias.data;
  task.out = work.out = call->out.data;
  work.kernel = kernel->run;
  work.ops = &edge::float_ops(isa);
  work.epilogue = call->epilogue;
  work.out_columns = call->out.count / task.tokens;
  work.prologue.matrix = task.matrix;
  work.prologue.norm = call->norm;
  work.prologue.epsilon = call->epsilon;
  work.prologue.x = call->x.data;
  work.prologue.skip = call->skip.data;
  work.prologue.sum = call->sum.data;
  work.prologue.weight = call->norm_weight.data;
  work.prologue.bias = call->norm_bias.data;
  return edge::multiply(*call, &work, parallel);
}

}  // extern "C"
