// 16 float lanes in plain C++: what every other set of lanes is compared with.
//
// A set of lanes is a struct with Floats, Ints (16 of each) and the functions below. All round as IEEE says, once an
// operation; NaN goes in and comes out of at_least and at_most; sum adds (l, l + 8), (l, l + 4), (l, l + 2), (l, l +
// 1).
#pragma once

#include "streams.h"
#include "support.h"

namespace edge {
namespace {

// a * b + c rounded once. Without the instruction: the product of two floats is exact as a double; the sum is rounded
// to odd, so that the second rounding, to float, can't fall on a tie that the first one made.
EDGE_INLINE float fused_multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  const double product = static_cast<double>(a) * b, sum = product + c;
  const double rest = sum - product, error = (product - (sum - rest)) + (c - rest);  // exactly what `sum` lost
  int64_t bits = load<int64_t>(&sum);
  if ((error > 0 || error < 0) && !(bits & 1)) bits += (error > 0) == (sum > 0) ? 1 : -1;
  return static_cast<float>(load<double>(&bits));
#endif
}

struct PortableLanes {
  struct Floats {
    float lane[16];
  };
  struct Ints {
    int32_t lane[16];
  };
  static constexpr int kAccumulators = 6;  // products of an attention block that stay in registers

  template <class Out, class F>
  static EDGE_INLINE Out make(F value) {
    Out out;
    for (int l = 0; l < 16; ++l) out.lane[l] = value(l);
    return out;
  }

  static Floats all(float value) {
    return make<Floats>([&](int) { return value; });
  }
  static Floats zero() { return all(0.0f); }
  static Ints no_ints() { return {}; }
  static Floats load(const float* from) { return edge::load<Floats>(from); }
  static Floats load(const Half* from) {
    return make<Floats>([&](int l) { return float_from_half(from[l].bits); });
  }
  static Floats load(const int8_t* from) {
    return make<Floats>([&](int l) { return static_cast<float>(from[l]); });
  }
  // table[code] for 16 codes of 2, 3 or 4 bits; reads 8 bytes from `stream` on, which may be more than it has.
  template <int Bits>
  static Floats levels(const float* table, const uint8_t* stream) {
    const uint64_t codes = edge::load<uint64_t>(stream);
    return make<Floats>([&](int l) { return table[codes >> (Bits * l) & ((1u << Bits) - 1)]; });
  }
  static void store(float* to, const Floats& x) { memcpy(to, x.lane, sizeof(x.lane)); }
  static void store(Half* to, const Floats& x) {
    for (int l = 0; l < 16; ++l) to[l] = half_from_float(x.lane[l]);
  }
  static void store(int8_t* to, const Ints& x) {
    for (int l = 0; l < 16; ++l) to[l] = static_cast<int8_t>(smaller(127, x.lane[l] < -128 ? -128 : x.lane[l]));
  }

  static Floats add(const Floats& a, const Floats& b) {
    return make<Floats>([&](int l) { return a.lane[l] + b.lane[l]; });
  }
  static Floats sub(const Floats& a, const Floats& b) {
    return make<Floats>([&](int l) { return a.lane[l] - b.lane[l]; });
  }
  static Floats mul(const Floats& a, const Floats& b) {
    return make<Floats>([&](int l) { return a.lane[l] * b.lane[l]; });
  }
  static Floats div(const Floats& a, const Floats& b) {
    return make<Floats>([&](int l) { return a.lane[l] / b.lane[l]; });
  }
  static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return make<Floats>([&](int l) { return fused_multiply_add(a.lane[l], b.lane[l], c.lane[l]); });
  }
  static Floats at_least(const Floats& x, const Floats& limit) {
    return make<Floats>([&](int l) { return x.lane[l] < limit.lane[l] ? limit.lane[l] : x.lane[l]; });
  }
  static Floats at_most(const Floats& x, const Floats& limit) {
    return make<Floats>([&](int l) { return x.lane[l] > limit.lane[l] ? limit.lane[l] : x.lane[l]; });
  }
  // a < b ? yes : no
  static Floats if_less(const Floats& a, const Floats& b, const Floats& yes, const Floats& no) {
    return make<Floats>([&](int l) { return a.lane[l] < b.lane[l] ? yes.lane[l] : no.lane[l]; });
  }
  static Floats abs(const Floats& x) {
    return make<Floats>([&](int l) { return x.lane[l] < 0 ? -x.lane[l] : x.lane[l] + 0.0f; });
  }

  // Bits without the sign: as integers they order like the magnitudes, infinities and NaNs above all others.
  static Ints magnitude(const Floats& x) {
    return make<Ints>([&](int l) { return edge::load<int32_t>(&x.lane[l]) & INT32_MAX; });
  }
  static Ints larger(const Ints& a, const Ints& b) {
    return make<Ints>([&](int l) { return a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]; });
  }
  static Ints add(const Ints& a, const Ints& b) {
    return make<Ints>([&](int l) { return a.lane[l] + b.lane[l]; });
  }
  // rint, half to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
  static Ints rounded(const Floats& x) {
    return make<Ints>([&](int l) {
      const float shifted = x.lane[l] + 12582912.0f;
      return edge::load<int32_t>(&shifted) - 0x4b400000;
    });
  }
  static Floats floats(const Ints& x) {
    return make<Floats>([&](int l) { return static_cast<float>(x.lane[l]); });
  }
  // 2^(n - 1) for n = -125 .. 128, 0 for n = -126.
  static Floats half_power_of_two(const Ints& n) {
    return make<Floats>([&](int l) { return float_from_bits(static_cast<uint32_t>(n.lane[l] + 126) << 23); });
  }

  static int32_t highest(const Ints& x) {
    int32_t highest = x.lane[0];
    for (int l = 1; l < 16; ++l) highest = x.lane[l] > highest ? x.lane[l] : highest;
    return highest;
  }
  static float highest(const Floats& x) {
    float highest = x.lane[0];
    for (int l = 1; l < 16; ++l) highest = x.lane[l] > highest ? x.lane[l] : highest;
    return highest;
  }
  static int32_t sum(const Ints& x) {
    int32_t sum = 0;
    for (int l = 0; l < 16; ++l) sum += x.lane[l];
    return sum;
  }
  static float sum(Floats x) {
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) x.lane[l] += x.lane[l + width];
    }
    return x.lane[0];
  }
};

}  // namespace
}  // namespace edge
