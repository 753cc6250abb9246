#include "device.h"

namespace edge {
namespace {

constexpr long kSecond = 1000000000;
// Zones without a sensor behind them read -274, -256, 0 or some such: a device in use is never that cold.
constexpr long kColdest_mc = -40000, kHottest_mc = 200000;

long clock_ns(int clock) {
  timespec now = {};
  clock_gettime(clock, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

bool read_number(const char* path, long& out) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char text[64];
  const ssize_t got = read(fd, text, sizeof(text) - 1);
  close(fd);
  if (got <= 0) return false;
  text[got] = 0;
  char* end = nullptr;
  out = strtol(text, &end, 10);
  return end != text;
}

}  // namespace

long now_ns() {
  return clock_ns(CLOCK_MONOTONIC);
}

long cpu_ns() {
  return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

void sleep_ns(long ns) {
  const long until = now_ns() + ns;
  const timespec at = {until / kSecond, until % kSecond};
  while (now_ns() < until) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
}

bool read_numbers(const List<const char*>& paths, List<long>& out) {
  out.size = 0;
  for (const char* path : paths) {
    long number;
    if (!read_number(path, number)) return false;
    out.add(number);
  }
  return paths.size != 0;
}

bool hottest_mc(const List<const char*>& paths, long& out) {
  bool found = false;
  for (const char* path : paths) {
    long number;
    if (!read_number(path, number) || number < kColdest_mc || number > kHottest_mc) continue;
    out = found && out > number ? out : number;
    found = true;
  }
  return found;
}

bool stay_on(const List<long>& cores, Failure& failure) {
  uint64_t mask[1024 / 64] = {};
  for (const long core : cores) mask[core / 64] |= uint64_t{1} << (core % 64);
  if (cores.size == 0 || sched_setaffinity(0, sizeof(mask), mask) == 0) return true;
  return fail(failure, "usage", "the run can't be kept on the cores of its plan: %s", strerror(errno));
}

bool drop_from_page_cache(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  fsync(fd);  // pages that are not on disk yet would stay
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
  return true;
}

long peak_bytes() {
  Text status;
  if (!read_file("/proc/self/status", status)) return 0;
  const char* line = strstr(status.data, "VmHWM:");
  const long peak = line ? 1024 * strtol(line + strlen("VmHWM:"), nullptr, 10) : 0;
  free(status.data);
  return peak;
}

void boot_id(char (&out)[40]) {
  Text id;
  out[0] = 0;
  if (read_file("/proc/sys/kernel/random/boot_id", id) && id.size < sizeof(out)) {
    memcpy(out, id.data, id.size + 1);
    if (char* end = strchr(out, '\n')) *end = 0;
  }
  free(id.data);
}

}  // namespace edge
