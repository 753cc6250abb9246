#include "task.h"

namespace edge {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// Bits of max |x|. As integers, magnitudes order like the floats they are, with infinities and NaNs above all others.
uint32_t largest_magnitude(const float* x, size_t count) {
  int32_t largest = 0;
  for (size_t k = 0; k < count; ++k) {
    const int32_t magnitude = load<int32_t>(x + k) & INT32_MAX;
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint32_t>(largest);
}

// rint(value), half to even, for |value| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
EDGE_INLINE int32_t round_to_int(float value) {
  const float shifted = value + 12582912.0f;
  return load<int32_t>(&shifted) - 0x4b400000;
}

// `count` activations of one token and group to `q`; returns the sum of the codes.
int32_t quantize_group(const float* x, size_t count, int8_t* q, float* scale) {
  const uint32_t largest = largest_magnitude(x, count);
  const float step = float_from_bits(largest) / 127.0f;
  const float inverse = 1.0f / step;
  if (largest >= kInfinityBits) {
    *scale = float_from_bits(0x7fc00000u);
    return 0;
  }
  if ((load<uint32_t>(&inverse) & INT32_MAX) >= kInfinityBits) {
    *scale = 0.0f;
    return 0;
  }
  *scale = step;
  int32_t sum = 0;
  for (size_t k = 0; k < count; ++k) {
    int32_t code = round_to_int(x[k] * inverse);
    code = code > 127 ? 127 : code;
    code = code < -127 ? -127 : code;
    q[k] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

}  // namespace

void quantize_activations(const Geometry& matrix, const float* x, size_t first, size_t end, int8_t* q, int32_t* sums,
                          float* scales) {
  for (size_t token = first; token < end; ++token) {
    const float* from = x + token * matrix.columns;
    int8_t* codes = q + token * matrix.padded_columns;
    memset(codes, 0, matrix.padded_columns);
    for (size_t group = 0; group < matrix.groups; ++group) {
      const size_t start = group * matrix.columns_of(0), width = smaller(matrix.columns_of(0), matrix.columns - start);
      const size_t at = token * matrix.groups + group;
      sums[at] = quantize_group(from + start, width, codes + start, scales + at);
    }
  }
}

}  // namespace edge
