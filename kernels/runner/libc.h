// What the programs here need of a C library, declared by hand: they are built without its headers, and so that one
// file runs on glibc, musl and Android's bionic. All of it is the same on x86-64 and aarch64 Linux.
//
// The build makes the libraries to link against from this file: a function is in the library that the `// in` line
// above it names.
#pragma once

#include <stddef.h>
#include <stdint.h>

using ssize_t = long;
using pid_t = int;
using off_t = long;

struct timespec {
  long tv_sec;
  long tv_nsec;
};

constexpr int O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_TRUNC = 01000, O_APPEND = 02000,
              O_CLOEXEC = 02000000;
constexpr int SEEK_SET = 0, SEEK_END = 2;
constexpr int CLOCK_REALTIME = 0, CLOCK_MONOTONIC = 1, CLOCK_PROCESS_CPUTIME_ID = 2, CLOCK_BOOTTIME = 7;
constexpr int TIMER_ABSTIME = 1;
constexpr int SIGHUP = 1, SIGINT = 2, SIGKILL = 9, SIGTERM = 15, SIGCHLD = 17;
constexpr int WNOHANG = 1;
constexpr int LOCK_EX = 2, LOCK_NB = 4;
constexpr int ENOENT = 2, EWOULDBLOCK = 11, EINVAL = 22, ENOSPC = 28, EROFS = 30, EDQUOT = 122;
constexpr int PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MAP_ANONYMOUS = 32;
constexpr int POSIX_FADV_DONTNEED = 4;
constexpr int RTLD_NOW = 2;

extern "C" {
int main(int count, char** arguments);  // ours, which C++ would rename in a program without a host

// in libc
int open(const char* path, int flags, ...);
int close(int fd);
ssize_t read(int fd, void* to, size_t bytes);
ssize_t pread(int fd, void* to, size_t bytes, off_t offset);
ssize_t write(int fd, const void* from, size_t bytes);
off_t lseek(int fd, off_t offset, int whence);
int ftruncate(int fd, off_t bytes);
int fsync(int fd);
int flock(int fd, int operation);
int posix_fadvise(int fd, off_t offset, off_t bytes, int advice);
int rename(const char* from, const char* to);
int pipe2(int fds[2], int flags);

pid_t getpid();
pid_t fork();
int execvp(const char* file, char* const arguments[]);
pid_t waitpid(pid_t pid, int* status, int options);
int kill(pid_t pid, int signal);
int sched_setaffinity(pid_t pid, size_t bytes, const void* mask);
void (*signal(int signal, void (*handler)(int)))(int);
[[noreturn]] void _exit(int code);

int clock_gettime(int clock, timespec* now);
int clock_nanosleep(int clock, int flags, const timespec* until, timespec* left);

void* memcpy(void* to, const void* from, size_t bytes);
void* memset(void* to, int value, size_t bytes);
void* malloc(size_t bytes);
void* realloc(void* memory, size_t bytes);
void free(void* memory);
void* mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset);

size_t strlen(const char* text);
int strcmp(const char* a, const char* b);
int strncmp(const char* a, const char* b, size_t bytes);
char* strchr(const char* text, int character);
char* strstr(const char* text, const char* part);
long strtol(const char* text, char** end, int base);
double strtod(const char* text, char** end);
char* strerror(int error);
int snprintf(char* to, size_t bytes, const char* format, ...);
int vsnprintf(char* to, size_t bytes, const char* format, __builtin_va_list arguments);

// in libdl
void* dlopen(const char* path, int flags);
void* dlsym(void* library, const char* name);
char* dlerror();

// in libm
double exp(double x);
double log(double x);

#ifdef EDGE_BIONIC
// in libc
int* __errno();
[[noreturn]] void __libc_init(void* arguments, void (*)(), int (*main)(int, char**, char**), const void* structors);
#else
// in libc
int* __errno_location();
int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*init)(), void (*fini)(),
                      void (*loader_fini)(), void* stack_end);
#endif
}

#ifdef EDGE_BIONIC
#define errno (*__errno())
#else
#define errno (*__errno_location())
#endif
