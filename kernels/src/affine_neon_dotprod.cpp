// Kernels for ARMv8.2 with dotprod. `sdot` wants signed bytes: 8-bit codes go in as code - 128, others fit as they are.
#include <arm_neon.h>

#include "affine_a8.h"

namespace edge {
namespace {

template <int Shift, int Mask>
EDGE_INLINE uint8x16_t field(uint8x16_t value) {
  uint8x16_t shifted = value;
  if constexpr (Shift > 0) shifted = vshrq_n_u8(value, Shift);
  return vandq_u8(shifted, vdupq_n_u8(Mask));
}

template <int Shift>
EDGE_INLINE uint8x16_t with_bit2(uint8x16_t low, uint8x16_t high) {
  if constexpr (Shift < 0) return vorrq_u8(low, vandq_u8(vshlq_n_u8(high, -Shift), vdupq_n_u8(4)));
  if constexpr (Shift >= 0) return vorrq_u8(low, field<Shift, 4>(high));
}

// The 8 quads of a quarter of a step: 4 rows, 16 bytes out of every atom.
template <uint32_t Bits>
EDGE_INLINE void unpack(const uint8_t* step, int8x16_t (&quads)[8]) {
  uint8x16_t codes[8];
  if constexpr (Bits == 8) {
    EDGE_UNROLL for (int j = 0; j < 8; ++j) codes[j] = veorq_u8(vld1q_u8(step + 64 * j), vdupq_n_u8(128));
  } else if constexpr (Bits == 4) {
    EDGE_UNROLL for (int atom = 0; atom < 4; ++atom) {
      const uint8x16_t both = vld1q_u8(step + 64 * atom);
      codes[2 * atom] = field<0, 15>(both);
      codes[2 * atom + 1] = vshrq_n_u8(both, 4);
    }
  } else {
    EDGE_UNROLL for (int atom = 0; atom < 2; ++atom) {
      const uint8x16_t all = vld1q_u8(step + 64 * atom);
      codes[4 * atom] = field<0, 3>(all);
      codes[4 * atom + 1] = field<2, 3>(all);
      codes[4 * atom + 2] = field<4, 3>(all);
      codes[4 * atom + 3] = vshrq_n_u8(all, 6);
    }
  }
  if constexpr (Bits == 3) {
    const uint8x16_t high = vld1q_u8(step + 128);
    codes[0] = with_bit2<-2>(codes[0], high);
    codes[1] = with_bit2<-1>(codes[1], high);
    codes[2] = with_bit2<0>(codes[2], high);
    codes[3] = with_bit2<1>(codes[3], high);
    codes[4] = with_bit2<2>(codes[4], high);
    codes[5] = with_bit2<3>(codes[5], high);
    codes[6] = with_bit2<4>(codes[6], high);
    codes[7] = with_bit2<5>(codes[7], high);
  }
  EDGE_UNROLL for (int j = 0; j < 8; ++j) quads[j] = vreinterpretq_s8_u8(codes[j]);
}

struct NeonDotprod {
  struct Ints {
    int32x4_t quarter[4];
  };
  struct Floats {
    float32x4_t quarter[4];
  };
  static constexpr int kTokens = 4;
  template <uint32_t Bits>
  static constexpr int tiles = 1;
  template <uint32_t Bits>
  static constexpr int code_offset = Bits == 8 ? 128 : 0;

  static EDGE_INLINE Floats zero() {
    const float32x4_t none = vdupq_n_f32(0.0f);
    return {{none, none, none, none}};
  }

  static EDGE_INLINE Ints start(int32_t value) {
    const int32x4_t all = vdupq_n_s32(value);
    return {{all, all, all, all}};
  }

  static EDGE_INLINE Ints start(const uint8_t* zeros, int32_t offset, int32_t sum) {
    Ints ints;
    const uint8x16_t bytes = vld1q_u8(zeros);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    const uint16x4_t words[4] = {vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)};
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      const int32x4_t zero = vreinterpretq_s32_u32(vmovl_u16(words[r]));
      ints.quarter[r] = vmulq_n_s32(vsubq_s32(vdupq_n_s32(offset), zero), sum);
    }
    return ints;
  }

  template <uint32_t Bits, int Tokens, int Tiles>
  static EDGE_INLINE void dot32(const uint8_t* step, size_t, const int8_t* q, size_t q_stride,
                                Ints (&sum)[Tokens][Tiles]) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      int8x16_t quads[8];
      unpack<Bits>(step + 16 * r, quads);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const int8x16_t a = vld1q_s8(q + i * q_stride), b = vld1q_s8(q + i * q_stride + 16);
        int32x4_t into = sum[i][0].quarter[r];
        into = vdotq_laneq_s32(into, quads[0], a, 0);
        into = vdotq_laneq_s32(into, quads[1], a, 1);
        into = vdotq_laneq_s32(into, quads[2], a, 2);
        into = vdotq_laneq_s32(into, quads[3], a, 3);
        into = vdotq_laneq_s32(into, quads[4], b, 0);
        into = vdotq_laneq_s32(into, quads[5], b, 1);
        into = vdotq_laneq_s32(into, quads[6], b, 2);
        sum[i][0].quarter[r] = vdotq_laneq_s32(into, quads[7], b, 3);
      }
    }
  }

  static EDGE_INLINE Floats scales(const uint8_t* halves) {
    Floats floats;
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(halves + 8 * r));
      floats.quarter[r] = vcvt_f32_f16(vreinterpret_f16_u16(bits));
    }
    return floats;
  }

  static EDGE_INLINE Floats add_scaled(Floats total, const Ints& sum, const Floats& scales) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      const float32x4_t product = vmulq_f32(vcvtq_f32_s32(sum.quarter[r]), scales.quarter[r]);
      total.quarter[r] = vaddq_f32(total.quarter[r], product);
    }
    return total;
  }

  static EDGE_INLINE Floats scaled(Floats floats, float factor) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) floats.quarter[r] = vmulq_n_f32(floats.quarter[r], factor);
    return floats;
  }

  static EDGE_INLINE Floats add(Floats a, const Floats& b) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) a.quarter[r] = vaddq_f32(a.quarter[r], b.quarter[r]);
    return a;
  }

  static EDGE_INLINE Floats load_floats(const float* from) {
    return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
  }

  static EDGE_INLINE void store(float* to, const Floats& floats) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) vst1q_f32(to + 4 * r, floats.quarter[r]);
  }
};

}  // namespace
}  // namespace edge

EDGE_A8_KERNEL(2, neon_dotprod, NeonDotprod)
EDGE_A8_KERNEL(3, neon_dotprod, NeonDotprod)
EDGE_A8_KERNEL(4, neon_dotprod, NeonDotprod)
EDGE_A8_KERNEL(8, neon_dotprod, NeonDotprod)
