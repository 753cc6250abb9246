// 64-bit ARM's base instructions. A register is a quarter of an atom, of a quad or of a line: 4 rows. NeonQuarter does
// the bytes of one; Neon does whole atoms with it, quarter by quarter.
#pragma once

#include "dense.h"
#include "lanes_neon.h"

namespace edge {
namespace {

constexpr size_t kQuarter = kLine / 4;

struct NeonQuarter {
  using Bytes = uint8x16_t;

  static EDGE_INLINE Bytes atom(const uint8_t* from) { return vld1q_u8(from); }

  template <int Shift>
  static EDGE_INLINE Bytes shifted(Bytes x) {
    if constexpr (Shift > 0) return vshrq_n_u8(x, Shift);
    if constexpr (Shift < 0) return vshlq_n_u8(x, -Shift);
    return x;
  }
  template <int Shift, int Mask>
  static EDGE_INLINE Bytes field(Bytes x) {
    if constexpr (255 >> Shift == Mask) return shifted<Shift>(x);
    return vandq_u8(shifted<Shift>(x), vdupq_n_u8(Mask));
  }
  template <int Shift>
  static EDGE_INLINE Bytes with_bit2(Bytes x, Bytes y) {
    return vbslq_u8(vdupq_n_u8(4), shifted<Shift>(y), x);
  }
  static EDGE_INLINE Bytes flipped(Bytes x) { return veorq_u8(x, vdupq_n_u8(128)); }

  template <bool Flip>
  static EDGE_INLINE Bytes line(const uint8_t* table) {
    return Flip ? flipped(atom(table)) : atom(table);
  }
  static EDGE_INLINE Bytes lookup(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }

  // The four rows' tables stand one after another, over 1, 2 or 4 registers.
  template <uint32_t Bits, bool Flip>
  static EDGE_INLINE Bytes lookup_rows(const uint8_t* table, Bytes index) {
    constexpr uint32_t row = 0x01010101u << Bits;
    const uint32x4_t rows = {0, row, 2 * row, 3 * row};
    index = vorrq_u8(index, vreinterpretq_u8_u32(rows));
    if constexpr (Bits == 2) return vqtbl1q_u8(line<Flip>(table), index);
    if constexpr (Bits == 3) return vqtbl2q_u8({{line<Flip>(table), line<Flip>(table + kLine)}}, index);
    if constexpr (Bits == 4) {
      const uint8x16x4_t lines = {
          {line<Flip>(table), line<Flip>(table + kLine), line<Flip>(table + 2 * kLine), line<Flip>(table + 3 * kLine)}};
      return vqtbl4q_u8(lines, index);
    }
  }

  static EDGE_INLINE Bytes even_bytes(Bytes x, Bytes y) { return vtrn1q_u8(x, y); }
  static EDGE_INLINE Bytes odd_bytes(Bytes x, Bytes y) { return vtrn2q_u8(x, y); }
  static EDGE_INLINE Bytes even_words(Bytes x, Bytes y) {
    return vreinterpretq_u8_u16(vtrn1q_u16(vreinterpretq_u16_u8(x), vreinterpretq_u16_u8(y)));
  }
  static EDGE_INLINE Bytes odd_words(Bytes x, Bytes y) {
    return vreinterpretq_u8_u16(vtrn2q_u16(vreinterpretq_u16_u8(x), vreinterpretq_u16_u8(y)));
  }
};

struct Neon : NeonLanes {
  static constexpr int kFloatTokens = 2;

  struct Bytes {
    uint8x16_t quarter[4];
  };

  static EDGE_INLINE Bytes atom(const uint8_t* from) {
    return make<Bytes>([&](int r) { return vld1q_u8(from + kQuarter * r); });
  }
  template <int Shift, int Mask>
  static EDGE_INLINE Bytes field(const Bytes& x) {
    return make<Bytes>([&](int r) { return NeonQuarter::field<Shift, Mask>(x.quarter[r]); });
  }
  template <int Shift>
  static EDGE_INLINE Bytes with_bit2(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return NeonQuarter::with_bit2<Shift>(x.quarter[r], y.quarter[r]); });
  }
  static EDGE_INLINE Bytes flipped(const Bytes& x) {
    return make<Bytes>([&](int r) { return NeonQuarter::flipped(x.quarter[r]); });
  }
  template <bool Flip>
  static EDGE_INLINE Bytes line(const uint8_t* table) {
    return make<Bytes>([&](int r) { return NeonQuarter::line<Flip>(table + kQuarter * r); });
  }
  static EDGE_INLINE Bytes lookup(const Bytes& table, const Bytes& index) {
    return make<Bytes>([&](int r) { return NeonQuarter::lookup(table.quarter[r], index.quarter[r]); });
  }
  template <uint32_t Bits, bool Flip>
  static EDGE_INLINE Bytes lookup_rows(const uint8_t* table, const Bytes& index) {
    return make<Bytes>(
        [&](int r) { return NeonQuarter::lookup_rows<Bits, Flip>(table + kQuarter * r, index.quarter[r]); });
  }
  static EDGE_INLINE Bytes even_bytes(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return NeonQuarter::even_bytes(x.quarter[r], y.quarter[r]); });
  }
  static EDGE_INLINE Bytes odd_bytes(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return NeonQuarter::odd_bytes(x.quarter[r], y.quarter[r]); });
  }
  static EDGE_INLINE Bytes even_words(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return NeonQuarter::even_words(x.quarter[r], y.quarter[r]); });
  }
  static EDGE_INLINE Bytes odd_words(const Bytes& x, const Bytes& y) {
    return make<Bytes>([&](int r) { return NeonQuarter::odd_words(x.quarter[r], y.quarter[r]); });
  }

  static EDGE_INLINE Ints spread(int32_t value) {
    return make<Ints>([&](int) { return vdupq_n_s32(value); });
  }
  static EDGE_INLINE Ints bytes(const uint8_t* from) {
    const uint8x16_t all = vld1q_u8(from);
    const uint16x8_t words[2] = {vmovl_u8(vget_low_u8(all)), vmovl_u8(vget_high_u8(all))};
    return make<Ints>([&](int r) {
      return vreinterpretq_s32_u32(vmovl_u16(r % 2 ? vget_high_u16(words[r / 2]) : vget_low_u16(words[r / 2])));
    });
  }
  static EDGE_INLINE Ints minus(const Ints& a, const Ints& b) {
    return make<Ints>([&](int r) { return vsubq_s32(a.quarter[r], b.quarter[r]); });
  }
  static EDGE_INLINE Ints times(const Ints& a, int32_t factor) {
    return make<Ints>([&](int r) { return vmulq_n_s32(a.quarter[r], factor); });
  }
  template <int Shift>
  static EDGE_INLINE Ints shifted_add(const Ints& a, const Ints& b) {
    return make<Ints>([&](int r) { return vaddq_s32(vshlq_n_s32(a.quarter[r], Shift), b.quarter[r]); });
  }
  template <int K>
  static EDGE_INLINE Ints column(const Bytes& quad) {
    return make<Ints>([&](int r) {
      const uint32x4_t words = vreinterpretq_u32_u8(quad.quarter[r]);
      if constexpr (K == 3) return vreinterpretq_s32_u32(vshrq_n_u32(words, 24));
      if constexpr (K == 0) return vreinterpretq_s32_u32(vandq_u32(words, vdupq_n_u32(255)));
      if constexpr (K == 1 || K == 2) {
        return vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(words, 8 * K), vdupq_n_u32(255)));
      }
    });
  }
};

}  // namespace
}  // namespace edge
