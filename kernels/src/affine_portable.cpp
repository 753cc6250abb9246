// Kernels in plain C++: the twin that every other instruction set is compared with, and the one for CPUs without them.
#include "affine_a8.h"
#include "affine_f32.h"

namespace edge {
namespace {

struct Portable {
  struct Ints {
    int32_t lane[4 * kRows];  // four sums per row, in the order of the codes
  };
  struct Floats {
    float lane[kRows];
  };
  static constexpr int kTokens = 4;
  template <uint32_t Bits>
  static constexpr int tiles = 1;
  template <uint32_t Bits>
  static constexpr int code_offset = 0;

  static Floats zero() { return {}; }

  static Ints start(int32_t value) {
    Ints ints = {};
    for (size_t row = 0; row < kRows; ++row) ints.lane[4 * row] = value;
    return ints;
  }

  static Ints start(const uint8_t* zeros, int32_t offset, int32_t sum) {
    Ints ints = {};
    for (size_t row = 0; row < kRows; ++row) ints.lane[4 * row] = (offset - zeros[row]) * sum;
    return ints;
  }

  template <uint32_t Bits, int Tokens, int Tiles>
  static void dot32(const uint8_t* step, size_t, const int8_t* q, size_t q_stride, Ints (&sum)[Tokens][Tiles]) {
    for (size_t quad = 0; quad < kStep / 4; ++quad) {
      int16_t codes[4 * kRows];
      for (size_t lane = 0; lane < 4 * kRows; ++lane) codes[lane] = code_in_lane<Bits>(step, quad, lane);
      for (int token = 0; token < Tokens; ++token) {
        const int8_t* a = q + token * q_stride + 4 * quad;
        const int16_t four[4] = {a[0], a[1], a[2], a[3]};
        int16_t activations[4 * kRows];
        for (size_t row = 0; row < kRows; ++row) memcpy(activations + 4 * row, four, sizeof(four));
        int32_t* into = sum[token][0].lane;
        for (size_t lane = 0; lane < 4 * kRows; ++lane) into[lane] += codes[lane] * activations[lane];
      }
    }
  }

  static Floats scales(const uint8_t* halves) {
    Floats floats;
    for (size_t row = 0; row < kRows; ++row) floats.lane[row] = float_from_half(load<uint16_t>(halves + 2 * row));
    return floats;
  }

  static Floats add_scaled(Floats total, const Ints& sum, const Floats& scales) {
    for (size_t row = 0; row < kRows; ++row) {
      const int32_t* four = sum.lane + 4 * row;
      total.lane[row] += static_cast<float>(four[0] + four[1] + four[2] + four[3]) * scales.lane[row];
    }
    return total;
  }

  static Floats scaled(Floats floats, float factor) {
    for (float& lane : floats.lane) lane *= factor;
    return floats;
  }

  static Floats add(Floats a, const Floats& b) {
    for (size_t row = 0; row < kRows; ++row) a.lane[row] += b.lane[row];
    return a;
  }

  static Floats load_floats(const float* from) { return load<Floats>(from); }

  static void store(float* to, const Floats& floats) { memcpy(to, floats.lane, sizeof(floats.lane)); }
};

}  // namespace
}  // namespace edge

EDGE_A8_KERNEL(2, portable, Portable)
EDGE_A8_KERNEL(3, portable, Portable)
EDGE_A8_KERNEL(4, portable, Portable)
EDGE_A8_KERNEL(8, portable, Portable)
EDGE_F32_KERNEL(2, portable)
EDGE_F32_KERNEL(3, portable)
EDGE_F32_KERNEL(4, portable)
EDGE_F32_KERNEL(8, portable)
