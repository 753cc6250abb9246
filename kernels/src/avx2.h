// AVX2 with F16C and FMA3. An atom is two registers of 8 rows. There is no product of bytes with 32-bit sums:
// `maddubs` multiplies unsigned by signed bytes into pairs' sums of 16 bits, which must not pass 32767.
#pragma once

#include <immintrin.h>

#include "dense.h"
#include "lanes_avx2.h"

namespace edge {
namespace {

struct Avx2 : Avx2Lanes {
  using Bytes = Ints;  // two registers all the same

  static EDGE_INLINE __m256i half_atom(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static EDGE_INLINE Bytes atom(const uint8_t* from) { return {{half_atom(from), half_atom(from + 32)}}; }

  template <int Shift>
  static EDGE_INLINE __m256i shifted(__m256i x) {
    if constexpr (Shift == 0) return x;
    return Shift > 0 ? _mm256_srli_epi16(x, Shift > 0 ? Shift : 0) : _mm256_slli_epi16(x, Shift < 0 ? -Shift : 0);
  }
  // Bits that a 16-bit shift drags in from the next byte are masked off.
  template <int Shift, int Mask>
  static EDGE_INLINE Bytes field(Bytes x) {
    return make<Bytes>([&](int h) { return _mm256_and_si256(shifted<Shift>(x.half[h]), _mm256_set1_epi8(Mask)); });
  }
  template <int Shift>
  static EDGE_INLINE Bytes with_bit2(Bytes x, Bytes y) {
    const Bytes bit = field<Shift, 4>(y);
    return make<Bytes>([&](int h) { return _mm256_or_si256(x.half[h], bit.half[h]); });
  }
  static EDGE_INLINE Bytes flipped(Bytes x) {
    return make<Bytes>([&](int h) { return _mm256_xor_si256(x.half[h], _mm256_set1_epi8(-128)); });
  }
  template <bool Flip>
  static EDGE_INLINE Bytes line(const uint8_t* table) {
    return Flip ? flipped(atom(table)) : atom(table);
  }
  static EDGE_INLINE Bytes lookup(Bytes table, Bytes index) {
    return make<Bytes>([&](int h) { return _mm256_shuffle_epi8(table.half[h], index.half[h]); });
  }

  // 4 or 8 entries: the row's table is a part of a lane, so the row goes into the index. 8 or 16: lines are for some
  // rows each, and rows are what `blend` chooses.
  template <uint32_t Bits, bool Flip>
  static EDGE_INLINE Bytes lookup_rows(const uint8_t* table, Bytes index) {
    if constexpr (Bits == 2) return lookup(line<Flip>(table), with_row(index, 0, 4, 8, 12));
    if constexpr (Bits == 3) {
      index = with_row(index, 0, 8, 0, 8);
      return blend<0xcc>(lookup(line<Flip>(table), index), lookup(line<Flip>(table + kLine), index));
    }
    if constexpr (Bits == 4) {
      const Bytes a = lookup(line<Flip>(table), index), b = lookup(line<Flip>(table + kLine), index);
      const Bytes c = lookup(line<Flip>(table + 2 * kLine), index), d = lookup(line<Flip>(table + 3 * kLine), index);
      return blend<0xcc>(blend<0xaa>(a, b), blend<0xaa>(c, d));
    }
  }
  template <int Rows>
  static EDGE_INLINE Bytes blend(Bytes x, Bytes y) {
    return make<Bytes>([&](int h) { return _mm256_blend_epi32(x.half[h], y.half[h], Rows); });
  }
  static EDGE_INLINE Bytes either(Bytes x, Bytes y) {
    return make<Bytes>([&](int h) { return _mm256_or_si256(x.half[h], y.half[h]); });
  }
  static EDGE_INLINE Bytes with_row(Bytes index, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    constexpr uint32_t all = 0x01010101u;
    const __m128i four = _mm_set_epi32(static_cast<int>(d * all), static_cast<int>(c * all), static_cast<int>(b * all),
                                       static_cast<int>(a * all));
    return make<Bytes>([&](int h) { return _mm256_or_si256(index.half[h], _mm256_broadcastsi128_si256(four)); });
  }

  static EDGE_INLINE Bytes even_bytes(Bytes x, Bytes y) {
    const __m256i even = _mm256_set1_epi16(0xff);
    return make<Bytes>([&](int h) { return _mm256_blendv_epi8(_mm256_slli_epi16(y.half[h], 8), x.half[h], even); });
  }
  static EDGE_INLINE Bytes odd_bytes(Bytes x, Bytes y) {
    const __m256i even = _mm256_set1_epi16(0xff);
    return make<Bytes>([&](int h) { return _mm256_blendv_epi8(y.half[h], _mm256_srli_epi16(x.half[h], 8), even); });
  }
  static EDGE_INLINE Bytes even_words(Bytes x, Bytes y) {
    return make<Bytes>([&](int h) { return _mm256_blend_epi16(x.half[h], _mm256_slli_epi32(y.half[h], 16), 0xaa); });
  }
  static EDGE_INLINE Bytes odd_words(Bytes x, Bytes y) {
    return make<Bytes>([&](int h) { return _mm256_blend_epi16(_mm256_srli_epi32(x.half[h], 16), y.half[h], 0xaa); });
  }

  static EDGE_INLINE Ints spread(int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
  static EDGE_INLINE Ints bytes(const uint8_t* from) {
    return make<Ints>(
        [&](int h) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * h))); });
  }
  static EDGE_INLINE Ints minus(Ints a, Ints b) {
    return make<Ints>([&](int h) { return _mm256_sub_epi32(a.half[h], b.half[h]); });
  }
  static EDGE_INLINE Ints times(Ints a, int32_t factor) {
    return make<Ints>([&](int h) { return _mm256_mullo_epi32(a.half[h], _mm256_set1_epi32(factor)); });
  }
  template <int Shift>
  static EDGE_INLINE Ints shifted_add(Ints a, Ints b) {
    return make<Ints>([&](int h) { return _mm256_add_epi32(_mm256_slli_epi32(a.half[h], Shift), b.half[h]); });
  }
  template <int K>
  static EDGE_INLINE Ints column(Bytes quad) {
    return make<Ints>([&](int h) {
      const __m256i down = _mm256_srli_epi32(quad.half[h], 8 * K);
      return K == 3 ? down : _mm256_and_si256(down, _mm256_set1_epi32(255));
    });
  }

