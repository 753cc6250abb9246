// What `edge bench kernels` times in native code: a pass over many matrices, so that Python's call is paid once per
// pass and not once per product, and two probes of the machine. It is compiled on demand for the machine that it runs
// on (-march=native), belongs to no library, and finds the kernels among the symbols that the process has loaded.
#include <stddef.h>
#include <stdint.h>

#include "edge_kernels.h"

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

constexpr size_t kPieces = 8;  // per thread, so that one that is held up loses a piece to the others
constexpr size_t kLine = 64;

using Line = uint64_t __attribute__((vector_size(64), aligned(64)));

// Four lines a turn, one stream; the sums escape at the end, so that the compiler keeps the reads.
void read_lines(const uint8_t* from, size_t bytes) {
  const Line* line = reinterpret_cast<const Line*>(from);
  Line a = {}, b = {}, c = {}, d = {};
  for (const Line* end = line + bytes / kLine; line != end; line += 4) {
    a |= line[0];
    b |= line[1];
    c |= line[2];
    d |= line[3];
  }
  a |= b | c | d;
  uint64_t any = 0;
  for (size_t i = 0; i < kLine / sizeof any; ++i) any |= a[i];
  __asm__ volatile("" : : "r"(any));
}

struct Reading {
  const uint8_t* data;
  size_t piece_bytes;
};

void read_piece(void* work, size_t index) {
  const Reading& reading = *static_cast<const Reading*>(work);
  read_lines(reading.data + index * reading.piece_bytes, reading.piece_bytes);
}

// Chains of int8 products long enough to hide their latency; `operations` counts a multiplication and an addition as 2.
constexpr size_t kChains = 16;
constexpr size_t kTurns = 100000;

#if defined(__AVX512VNNI__)
constexpr size_t kProducts = 64;
void multiply_int8(void*, size_t) {
  __m512i sums[kChains] = {}, codes = _mm512_set1_epi8(3), q = _mm512_set1_epi8(5);
  for (size_t turn = 0; turn < kTurns; ++turn) {
    _Pragma("GCC unroll 16") for (size_t i = 0; i < kChains; ++i) {
      sums[i] = _mm512_dpbusd_epi32(sums[i], codes, q);
      __asm__ volatile("" : "+v"(sums[i]));
    }
  }
}
#elif defined(__AVX2__)
constexpr size_t kProducts = 32;
void multiply_int8(void*, size_t) {
  const __m256i codes = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1);
  __m256i sums[kChains / 2] = {}, q = _mm256_set1_epi8(5);
  for (size_t turn = 0; turn < 2 * kTurns; ++turn) {
    _Pragma("GCC unroll 16") for (size_t i = 0; i < kChains / 2; ++i) {
      __asm__("" : "+x"(q));  // else the product would be taken out of the loop
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), one));
      __asm__ volatile("" : "+x"(sums[i]));
    }
  }
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr size_t kProducts = 16;
void multiply_int8(void*, size_t) {
  int32x4_t sums[kChains] = {};
  const int8x16_t codes = vdupq_n_s8(3), q = vdupq_n_s8(5);
  for (size_t turn = 0; turn < kTurns; ++turn) {
    _Pragma("GCC unroll 16") for (size_t i = 0; i < kChains; ++i) {
      sums[i] = vdotq_s32(sums[i], codes, q);
      __asm__ volatile("" : "+w"(sums[i]));
    }
  }
}
#else
constexpr size_t kProducts = 0;  // no int8 dot product: the peak isn't known
void multiply_int8(void*, size_t) {}
#endif

void run(edge_pool* pool, size_t count, void (*task)(void*, size_t), void* work) {
  if (pool) {
    const edge_parallel parallel = edge_pool_parallel(pool);
    parallel.run(parallel.host, count, task, work);
    return;
  }
  for (size_t i = 0; i < count; ++i) task(work, i);
}

}  // namespace

extern "C" {

// One product with each of `count` blobs of `blob_bytes`; `task` has everything but the blob. Null pool: this thread.
EDGE_API int bench_linear(const uint8_t* const* blobs, size_t count, size_t blob_bytes, int activations, int isa,
                          const float* x, size_t x_count, float* out, size_t out_count, edge_pool* pool) {
  edge_linear_task task = {};
  task.packed_bytes = blob_bytes;
  task.activations = static_cast<edge_activations>(activations);
  task.isa = static_cast<edge_isa>(isa);
  task.x = {x, x_count};
  task.out = {out, out_count};
  edge_parallel parallel = {};
  if (pool) parallel = edge_pool_parallel(pool);
  for (size_t i = 0; i < count; ++i) {
    task.packed = blobs[i];
    const edge_status status = edge_linear(&task, pool ? &parallel : nullptr);
    if (status != EDGE_OK) return status;
  }
  return EDGE_OK;
}

// Reads `bytes` of memory once. Returns how many were read.
EDGE_API size_t bench_read(const uint8_t* data, size_t bytes, size_t threads, edge_pool* pool) {
  const size_t pieces = threads * kPieces, piece_bytes = bytes / pieces / (4 * kLine) * (4 * kLine);
  Reading reading = {data, piece_bytes};
  run(pool, pieces, read_piece, &reading);
  return pieces * piece_bytes;
}

// Multiplies int8 values in registers on every thread. Returns the operations done, 0 where the CPU has no such
// product.
EDGE_API double bench_int8(size_t threads, edge_pool* pool) {
  run(pool, threads * kPieces, multiply_int8, nullptr);
  return 2.0 * static_cast<double>(threads * kPieces * kTurns * kChains * kProducts);
}

}  // extern "C"
