// edge_pool: helpers that take chunks of a job beside the thread that brought it. A job never waits for a helper to
// begin, only for those that have begun to end: so it goes on when the machine gives the helpers no time.
#include "edge_kernels.h"
#include "support.h"

// Declared here and not by <pthread.h>: a build for a phone has no system headers.
extern "C" {
using PthreadId = uintptr_t;
struct MonotonicTime {
  long seconds, nanoseconds;
};
int pthread_create(PthreadId* id, const void* attributes, void* (*start)(void*), void* argument);
int pthread_join(PthreadId id, void** result);
PthreadId pthread_self(void);
int pthread_mutex_init(void* mutex, const void* attributes);
int pthread_mutex_lock(void* mutex);
int pthread_mutex_unlock(void* mutex);
int pthread_cond_init(void* condition, const void* attributes);
int pthread_cond_wait(void* condition, void* mutex);
int pthread_cond_signal(void* condition);
int pthread_cond_broadcast(void* condition);
int clock_gettime(int clock, MonotonicTime* time);
}

namespace edge {
namespace {

constexpr size_t kMaxThreads = 64;
constexpr int64_t kSpinNanoseconds = 50 * 1000;
constexpr int kPausesPerLook = 32;  // between two looks at the clock, which costs about as much
#if defined(__APPLE__)
constexpr int kMonotonic = 6;
#else
constexpr int kMonotonic = 1;
#endif
// Room for the mutex and the condition of every C library: 40 to 64 bytes.
struct alignas(16) Opaque {
  uint8_t bytes[128];
};

// The state of a job: open, or closed and left by so many helpers.
constexpr uint32_t kOpen = 1u << 31;

}  // namespace
}  // namespace edge

struct edge_pool {
  edge::Opaque callers;               // a mutex: one job at a time
  edge::Opaque lock, wake, finished;  // a mutex and its conditions, for those that sleep
  uint32_t jobs;                      // brought so far; sleepers look for a change
  uint32_t state;                     // kOpen plus the number of helpers inside
  uint32_t sleepers, caller_sleeps, stop;
  PthreadId caller;  // whose job it is, 0: nobody's
  size_t next;       // index that nobody has taken yet
  size_t count;
  void (*task)(void* work, size_t index);
  void* work;
  size_t helpers;
  PthreadId ids[edge::kMaxThreads];
};

