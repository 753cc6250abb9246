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

  // The row goes into the index; an index with its top bit set, on a line of other rows, finds 0.
  template <uint32_t Bits, bool Flip>
  static EDGE_INLINE Bytes lookup_rows(const uint8_t* table, Bytes index) {
    if constexpr (Bits == 2) {
      return lookup(line<Flip>(table), with_row(index, 0, 4, 8, 12));
    } else if constexpr (Bits == 3) {
      const Bytes first = lookup(line<Flip>(table), with_row(index, 0, 8, 128, 128));
      return either(first, lookup(line<Flip>(table + kLine), with_row(index, 128, 128, 0, 8)));
    } else {
      const Bytes a = lookup(line<Flip>(table), with_row(index, 0, 128, 128, 128));
      const Bytes b = lookup(line<Flip>(table + kLine), with_row(index, 128, 0, 128, 128));
      const Bytes c = lookup(line<Flip>(table + 2 * kLine), with_row(index, 128, 128, 0, 128));
      const Bytes d = lookup(line<Flip>(table + 3 * kLine), with_row(index, 128, 128, 128, 0));
      return either(either(a, b), either(c, d));
    }
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
    return make<Bytes>([&](int h) {
      return _mm256_or_si256(_mm256_and_si256(x.half[h], _mm256_set1_epi16(0xff)), _mm256_slli_epi16(y.half[h], 8));
    });
  }
  static EDGE_INLINE Bytes odd_bytes(Bytes x, Bytes y) {
    return make<Bytes>([&](int h) {
      return _mm256_or_si256(_mm256_srli_epi16(x.half[h], 8), _mm256_andnot_si256(_mm256_set1_epi16(0xff), y.half[h]));
    });
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
  static constexpr bool kEveryCount = !E::kTables;
  template <class E>
  static constexpr int32_t kOffset = kSmall<E>         ? 0
                                     : E::kPlanes == 2 ? 32768
                                                       : 128;

  template <class E, int Tokens, int Tiles>
  static EDGE_INLINE void dot(const Run& run, Ints (&sum)[Tokens][Tiles]) {
    const uint8_t* at = run.at;
    const int8_t* q = run.q;
    for (size_t step = 0; step < run.steps; ++step, at += kLine * E::kBits, q += E::kColumns) {
      if constexpr (kSmall<E>) {
        dot_small<E>(at, q, run.q_stride, sum);
      } else if constexpr (E::kPlanes == 2) {
        dot_words<E>(at, run.table, q, run.q_stride, sum);
      } else {
        dot_bytes<E>(at, run.table, q, run.q_stride, sum);
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

  // Two planes make words: of columns 0 and 2 of each row, and of columns 1 and 3.
  template <class E, int Tokens>
  static EDGE_INLINE void dot_words(const uint8_t* at, const uint8_t* table, const int8_t* q, size_t q_stride,
                                    Ints (&sum)[Tokens][1]) {
    repeat<E::kQuads>([&](auto index) __attribute__((always_inline)) {
      constexpr int quad = decltype(index)::value;
      const Bytes low = E::template quad<Avx2, quad, 0, false>(at, table);
      const Bytes high = E::template quad<Avx2, quad, 1, true>(at, table);
      const Bytes even = even_bytes(low, high), odd = odd_bytes(low, high);
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const __m256i a = four(q + i * q_stride + 4 * quad);
        const __m256i a_even = _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), a_odd = _mm256_srai_epi16(a, 8);
        EDGE_UNROLL for (int h = 0; h < 2; ++h) {
          __m256i& into = sum[i][0].half[h];
          into = _mm256_add_epi32(into, _mm256_madd_epi16(even.half[h], a_even));
          into = _mm256_add_epi32(into, _mm256_madd_epi16(odd.half[h], a_odd));
        }
      }
    });
  }

  static EDGE_INLINE __m256i four(const int8_t* q) { return _mm256_set1_epi32(edge::load<int32_t>(q)); }
  static EDGE_INLINE void add_pairs(__m256i pairs, __m256i& into) {
    into = _mm256_add_epi32(into, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace edge
