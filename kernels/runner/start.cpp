// Where a program begins, so that none of a sysroot's start files is needed. The stack holds argc, then argv.
#include "libc.h"

namespace {
void nothing() {}

int start(int count, char** arguments, char**) {
  return main(count, arguments);
}
}  // namespace

extern "C" [[noreturn]] __attribute__((used, visibility("hidden"))) void edge_begin(long* stack,
                                                                                    void (*loader_fini)()) {
#ifdef EDGE_BIONIC
  static const void* const structors[8] = {};  // there are none, and Android's linker has run the libraries' own
  (void)loader_fini;
  __libc_init(stack, nullptr, start, structors);
#else
  // glibc before 2.34 calls `init`, later ones take one that is given for that of an older program
  __libc_start_main(start, static_cast<int>(stack[0]), reinterpret_cast<char**>(stack + 1), nothing, nothing,
                    loader_fini, stack);
  _exit(127);
#endif
}

#if defined(__x86_64__)
asm(R"(
  .text
  .globl _start
  .type _start, @function
_start:
  xorl %ebp, %ebp
  movq %rsp, %rdi
  movq %rdx, %rsi
  andq $-16, %rsp
  call edge_begin
  hlt
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl _start
  .type _start, %function
_start:
  mov x29, #0
  mov x30, #0
  mov x1, x0
  mov x0, sp
  bl edge_begin
  brk #0
)");
#endif