namespace edge {
namespace {

template <class T>
T read(const T& value) {
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}

template <class T>
void write(T* value, T to) {
  __atomic_store_n(value, to, __ATOMIC_SEQ_CST);
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now() {
  MonotonicTime time = {};
  clock_gettime(kMonotonic, &time);
  return static_cast<int64_t>(time.seconds) * 1000000000 + time.nanoseconds;
}

// Whether `done` came true while it was worth waiting awake.
template <class Done>
bool spin_until(const Done& done) {
  const int64_t end = now() + kSpinNanoseconds;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      pause();
    }
  } while (now() < end);
  return done();
}

void take_chunks(edge_pool* pool) {
  for (;;) {
    const size_t index = __atomic_fetch_add(&pool->next, 1, __ATOMIC_RELAXED);
    if (index >= pool->count) return;
    pool->task(pool->work, index);
  }
}

// Into the job, if it is still open: then its fields stay as they are until the helper leaves.
bool enter(edge_pool* pool) {
  uint32_t state = read(pool->state);
  while (state & kOpen) {
    if (__atomic_compare_exchange_n(&pool->state, &state, state + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      return true;
    }
  }
  return false;
}

void leave(edge_pool* pool) {
  if (__atomic_sub_fetch(&pool->state, 1, __ATOMIC_SEQ_CST) != 0 || !read(pool->caller_sleeps)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_signal(&pool->finished);
  pthread_mutex_unlock(&pool->lock);
}

void sleep_until_job(edge_pool* pool, uint32_t seen) {
  pthread_mutex_lock(&pool->lock);
  __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
  while (read(pool->jobs) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
  __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&pool->lock);
}

void* help(void* argument) {
  edge_pool* pool = static_cast<edge_pool*>(argument);
  for (uint32_t seen = 0; !read(pool->stop);) {
    if (!spin_until([&] { return read(pool->jobs) != seen; })) sleep_until_job(pool, seen);
    seen = read(pool->jobs);
    if (!enter(pool)) continue;
    take_chunks(pool);
    leave(pool);
  }
  return nullptr;
}

// Let helpers know of a job: those that spin see it, at most `wanted` that sleep are woken.
void announce(edge_pool* pool, size_t wanted) {
  __atomic_add_fetch(&pool->jobs, 1, __ATOMIC_SEQ_CST);
  const size_t asleep = read(pool->sleepers);
  if (asleep == 0) return;
  pthread_mutex_lock(&pool->lock);
  for (size_t i = 0; i < smaller(asleep, wanted); ++i) pthread_cond_signal(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

void wait_for_helpers(edge_pool* pool) {
  if (spin_until([&] { return read(pool->state) == 0; })) return;
  pthread_mutex_lock(&pool->lock);
  write(&pool->caller_sleeps, 1u);
  while (read(pool->state) != 0) pthread_cond_wait(&pool->finished, &pool->lock);
  write(&pool->caller_sleeps, 0u);
  pthread_mutex_unlock(&pool->lock);
}

bool is_inside(const edge_pool* pool) {
  const PthreadId self = pthread_self();
  bool inside = read(pool->caller) == self;
  for (size_t i = 0; i < pool->helpers; ++i) inside |= pool->ids[i] == self;
  return inside;
}

void run(void* host, size_t count, void (*task)(void* work, size_t index), void* work) {
  edge_pool* pool = static_cast<edge_pool*>(host);
  if (count < 2 || !pool || pool->helpers == 0 || is_inside(pool)) {
    for (size_t i = 0; i < count; ++i) task(work, i);
    return;
  }
  pthread_mutex_lock(&pool->callers);
  write(&pool->caller, pthread_self());
  pool->task = task;
  pool->work = work;
  pool->count = count;
  pool->next = 0;
  write(&pool->state, kOpen);
  announce(pool, count - 1);
  take_chunks(pool);
  __atomic_and_fetch(&pool->state, ~kOpen, __ATOMIC_SEQ_CST);
  wait_for_helpers(pool);
  write(&pool->caller, PthreadId{0});
  pthread_mutex_unlock(&pool->callers);
}

}  // namespace
}  // namespace edge

extern "C" {

edge_pool* edge_pool_create(size_t threads) {
  if (threads == 0) return nullptr;
  edge_pool* pool = static_cast<edge_pool*>(malloc(sizeof(edge_pool)));
  if (!pool) return nullptr;
  memset(pool, 0, sizeof(edge_pool));
  pthread_mutex_init(&pool->callers, nullptr);
  pthread_mutex_init(&pool->lock, nullptr);
  pthread_cond_init(&pool->wake, nullptr);
  pthread_cond_init(&pool->finished, nullptr);
  const size_t wanted = edge::smaller(threads, edge::kMaxThreads) - 1;
  while (pool->helpers < wanted && pthread_create(&pool->ids[pool->helpers], nullptr, edge::help, pool) == 0) {
    ++pool->helpers;  // where the system gives fewer threads, those do
  }
  return pool;
}

void edge_pool_destroy(edge_pool* pool) {
  if (!pool) return;
  edge::write(&pool->stop, 1u);
  pthread_mutex_lock(&pool->lock);
  __atomic_add_fetch(&pool->jobs, 1, __ATOMIC_SEQ_CST);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
  for (size_t i = 0; i < pool->helpers; ++i) pthread_join(pool->ids[i], nullptr);
  free(pool);
}

edge_parallel edge_pool_parallel(edge_pool* pool) {
  return {pool, edge::run, pool ? pool->helpers + 1 : 1};
}

}  // extern "C"
