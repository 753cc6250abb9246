// What a kernel may use: fixed-size types, a few C library functions, and nothing of C++'s runtime. So the same sources
// link into a Python package, an app or a static runner without a C++ library.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if __STDC_HOSTED__
#include <stdlib.h>
#include <string.h>
#else  // a build for a phone has no headers of a C library
extern "C" {
void* memcpy(void* to, const void* from, size_t bytes);
void* memset(void* to, int value, size_t bytes);
void* malloc(size_t bytes);
void free(void* memory);
}
// The compiler doesn't take these for its own without a host: each load of a few bytes would be a call.
#define memcpy __builtin_memcpy
#define memset __builtin_memset
#endif

#define EDGE_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define EDGE_UNROLL _Pragma("unroll")
#else
#define EDGE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace edge {
namespace {  // internal linkage: each instruction set's file keeps its own copy, or the linker would mix them

template <class T>
EDGE_INLINE T load(const void* from) {
  T value;
  memcpy(&value, from, sizeof(value));
  return value;
}

// Whether a caller's enumeration is one of first .. last. C may have put any number there, which C++ must not read as
// the enumeration.
template <class Enumeration>
EDGE_INLINE bool is_one_of(const Enumeration& value, Enumeration first, Enumeration last) {
  static_assert(sizeof(Enumeration) == sizeof(int32_t), "C's enumerations are ints");
  const int32_t number = load<int32_t>(&value);
  return number >= first && number <= last;
}

template <class T>
EDGE_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

EDGE_INLINE float float_from_bits(uint32_t bits) {
  return load<float>(&bits);
}

// IEEE half precision, as stored: packed weights may lie at an odd address.
struct __attribute__((packed)) Half {
  uint16_t bits;
};

// Exact for every fp16 value: normal numbers by moving the exponent's bias, subnormal ones by one exact subtraction.
EDGE_INLINE float float_from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude < 0x0400u) {
    const float value = float_from_bits(0x3f000000u + magnitude) - 0.5f;
    return sign ? -value : value;
  }
  const uint32_t bias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  return float_from_bits(sign | ((magnitude << 13) + bias));
}

// Rounds to half, ties to even.
EDGE_INLINE Half half_from_float(float value) {
  const uint32_t bits = load<uint32_t>(&value), magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65536 and beyond
  if (magnitude < 0x38800000u) {  // below 2^-14: the sum with 0.5 has a half's subnormal steps in its last bits
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (load<uint32_t>(&shifted) - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1) - (112u << 23)) >> 13))};
}

}  // namespace
}  // namespace edge
