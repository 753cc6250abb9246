// 16 float lanes of 64-bit ARM's base instructions: four registers. The functions are described in lanes_portable.h.
#pragma once

#include <arm_neon.h>

#include "streams.h"
#include "support.h"

namespace edge {
namespace {

struct NeonLanes {
  struct Floats {
    float32x4_t quarter[4];
  };
  struct Ints {
    int32x4_t quarter[4];
  };
  static constexpr int kAccumulators = 6;

  // The same function of all quarters.
  template <class Out, class F>
  static EDGE_INLINE Out make(F value) {
    return {{value(0), value(1), value(2), value(3)}};
  }

  static EDGE_INLINE Floats all(float value) {
    return make<Floats>([&](int) { return vdupq_n_f32(value); });
  }
  static EDGE_INLINE Floats zero() { return all(0.0f); }
  static EDGE_INLINE Ints no_ints() {
    return make<Ints>([](int) { return vdupq_n_s32(0); });
  }
  static EDGE_INLINE Floats load(const float* from) {
    return make<Floats>([&](int r) { return vld1q_f32(from + 4 * r); });
  }
  static EDGE_INLINE Floats load(const Half* from) {
    return make<Floats>([&](int r) {
      return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(from + 4 * r))));
    });
  }
  static EDGE_INLINE Floats load(const int8_t* from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t words[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
    return make<Floats>([&](int r) {
      return vcvtq_f32_s32(vmovl_s16(r % 2 ? vget_high_s16(words[r / 2]) : vget_low_s16(words[r / 2])));
    });
  }
  template <int Bits>
  static EDGE_INLINE Floats levels(const float* table, const uint8_t* stream) {
    const auto& places = CodeStream<Bits>::kPlaces;
    const uint8x16_t bytes = vreinterpretq_u8_u64(vdupq_n_u64(edge::load<uint64_t>(stream)));
    uint8x8_t codes[2];
    EDGE_UNROLL for (int h = 0; h < 2; ++h) {
      const uint16x8_t pairs = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, vld1q_u8(places.of_halves + 16 * h)));
      codes[h] = vmovn_u16(vshlq_u16(pairs, vld1q_s16(places.half_shifts + 8 * h)));
    }
    const uint8x16_t masked = vandq_u8(vcombine_u8(codes[0], codes[1]), vdupq_n_u8((1 << Bits) - 1));
    const uint8x16_t firsts = vshlq_n_u8(masked, 2);  // bytes of floats in the table
    return make<Floats>([&](int r) {
      const uint8x16_t copies = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100u));
      const uint8_t four[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
      const uint8x16_t lanes = vaddq_u8(vld1q_u8(four), vdupq_n_u8(static_cast<uint8_t>(4 * r)));
      return vreinterpretq_f32_u8(look_up<Bits>(table, vaddq_u8(vqtbl1q_u8(firsts, lanes), copies)));
    });
  }
  // Bytes of a table of 2^Bits floats.
  template <int Bits>
  static EDGE_INLINE uint8x16_t look_up(const float* table, uint8x16_t index) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(table);
    if (Bits == 2) return vqtbl1q_u8(vld1q_u8(bytes), index);
    if (Bits == 3) return vqtbl2q_u8({{vld1q_u8(bytes), vld1q_u8(bytes + 16)}}, index);
    return vqtbl4q_u8({{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}}, index);
  }
  static EDGE_INLINE void store(float* to, Floats x) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) vst1q_f32(to + 4 * r, x.quarter[r]);
  }
  static EDGE_INLINE void store(Half* to, Floats x) {
    EDGE_UNROLL for (int r = 0; r < 4; ++r) {
      vst1_u16(reinterpret_cast<uint16_t*>(to + 4 * r), vreinterpret_u16_f16(vcvt_f16_f32(x.quarter[r])));
    }
  }
  static EDGE_INLINE void store(int8_t* to, Ints x) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.quarter[0]), vqmovn_s32(x.quarter[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x.quarter[2]), vqmovn_s32(x.quarter[3]));
    vst1q_s8(to, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
  }

  static EDGE_INLINE Floats add(Floats a, Floats b) {
    return make<Floats>([&](int r) { return vaddq_f32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Floats sub(Floats a, Floats b) {
    return make<Floats>([&](int r) { return vsubq_f32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Floats mul(Floats a, Floats b) {
    return make<Floats>([&](int r) { return vmulq_f32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Floats div(Floats a, Floats b) {
    return make<Floats>([&](int r) { return vdivq_f32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return make<Floats>([&](int r) { return vfmaq_f32(c.quarter[r], a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Floats at_least(Floats x, Floats limit) {
    return make<Floats>(
        [&](int r) { return vbslq_f32(vcltq_f32(x.quarter[r], limit.quarter[r]), limit.quarter[r], x.quarter[r]); });
  }
  static EDGE_INLINE Floats at_most(Floats x, Floats limit) {
    return make<Floats>(
        [&](int r) { return vbslq_f32(vcgtq_f32(x.quarter[r], limit.quarter[r]), limit.quarter[r], x.quarter[r]); });
  }
  static EDGE_INLINE Floats if_less(Floats a, Floats b, Floats yes, Floats no) {
    return make<Floats>(
        [&](int r) { return vbslq_f32(vcltq_f32(a.quarter[r], b.quarter[r]), yes.quarter[r], no.quarter[r]); });
  }
  static EDGE_INLINE Floats abs(Floats x) {
    return make<Floats>([&](int r) { return vabsq_f32(x.quarter[r]); });
  }

  static EDGE_INLINE Ints magnitude(Floats x) {
    return make<Ints>([&](int r) { return vreinterpretq_s32_f32(vabsq_f32(x.quarter[r])); });
  }
  static EDGE_INLINE Ints larger(Ints a, Ints b) {
    return make<Ints>([&](int r) { return vmaxq_s32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Ints add(Ints a, Ints b) {
    return make<Ints>([&](int r) { return vaddq_s32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Ints rounded(Floats x) {
    return make<Ints>([&](int r) { return vcvtnq_s32_f32(x.quarter[r]); });
  }
  static EDGE_INLINE Floats floats(Ints x) {
    return make<Floats>([&](int r) { return vcvtq_f32_s32(x.quarter[r]); });
  }
  static EDGE_INLINE Floats half_power_of_two(Ints n) {
    return make<Floats>(
        [&](int r) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.quarter[r], vdupq_n_s32(126)), 23)); });
  }

  static EDGE_INLINE int32_t highest(Ints x) {
    const int32x4_t low = vmaxq_s32(x.quarter[0], x.quarter[1]), high = vmaxq_s32(x.quarter[2], x.quarter[3]);
    return vmaxvq_s32(vmaxq_s32(low, high));
  }
  static EDGE_INLINE float highest(Floats x) {
    const float32x4_t low = vmaxq_f32(x.quarter[0], x.quarter[1]), high = vmaxq_f32(x.quarter[2], x.quarter[3]);
    return vmaxvq_f32(vmaxq_f32(low, high));
  }
  static EDGE_INLINE int32_t sum(Ints x) {
    const int32x4_t low = vaddq_s32(x.quarter[0], x.quarter[1]), high = vaddq_s32(x.quarter[2], x.quarter[3]);
    return vaddvq_s32(vaddq_s32(low, high));
  }
  static EDGE_INLINE float sum(Floats x) {
    const float32x4_t even = vaddq_f32(x.quarter[0], x.quarter[2]), odd = vaddq_f32(x.quarter[1], x.quarter[3]);
    const float32x4_t four = vaddq_f32(even, odd);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
};

}  // namespace
}  // namespace edge
