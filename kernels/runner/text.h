// Text and errors without a C++ library: a string that grows, a file's content, a failure with its code.
#pragma once

#include "libc.h"

namespace edge {

// Why something ended. code: as in the journal's last entry (`usage`, `library`, `model`, ...).
struct Failure {
  const char* code = "ok";
  char message[600] = "";
};

// Always false, so that `return fail(...)` says what happened and passes it on.
__attribute__((format(printf, 3, 4))) inline bool fail(Failure& failure, const char* code, const char* format, ...) {
  __builtin_va_list arguments;
  __builtin_va_start(arguments, format);
  vsnprintf(failure.message, sizeof(failure.message), format, arguments);
  __builtin_va_end(arguments);
  failure.code = code;
  return false;
}

inline void say(const char* text) {
  const char* parts[] = {"edge-runner: ", text, "\n"};
  for (const char* part : parts) {
    if (write(2, part, strlen(part)) < 0) return;
  }
}

// A list in memory that grows. T is plain data.
template <class T>
struct List {
  T* data = nullptr;
  size_t size = 0, room = 0;

  void add(const T& value) {
    reserve(1);
    data[size++] = value;
  }
  void reserve(size_t more) {
    if (size + more <= room) return;
    room = 2 * (size + more);
    data = static_cast<T*>(realloc(data, room * sizeof(T)));
    if (data) return;
    say("there is no memory left");
    _exit(1);
  }
  T* begin() const { return data; }
  T* end() const { return data + size; }
};

struct Text : List<char> {
  void add(const char* text) { add(text, strlen(text)); }
  void add(const char* text, size_t bytes) {
    reserve(bytes + 1);  // there is always room for the end
    memcpy(data + size, text, bytes);
    size += bytes;
    data[size] = 0;
  }
  void add(long number) {
    char digits[24];
    add(digits, static_cast<size_t>(snprintf(digits, sizeof(digits), "%ld", number)));
  }
  void add(double number) {
    char digits[40];
    add(digits, static_cast<size_t>(snprintf(digits, sizeof(digits), "%.17g", number)));
  }
  // As a JSON string. What isn't plain ASCII becomes a question mark: it may be no UTF-8.
  void add_quoted(const char* text) {
    add("\"");
    for (; *text; ++text) {
      const bool plain = *text >= ' ' && *text < 127;
      if (*text == '"' || *text == '\\') add("\\");
      add(plain ? text : (*text == '\n' ? " " : "?"), 1);
    }
    add("\"");
  }
  void clear() { size = 0; }
};

// Appends all of a file, also of one of /proc, which has no size. False where it can't be read; errno says why.
inline bool read_file(const char* path, Text& out) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t got = 1;
  while (got > 0) {
    out.reserve(65536);
    got = read(fd, out.data + out.size, 65535);
    if (got > 0) out.size += static_cast<size_t>(got);
  }
  const int error = errno;
  close(fd);
  out.data[out.size] = 0;
  errno = error;
  return got == 0;
}

}  // namespace edge
