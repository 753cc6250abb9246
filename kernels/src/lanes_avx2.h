// 16 float lanes of AVX2 with F16C and FMA3: two registers. The functions are described in lanes_portable.h.
#pragma once

#include <immintrin.h>

#include "streams.h"
#include "support.h"

namespace edge {
namespace {

struct Avx2Lanes {
  struct Floats {
    __m256 half[2];
  };
  struct Ints {
    __m256i half[2];
  };
  static constexpr int kAccumulators = 6;

  // The same function of both halves.
  template <class Out, class F>
  static EDGE_INLINE Out make(F value) {
    return {{value(0), value(1)}};
  }

  static EDGE_INLINE Floats all(float value) { return {{_mm256_set1_ps(value), _mm256_set1_ps(value)}}; }
  static EDGE_INLINE Floats zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
  static EDGE_INLINE Ints no_ints() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static EDGE_INLINE Floats load(const float* from) { return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}}; }
  static EDGE_INLINE Floats load(const Half* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return {{_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))}};
  }
  static EDGE_INLINE Floats load(const int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
             _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))}};
  }
  // Of an index, the instruction looks at the low 3 bits: a table of 4 is there twice, one of 16 is two tables.
  template <int Bits>
  static EDGE_INLINE Floats levels(const float* table, const uint8_t* stream) {
    const auto& places = CodeStream<Bits>::kPlaces;
    const __m256i bytes = _mm256_set1_epi64x(edge::load<int64_t>(stream));
    const __m256 low = Bits == 2 ? _mm256_broadcast_ps(reinterpret_cast<const __m128*>(table)) : _mm256_loadu_ps(table);
    return make<Floats>([&](int h) {
      const auto* place = reinterpret_cast<const __m256i*>(places.of_words) + h;
      const auto* shift = reinterpret_cast<const __m256i*>(places.word_shifts) + h;
      const __m256i words = _mm256_shuffle_epi8(bytes, _mm256_load_si256(place));
      const __m256i codes = _mm256_srlv_epi32(words, _mm256_load_si256(shift));
      const __m256 found = _mm256_permutevar8x32_ps(low, codes);
      if (Bits < 4) return found;
      const __m256 others = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + (Bits < 4 ? 0 : 8)), codes);
      return _mm256_blendv_ps(found, others, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
    });
  }
  static EDGE_INLINE void store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.half[0]);
    _mm256_storeu_ps(to + 8, x.half[1]);
  }
  static EDGE_INLINE void store(Half* to, Floats x) {
    __m128i* halves = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.half[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.half[1], _MM_FROUND_TO_NEAREST_INT));
  }
  static EDGE_INLINE void store(int8_t* to, Ints x) {
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(x.half[0]), _mm256_extracti128_si256(x.half[0], 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(x.half[1]), _mm256_extracti128_si256(x.half[1], 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
  }

  static EDGE_INLINE Floats add(Floats a, Floats b) {
    return make<Floats>([&](int h) { return _mm256_add_ps(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Floats sub(Floats a, Floats b) {
    return make<Floats>([&](int h) { return _mm256_sub_ps(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Floats mul(Floats a, Floats b) {
    return make<Floats>([&](int h) { return _mm256_mul_ps(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Floats div(Floats a, Floats b) {
    return make<Floats>([&](int h) { return _mm256_div_ps(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return make<Floats>([&](int h) { return _mm256_fmadd_ps(a.half[h], b.half[h], c.half[h]); });
  }
  // where one of two is NaN, these instructions return the second
  static EDGE_INLINE Floats at_least(Floats x, Floats limit) {
    return make<Floats>([&](int h) { return _mm256_max_ps(limit.half[h], x.half[h]); });
  }
  static EDGE_INLINE Floats at_most(Floats x, Floats limit) {
    return make<Floats>([&](int h) { return _mm256_min_ps(limit.half[h], x.half[h]); });
  }
  static EDGE_INLINE Floats if_less(Floats a, Floats b, Floats yes, Floats no) {
    return make<Floats>([&](int h) {
      return _mm256_blendv_ps(no.half[h], yes.half[h], _mm256_cmp_ps(a.half[h], b.half[h], _CMP_LT_OQ));
    });
  }
  static EDGE_INLINE Floats abs(Floats x) {
    return make<Floats>([&](int h) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.half[h]); });
  }

  static EDGE_INLINE Ints magnitude(Floats x) {
    return make<Ints>(
        [&](int h) { return _mm256_and_si256(_mm256_castps_si256(x.half[h]), _mm256_set1_epi32(INT32_MAX)); });
  }
  static EDGE_INLINE Ints larger(Ints a, Ints b) {
    return make<Ints>([&](int h) { return _mm256_max_epi32(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Ints add(Ints a, Ints b) {
    return make<Ints>([&](int h) { return _mm256_add_epi32(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Ints rounded(Floats x) {
    return make<Ints>([&](int h) { return _mm256_cvtps_epi32(x.half[h]); });
  }
  static EDGE_INLINE Floats floats(Ints x) {
    return make<Floats>([&](int h) { return _mm256_cvtepi32_ps(x.half[h]); });
  }
  static EDGE_INLINE Floats half_power_of_two(Ints n) {
    return make<Floats>([&](int h) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.half[h], _mm256_set1_epi32(126)), 23));
    });
  }

  static EDGE_INLINE int32_t highest(Ints x) {
    const __m256i eight = _mm256_max_epi32(x.half[0], x.half[1]);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  }
  static EDGE_INLINE float highest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.half[0], x.half[1]);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static EDGE_INLINE int32_t sum(Ints x) {
    const __m256i eight = _mm256_add_epi32(x.half[0], x.half[1]);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  }
  static EDGE_INLINE float sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.half[0], x.half[1]);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace
}  // namespace edge
