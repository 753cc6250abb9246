// edge-sampler --interval-ms N --columns FILE --out FILE -- PROGRAM ARGUMENTS..
//
// Starts PROGRAM and reads numbers from small files (sysfs, procfs) while it runs; ends with its exit code, 128 +
// signal where one ended it. SIGTERM, SIGINT and SIGHUP are passed on; when the sampler itself is killed, PROGRAM goes
// on.
//
// FILE of columns: lines `name TAB unit TAB path [TAB key [TAB every]]`. `{pid}` in a path is PROGRAM's. The value is
// the first integer after `key` on its line, or of the whole file where the key is empty. A column with `every` above 1
// is read in every so many-th tick, after the others, and rests for 500 times the CPU time that it took: smaps_rollup
// of a large process takes milliseconds. Columns of one file that follow each other cost one read.
//
// Output, appended: `time_ns sweep_ns name..`, then `begin monotonic boottime realtime interval boot`, then per tick
// the monotonic time, how long the reading took, and an integer per column or `-`. `suspended time ns` tells that the
// machine slept. At last `end cpu_ns N wall_ns N ticks N late N lost N code N`: its own CPU time, ticks that came late
// and lines that found no room. A full disk doesn't end anything: lines are lost until there is room again.
#include "libc.h"

namespace {

constexpr int kMostColumns = 1024, kMostRead = 8192, kMostPath = 1024, kMostWidth = 21, kMostBoot = 40;
constexpr int64_t kMillisecond = 1000000, kRestPerCost = 500, kSuspended = 100 * kMillisecond;
constexpr int kUsage = 2, kCantRun = 127;

struct Column {
  const char *name, *path, *key;
  int64_t every;
  int file;  // the first of the columns before it that have the same path
  int fd;
  int64_t rests_until;
};

Column columns[kMostColumns];
int column_count;
char definitions[256 << 10], text[kMostRead + 1], line[kMostColumns * kMostWidth + 64];
size_t text_bytes, line_bytes;
const char* out_path;
int out = -1;
int64_t lost_lines;
pid_t program;

size_t length(const char* string) {
  size_t bytes = 0;
  while (string[bytes]) ++bytes;
  return bytes;
}

bool equal(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_word(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

[[noreturn]] void fail(const char* what, const char* which, int code) {
  const char* parts[] = {"edge-sampler: ", what, which, "\n"};
  for (const char* part : parts) write(2, part, length(part));
  _exit(code);
}

int64_t now_ns(int clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

// ---- numbers in text ----

// The integer that begins at the first digit before the end of the text, or of the line.
bool integer_after(const char* from, bool whole_text, int64_t* value) {
  const char* at = from;
  while (*at && !is_digit(*at) && (whole_text || *at != '\n')) ++at;
  if (!is_digit(*at)) return false;
  const bool negative = at > from && at[-1] == '-';
  uint64_t sum = 0;
  for (; is_digit(*at); ++at) {
    if (sum > (uint64_t{1} << 63) / 10 - 1) return false;
    sum = sum * 10 + static_cast<uint64_t>(*at - '0');
  }
  *value = negative ? -static_cast<int64_t>(sum) : static_cast<int64_t>(sum);
  return true;
}

// What follows the key, which is no part of a longer word (`Pss:` isn't in `SwapPss:`); null where it isn't there.
const char* after_key(const char* key) {
  const size_t bytes = length(key);
  for (size_t at = 0; at + bytes <= text_bytes; ++at) {
    if (at && is_word(text[at - 1])) continue;
    size_t same = 0;
    while (same < bytes && text[at + same] == key[same]) ++same;
    if (same == bytes) return text + at + bytes;
  }
  return nullptr;
}

// ---- files ----

bool put_path(const char* pattern, char* path) {
  size_t at = 0;
  while (*pattern && at + kMostWidth < kMostPath) {
    if (pattern[0] == '{' && pattern[1] == 'p' && pattern[2] == 'i' && pattern[3] == 'd' && pattern[4] == '}') {
      char digits[kMostWidth];
      int count = 0;
      for (pid_t rest = program; rest || !count; rest /= 10) digits[count++] = static_cast<char>('0' + rest % 10);
      while (count) path[at++] = digits[--count];
      pattern += 5;
    } else {
      path[at++] = *pattern++;
    }
  }
  path[at] = 0;
  return !*pattern;
}

// Read a file again from its start. What was opened before may be gone (a core that went offline, a program that
// replaced itself): then nothing is read, and the next tick opens anew.
void read_file(Column& file) {
  char path[kMostPath];
  text_bytes = 0;
  if (file.fd < 0 && put_path(file.path, path)) file.fd = open(path, O_RDONLY | O_CLOEXEC);
  if (file.fd >= 0) {
    const ssize_t got = pread(file.fd, text, kMostRead, 0);
    text_bytes = got > 0 ? static_cast<size_t>(got) : 0;
    if (!text_bytes) {
      close(file.fd);
      file.fd = -1;
    }
  }
  text[text_bytes] = 0;
}

// ---- output ----

void put(char c) {
  line[line_bytes++] = c;
}

void put(const char* string) {
  while (*string && line_bytes + 1 < sizeof(line)) put(*string++);
}

void put(int64_t value) {
  char digits[kMostWidth];
  int count = 0;
  uint64_t rest = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  do digits[count++] = static_cast<char>('0' + rest % 10);
  while (rest /= 10);
  if (value < 0) put('-');
  while (count) put(digits[--count]);
}

void put_field(const char* name, int64_t value) {
  put('\t');
  if (*name) put(name), put('\t');
  put(value);
}

// A line that a full disk or a kill cut off is taken away: what is left of its last number would be another number.
void cut_torn_line() {
  off_t end = lseek(out, 0, SEEK_END);
  for (char last = 0; end > 0 && pread(out, &last, 1, end - 1) == 1 && last != '\n';) --end;
  ftruncate(out, end);
}

void end_line() {
  put('\n');
  if (out < 0 && (out = open(out_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) >= 0) cut_torn_line();
  const ssize_t written = out < 0 ? 0 : write(out, line, line_bytes);
  if (written != static_cast<ssize_t>(line_bytes)) {
    ++lost_lines;
    if (written > 0) cut_torn_line();
  }
  line_bytes = 0;
}

// ---- columns ----

char* field(char** rest) {
  char* start = *rest;
  char* end = start;
  while (*end && *end != '\t') ++end;
  *rest = *end ? end + 1 : end;
  *end = 0;
  return start;
}

void add_column(char* definition) {
  if (column_count == kMostColumns) fail("too many columns", "", kUsage);
  Column& column = columns[column_count];
  column.name = field(&definition);
  field(&definition);  // the unit is for those who read the output
  column.path = field(&definition);
  column.key = field(&definition);
  if (!integer_after(field(&definition), true, &column.every) || column.every < 1) column.every = 1;
  if (!*column.name || !*column.path) fail("a column needs a name, a unit and a path", "", kUsage);
  const bool shares = column_count && equal(column.path, columns[column_count - 1].path);
  column.file = shares ? columns[column_count - 1].file : column_count;
  column.fd = -1;
  ++column_count;
}

void read_columns(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  size_t bytes = 0;
  for (ssize_t got = 1; fd >= 0 && got > 0 && bytes < sizeof(definitions) - 1; bytes += static_cast<size_t>(got)) {
    got = read(fd, definitions + bytes, sizeof(definitions) - 1 - bytes);
    if (got < 0) got = 0;
  }
  if (fd < 0 || bytes == sizeof(definitions) - 1) fail("can't read the columns of ", path, kUsage);
  close(fd);
  for (char* at = definitions; *at;) {
    char* start = at;
    while (*at && *at != '\n') ++at;
    if (*at) *at++ = 0;
    if (*start) add_column(start);
  }
}

// What tells this boot of the machine from another: clocks of two can't be compared.
void put_boot() {
  const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  const ssize_t got = fd < 0 ? 0 : read(fd, text, kMostBoot);
  for (ssize_t i = 0; i < got && (is_word(text[i]) || text[i] == '-'); ++i) put(text[i]);
  if (fd >= 0) close(fd);
}

void begin_output(int64_t interval) {
  put("time_ns\tsweep_ns");
  for (int i = 0; i < column_count; ++i) put('\t'), put(columns[i].name);
  end_line();
  put("begin");
  const int clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME};
  for (int clock : clocks) put_field("", now_ns(clock));
  put_field("", interval);
  put('\t');
  put_boot();
  end_line();
}

// ---- ticks ----

struct Reading {
  bool there;
  int64_t value;
};
Reading readings[kMostColumns];

void sweep(bool slow, int64_t tick, int64_t at) {
  int held = -1;  // whose text is in the buffer
  for (int i = 0; i < column_count; ++i) {
    Column& column = columns[i];
    if ((column.every > 1) != slow) continue;
    readings[i].there = false;
    if (slow && (tick % column.every || at < column.rests_until)) continue;
    if (held != column.file) {
      const int64_t before = slow ? now_ns(CLOCK_PROCESS_CPUTIME_ID) : 0;
      read_file(columns[column.file]);
      held = column.file;
      if (slow) column.rests_until = at + kRestPerCost * (now_ns(CLOCK_PROCESS_CPUTIME_ID) - before);
    } else if (slow) {
      column.rests_until = columns[column.file].rests_until;
    }
    const char* from = *column.key ? after_key(column.key) : text;
    readings[i].there = from && integer_after(from, !*column.key, &readings[i].value);
  }
}

void sample(int64_t tick) {
  const int64_t start = now_ns(CLOCK_MONOTONIC);
  sweep(false, tick, start);
  const int64_t end = now_ns(CLOCK_MONOTONIC);
  sweep(true, tick, start);
  put(start);
  put_field("", end - start);
  for (int i = 0; i < column_count; ++i) {
    put('\t');
    readings[i].there ? put(readings[i].value) : put('-');
  }
  end_line();
}

// The monotonic clock stands still while the machine sleeps, the other one doesn't.
void tell_suspension() {
  static int64_t known = -1;
  const int64_t apart = now_ns(CLOCK_BOOTTIME) - now_ns(CLOCK_MONOTONIC);
  if (known >= 0 && apart - known > kSuspended) {
    put("suspended");
    put_field("", now_ns(CLOCK_MONOTONIC));
    put_field("", apart - known);
    end_line();
  }
  known = apart;
}

// ---- the program ----

void pass_on(int signal) {
  if (program > 0) kill(program, signal);
}

void wake(int) {}

// Returns when PROGRAM has taken the place of this one's copy: its /proc files are its own from then on.
void start(char** command) {
  int fds[2];
  char byte;
  if (pipe2(fds, O_CLOEXEC)) fail("can't make a pipe", "", kCantRun);
  program = fork();
  if (program < 0) fail("can't start a process", "", kCantRun);
  if (!program) {
    execvp(command[0], command);
    write(fds[1], "!", 1);
    _exit(kCantRun);
  }
  close(fds[1]);
  if (read(fds[0], &byte, 1) == 1) fail("can't run ", command[0], kCantRun);
  close(fds[0]);
}

void handle_signals() {
  const auto ignore = reinterpret_cast<void (*)(int)>(1);
  const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
  for (int number : numbers)
    if (signal(number, pass_on) == ignore) signal(number, ignore);  // nohup said so
  signal(SIGCHLD, wake);
}

bool ended(int* code) {
  int status = 0;
  if (waitpid(program, &status, WNOHANG) != program) return false;
  *code = status & 0x7f ? 128 + (status & 0x7f) : (status >> 8) & 0xff;
  return true;
}

int watch(int64_t interval) {
  int code = 0;
  int64_t tick = 0, late = 0;
  const int64_t begun = now_ns(CLOCK_MONOTONIC), begun_cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
  bool over = false;
  for (int64_t next = begun; !over; ++tick) {
    sample(tick);
    next += interval;
    if (const int64_t behind = now_ns(CLOCK_MONOTONIC) - next; behind >= 0) {
      next += (behind / interval + 1) * interval;
      ++late;
    }
    const timespec until{static_cast<long>(next / 1000000000), static_cast<long>(next % 1000000000)};
    while (!(over = ended(&code)) && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr)) {
    }
    tell_suspension();
  }
  sample(0);  // counters up to its end
  put("end");
  put_field("cpu_ns", now_ns(CLOCK_PROCESS_CPUTIME_ID) - begun_cpu);
  put_field("wall_ns", now_ns(CLOCK_MONOTONIC) - begun);
  put_field("ticks", tick + 1);
  put_field("late", late);
  put_field("lost", lost_lines);
  put_field("code", code);
  end_line();
  return code;
}

int64_t number(const char* from) {
  int64_t value = 0;
  return integer_after(from, true, &value) ? value : 0;
}

}  // namespace

int main(int count, char** arguments) {
  const char* columns_path = nullptr;
  int64_t interval = 0;
  int at = 1;
  for (; at + 1 < count && !equal(arguments[at], "--"); at += 2) {
    const char* option = arguments[at];
    if (equal(option, "--interval-ms")) {
      interval = number(arguments[at + 1]) * kMillisecond;
    } else if (equal(option, "--columns")) {
      columns_path = arguments[at + 1];
    } else if (equal(option, "--out")) {
      out_path = arguments[at + 1];
    } else {
      fail("no such option: ", option, kUsage);
    }
  }
  if (at + 1 >= count || interval <= 0 || !columns_path || !out_path)
    fail("usage: edge-sampler --interval-ms N --columns FILE --out FILE -- PROGRAM ARGUMENTS..", "", kUsage);
  read_columns(columns_path);
  begin_output(interval);
  start(arguments + at + 1);
  handle_signals();
  _exit(watch(interval));
}