  static constexpr int kFloatTokens = 2;

  // Codes of up to 4 bits: the 8 quads of a step stay within 16 bits (15 * 127 * 2 * 8 = 30480).
  template <class E>
  static constexpr bool kSmall = !E::kTables && E::kBits <= 4;

  template <class E>
  static constexpr int kTiles = 1;
  template <class E, int Tiles>
  static constexpr int kTokens = 4;
  template <class E>
  static constexpr int32_t kOffset = kSmall<E>         ? 0
                                     : E::kPlanes == 2 ? 32768
                                                       : 128;

  template <class E, int Tokens, int Tiles>
  static EDGE_INLINE void dot(const Run& run, Ints (&sum)[Tokens][Tiles]) {
    constexpr int wide = E::kPlanes == 2 ? 2 : 1;
    Ints words[Tokens][wide];
    EDGE_UNROLL for (int i = 0; i < Tokens * wide; ++i) words[i / wide][i % wide] = no_ints();
    const uint8_t* at = run.at;
    const int8_t* q = run.q;
    for (size_t step = 0; step < run.steps; ++step, at += kLine * E::kBits, q += E::kColumns) {
      fetch_ahead<E::kBits>(at);
      if constexpr (kSmall<E>) {
        dot_small<E>(at, q, run.q_stride, sum);
      } else if constexpr (E::kPlanes == 2) {
        dot_words<E>(at, run.table, q, run.q_stride, words);
      } else {
        dot_bytes<E>(at, run.table, q, run.q_stride, sum);
      }
    }
    if constexpr (E::kPlanes == 2) {
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const Ints rows =
            make<Ints>([&](int h) { return _mm256_hadd_epi32(words[i][0].half[h], words[i][1].half[h]); });
        sum[i][0] = add(sum[i][0], rows);
      }
    }
  }

  template <class E, int Tokens>
  static EDGE_INLINE void dot_small(const uint8_t* at, const int8_t* q, size_t q_stride, Ints (&sum)[Tokens][1]) {
    __m256i partial[Tokens][2];
    repeat<E::kQuads>([&](auto index) __attribute__((always_inline)) {
      constexpr int quad = decltype(index)::value;
      const Bytes values = E::template quad<Avx2, quad, 0, false>(at, nullptr);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const __m256i a = four(q + i * q_stride + 4 * quad);
        EDGE_UNROLL for (int h = 0; h < 2; ++h) {
          const __m256i product = _mm256_maddubs_epi16(values.half[h], a);
          partial[i][h] = quad ? _mm256_add_epi16(partial[i][h], product) : product;
          __asm__("" : "+x"(partial[i][h]));  // add now: GCC would keep all products for a tree of sums, and spill
        }
      }
    });
    EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
      EDGE_UNROLL for (int h = 0; h < 2; ++h) add_pairs(partial[i][h], sum[i][0].half[h]);
    }
  }

  // Signed bytes: the product takes the sign from the activation, so that one factor is unsigned. A pair stays within
  // 16 bits: 128 * 127 * 2 = 32512.
  template <class E, int Tokens>
  static EDGE_INLINE void dot_bytes(const uint8_t* at, const uint8_t* table, const int8_t* q, size_t q_stride,
                                    Ints (&sum)[Tokens][1]) {
    repeat<E::kQuads>([&](auto index) __attribute__((always_inline)) {
      constexpr int quad = decltype(index)::value;
      const Bytes values = E::template quad<Avx2, quad, 0, true>(at, table);
      const Bytes sizes = make<Bytes>([&](int h) { return _mm256_abs_epi8(values.half[h]); });
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const __m256i a = four(q + i * q_stride + 4 * quad);
        EDGE_UNROLL for (int h = 0; h < 2; ++h) {
          add_pairs(_mm256_maddubs_epi16(sizes.half[h], _mm256_sign_epi8(a, values.half[h])), sum[i][0].half[h]);
        }
      }
    });
  }

  // Two planes make words, rows 0 and 1 of every four and rows 2 and 3; each row has two sums until the end of the run.
  template <class E, int Tokens>
  static EDGE_INLINE void dot_words(const uint8_t* at, const uint8_t* table, const int8_t* q, size_t q_stride,
                                    Ints (&words)[Tokens][2]) {
    repeat<E::kQuads>([&](auto index) __attribute__((always_inline)) {
      constexpr int quad = decltype(index)::value;
      const Bytes low = E::template quad<Avx2, quad, 0, false>(at, table);
      const Bytes high = E::template quad<Avx2, quad, 1, true>(at, table);
      const Bytes first = make<Bytes>([&](int h) { return _mm256_unpacklo_epi8(low.half[h], high.half[h]); });
      const Bytes second = make<Bytes>([&](int h) { return _mm256_unpackhi_epi8(low.half[h], high.half[h]); });
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const int32_t bytes = edge::load<int32_t>(q + i * q_stride + 4 * quad);
        const __m256i a = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(bytes)));
        EDGE_UNROLL for (int h = 0; h < 2; ++h) {
          add_products(first.half[h], a, words[i][0].half[h]);
          add_products(second.half[h], a, words[i][1].half[h]);
        }
      }
    });
  }

  static EDGE_INLINE __m256i four(const int8_t* q) { return _mm256_set1_epi32(edge::load<int32_t>(q)); }
  static EDGE_INLINE void add_products(__m256i x, __m256i y, __m256i& into) {
    into = _mm256_add_epi32(into, _mm256_madd_epi16(x, y));
  }
  static EDGE_INLINE void add_pairs(__m256i pairs, __m256i& into) { add_products(pairs, _mm256_set1_epi16(1), into); }
};

}  // namespace
}  // namespace edge
