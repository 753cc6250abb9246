// How a call spreads its work over the host's threads.
#pragma once

#include "edge_kernels.h"
#include "support.h"

namespace edge {
namespace {

constexpr size_t kUnknownThreads = 16;  // for hosts that don't say: they spread what they get
constexpr size_t kMaxWorkers = 256;

using Piece = void (*)(void* work, size_t worker, size_t index);

// Pieces of a job, which workers take one after the other: who is held up takes fewer.
struct Job {
  void* work;
  Piece piece;
  size_t count, next;
};

void take_pieces(void* argument, size_t worker) {
  Job* job = static_cast<Job*>(argument);
  for (;;) {
    const size_t index = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (index >= job->count) return;
    job->piece(job->work, worker, index);
  }
}

// piece(work, worker, index) for every index < count; worker < workers, and no two at once have the same.
EDGE_INLINE void run_pieces(const edge_parallel* parallel, size_t workers, size_t count, Piece piece, void* work) {
  Job job = {work, piece, count, 0};
  if (parallel && workers > 1 && count > 1) {
    parallel->run(parallel->host, smaller(workers, count), take_pieces, &job);
  } else {
    take_pieces(&job, 0);
  }
}

// Threads for `amount` of work when each should have `least` of it, or waking it costs more than it brings.
EDGE_INLINE size_t workers_for(const edge_parallel* parallel, uint64_t amount, uint64_t least) {
  if (!parallel || amount < 2 * least) return 1;
  const size_t threads = parallel->threads ? smaller(parallel->threads, kMaxWorkers) : kUnknownThreads;
  return smaller<uint64_t>(amount / least, threads);
}

EDGE_INLINE size_t pieces_of(size_t count, size_t piece) {
  return (count + piece - 1) / piece;
}

}  // namespace
}  // namespace edge
