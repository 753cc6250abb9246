// 16 float lanes of AVX-512 (F, BW, VL): one register. The functions are described in lanes_portable.h.
#pragma once

#include <immintrin.h>

#include "streams.h"
#include "support.h"

namespace edge {
namespace {

struct Avx512Lanes {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kAccumulators = 24;

  static EDGE_INLINE Floats all(float value) { return _mm512_set1_ps(value); }
  static EDGE_INLINE Floats zero() { return _mm512_setzero_ps(); }
  static EDGE_INLINE Ints no_ints() { return _mm512_setzero_si512(); }
  static EDGE_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static EDGE_INLINE Floats load(const Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static EDGE_INLINE Floats load(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  // Of an index, the instruction looks at the low 4 bits: shorter tables are there several times.
  template <int Bits>
  static EDGE_INLINE Floats levels(const float* table, const uint8_t* stream) {
    const auto& places = CodeStream<Bits>::kPlaces;
    Floats levels;
    if (Bits == 4) levels = _mm512_loadu_ps(table);
    if (Bits == 3)
      levels = _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_loadu_pd(reinterpret_cast<const double*>(table))));
    if (Bits == 2) levels = _mm512_broadcast_f32x4(_mm_loadu_ps(table));
    const Ints bytes = _mm512_set1_epi64(edge::load<int64_t>(stream));
    const Ints words = _mm512_shuffle_epi8(bytes, _mm512_load_si512(places.of_words));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, _mm512_load_si512(places.word_shifts)), levels);
  }
  static EDGE_INLINE void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static EDGE_INLINE void store(Half* to, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static EDGE_INLINE void store(int8_t* to, Ints x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(x));
  }

  static EDGE_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static EDGE_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static EDGE_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static EDGE_INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static EDGE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  // where one of two is NaN, these instructions return the second
  static EDGE_INLINE Floats at_least(Floats x, Floats limit) { return _mm512_max_ps(limit, x); }
  static EDGE_INLINE Floats at_most(Floats x, Floats limit) { return _mm512_min_ps(limit, x); }
  static EDGE_INLINE Floats if_less(Floats a, Floats b, Floats yes, Floats no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  static EDGE_INLINE Floats abs(Floats x) { return _mm512_abs_ps(x); }

  static EDGE_INLINE Ints magnitude(Floats x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MAX));
  }
  static EDGE_INLINE Ints larger(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static EDGE_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static EDGE_INLINE Ints rounded(Floats x) { return _mm512_cvtps_epi32(x); }
  static EDGE_INLINE Floats floats(Ints x) { return _mm512_cvtepi32_ps(x); }
  static EDGE_INLINE Floats half_power_of_two(Ints n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(126)), 23));
  }

  static EDGE_INLINE int32_t highest(Ints x) { return _mm512_reduce_max_epi32(x); }
  static EDGE_INLINE float highest(Floats x) { return _mm512_reduce_max_ps(x); }
  static EDGE_INLINE int32_t sum(Ints x) { return _mm512_reduce_add_epi32(x); }
  static EDGE_INLINE float sum(Floats x) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace
}  // namespace edge
