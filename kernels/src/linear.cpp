// edge_linear: quantize the tokens, then let the host's threads take chunks of tiles.
#include "dispatch.h"

namespace edge {
namespace {

constexpr size_t kChunkWork = 128 * 1024;  // bytes of weights times tokens: some microseconds, well above a hand-over
constexpr size_t kChunkTiles = 6;          // a multiple of every register block
constexpr size_t kChunkTokens = 8;

struct Work {
  LinearTask task;
  LinearKernel kernel;
  size_t chunk_tiles;
  int8_t* q;
  int32_t* sums;
  float* q_scales;
};

void quantize_chunk(void* argument, size_t index) {
  const Work& work = *static_cast<const Work*>(argument);
  const size_t first = index * kChunkTokens, end = smaller(work.task.tokens, first + kChunkTokens);
  quantize_activations(work.task.matrix, work.task.x, first, end, work.q, work.sums, work.q_scales);
}

void multiply_chunk(void* argument, size_t index) {
  const Work& work = *static_cast<const Work*>(argument);
  const size_t first = index * work.chunk_tiles;
  work.kernel(work.task, first, smaller(work.task.matrix.tiles, first + work.chunk_tiles));
}

void run(const edge_parallel* parallel, size_t count, void (*task)(void*, size_t), Work* work) {
  if (parallel && count > 1) {
    parallel->run(parallel->host, count, task, work);
    return;
  }
  for (size_t i = 0; i < count; ++i) task(work, i);
}

size_t tiles_per_chunk(const LinearTask& task) {
  const uint64_t tile_bytes = task.matrix.payload_bytes / task.matrix.tiles;
  const size_t fit = kChunkWork / (tile_bytes * task.tokens + 1);
  return (fit / kChunkTiles + 1) * kChunkTiles;
}

size_t chunks(size_t count, size_t chunk) {
  return (count + chunk - 1) / chunk;
}

edge_status multiply_quantized(Work* work, const edge_parallel* parallel) {
  const Geometry& m = work->task.matrix;
  const size_t tokens = work->task.tokens;
  const size_t sums_bytes = tokens * m.groups * sizeof(int32_t), scales_bytes = tokens * m.groups * sizeof(float);
  uint8_t* scratch = static_cast<uint8_t*>(malloc(sums_bytes + scales_bytes + tokens * m.padded_columns));
  if (!scratch) return EDGE_OUT_OF_MEMORY;
  work->sums = reinterpret_cast<int32_t*>(scratch);
  work->q_scales = reinterpret_cast<float*>(scratch + sums_bytes);
  work->q = reinterpret_cast<int8_t*>(scratch + sums_bytes + scales_bytes);
  work->task.sums = work->sums;
  work->task.q_scales = work->q_scales;
  work->task.q = work->q;
  run(parallel, chunks(tokens, kChunkTokens), quantize_chunk, work);
  run(parallel, chunks(m.tiles, work->chunk_tiles), multiply_chunk, work);
  free(scratch);
  return EDGE_OK;
}

bool shapes_match(const Geometry& m, size_t x_count, size_t bias_count, size_t out_count) {
  const size_t tokens = x_count / m.columns;
  return x_count % m.columns == 0 && out_count % m.rows == 0 && out_count / m.rows == tokens &&
         (bias_count == 0 || bias_count == m.rows);
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
  if (!call) return EDGE_BAD_ARGUMENT;
  edge_packed_header header;
  const edge_status status = edge_check(call->packed, call->packed_bytes, &header);
  if (status != EDGE_OK) return status;
  edge::Work work = {};
  work.task.matrix = edge::geometry_of(header);
  const size_t bias_count = call->bias.data ? call->bias.count : 0;
  if (!edge::shapes_match(work.task.matrix, call->x.count, bias_count, call->out.count)) return EDGE_BAD_ARGUMENT;
  if (call->bias.data && bias_count == 0) return EDGE_BAD_ARGUMENT;
  const edge::Kernel* kernel;
  const edge_status found = edge::find_kernel(header, call->activations, call->isa, &kernel);
  if (found != EDGE_OK || call->x.count == 0) return found;
  if (!call->x.data || !call->out.data || (parallel && !parallel->run)) return EDGE_BAD_ARGUMENT;
  if (call->norm != EDGE_NO_NORM || call->epilogue != EDGE_NO_EPILOGUE || call->skip.data) return EDGE_UNSUPPORTED;
  work.kernel = kernel->run;
  work.task.prefix = static_cast<const uint8_t*>(call->packed) + sizeof(header);
  work.task.tiles = work.task.prefix + work.task.matrix.prefix_bytes;
  work.task.tokens = call->x.count / header.columns;
  work.task.x = call->x.data;
  work.task.bias = call->bias.data;
  work.task.out = call->out.data;
  work.chunk_tiles = edge::tiles_per_chunk(work.task);
  if (call->activations == EDGE_A8) return edge::multiply_quantized(&work, parallel);
  edge::run(parallel, edge::chunks(work.task.matrix.tiles, work.chunk_tiles), edge::multiply_chunk, &work);
  return EDGE_OK;
}

}  // extern "C"
