// AVX-512 with VNNI (F, BW, VL). One register is one quad of a tile: 16 rows of 4 bytes; `dpbusd` multiplies it by 4
// activations, broadcast, and adds into 16 exact 32-bit sums.
#pragma once

#include <immintrin.h>

#include "dense.h"
#include "lanes_avx512.h"

namespace edge {
namespace {

struct Avx512Vnni : Avx512Lanes {
  using Bytes = __m512i;

  static EDGE_INLINE Bytes atom(const uint8_t* from) { return _mm512_loadu_si512(from); }

  template <int Shift>
  static EDGE_INLINE Bytes shifted(Bytes x) {
    return Shift > 0 ? _mm512_srli_epi16(x, Shift > 0 ? Shift : 0) : _mm512_slli_epi16(x, Shift < 0 ? -Shift : 0);
  }
  // Bits that a 16-bit shift drags in from the next byte are masked off.
  template <int Shift, int Mask>
  static EDGE_INLINE Bytes field(Bytes x) {
    return _mm512_and_si512(Shift ? shifted<Shift>(x) : x, _mm512_set1_epi8(Mask));
  }
  template <int Shift>
  static EDGE_INLINE Bytes with_bit2(Bytes x, Bytes y) {
    return _mm512_ternarylogic_epi64(x, Shift ? shifted<Shift>(y) : y, _mm512_set1_epi8(4), 0xf8);  // x | (y & 4)
  }
  static EDGE_INLINE Bytes flipped(Bytes x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }

  template <bool Flip>
  static EDGE_INLINE Bytes line(const uint8_t* table) {
    return Flip ? flipped(atom(table)) : atom(table);
  }
  static EDGE_INLINE Bytes lookup(Bytes table, Bytes index) { return _mm512_shuffle_epi8(table, index); }

  // 4 or 8 entries: the row's table is a part of a lane, so the row goes into the index. 8 or 16: lines are for some
  // rows each.
  template <uint32_t Bits, bool Flip>
  static EDGE_INLINE Bytes lookup_rows(const uint8_t* table, Bytes index) {
    if constexpr (Bits == 2) {
      return lookup(line<Flip>(table), _mm512_or_si512(index, by_row(0, 4, 8, 12)));
    } else if constexpr (Bits == 3) {
      index = _mm512_or_si512(index, by_row(0, 8, 0, 8));
      const Bytes low = lookup(line<Flip>(table), index);
      return _mm512_mask_shuffle_epi8(low, 0xff00ff00ff00ff00u, line<Flip>(table + kLine), index);
    } else {
      Bytes found = lookup(line<Flip>(table), index);
      found = _mm512_mask_shuffle_epi8(found, 0x00f000f000f000f0u, line<Flip>(table + kLine), index);
      found = _mm512_mask_shuffle_epi8(found, 0x0f000f000f000f00u, line<Flip>(table + 2 * kLine), index);
      return _mm512_mask_shuffle_epi8(found, 0xf000f000f000f000u, line<Flip>(table + 3 * kLine), index);
    }
  }
  static EDGE_INLINE Bytes by_row(int a, int b, int c, int d) {
    return _mm512_set4_epi32(d * 0x01010101, c * 0x01010101, b * 0x01010101, a * 0x01010101);
  }

  static EDGE_INLINE Bytes even_bytes(Bytes x, Bytes y) {  // 0xca: bit by bit, mask ? first : second
    return _mm512_ternarylogic_epi64(_mm512_set1_epi16(0xff), x, _mm512_slli_epi16(y, 8), 0xca);
  }
  static EDGE_INLINE Bytes odd_bytes(Bytes x, Bytes y) {
    return _mm512_ternarylogic_epi64(_mm512_set1_epi16(0xff), _mm512_srli_epi16(x, 8), y, 0xca);
  }
  static EDGE_INLINE Bytes even_words(Bytes x, Bytes y) {
    return _mm512_ternarylogic_epi64(_mm512_set1_epi32(0xffff), x, _mm512_slli_epi32(y, 16), 0xca);
  }
  static EDGE_INLINE Bytes odd_words(Bytes x, Bytes y) {
    return _mm512_ternarylogic_epi64(_mm512_set1_epi32(0xffff), _mm512_srli_epi32(x, 16), y, 0xca);
  }

  static EDGE_INLINE Ints spread(int32_t value) { return _mm512_set1_epi32(value); }
  static EDGE_INLINE Ints bytes(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static EDGE_INLINE Ints minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static EDGE_INLINE Ints times(Ints a, int32_t factor) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(factor)); }
  template <int Shift>
  static EDGE_INLINE Ints shifted_add(Ints a, Ints b) {
    return _mm512_add_epi32(_mm512_slli_epi32(a, Shift), b);
  }
  template <int K>
  static EDGE_INLINE Ints column(Bytes quad) {
    if constexpr (K == 3) return _mm512_srli_epi32(quad, 24);
    return _mm512_and_si512(_mm512_srli_epi32(quad, 8 * K), _mm512_set1_epi32(255));
  }

  static constexpr int kFloatTokens = 4;

  // 12 sums, 12 totals and the codes fill the 32 registers; two planes, or tables of rows, take more of them.
  template <class E>
  static constexpr int kTiles = E::kOneLookup ? 3 : 1;
  template <class E, int Tiles>
  static constexpr int kTokens = Tiles == 1 ? 8 : 4;
  template <class E>
  static constexpr int32_t kOffset = 0;

  template <class E, int Tokens, int Tiles>
  static EDGE_INLINE void dot(const Run& run, Ints (&sum)[Tokens][Tiles]) {
    // High bytes have their own sums; so have odd quads where there are few sums to hide the latency.
    constexpr bool split = E::kPlanes == 1 && Tokens * Tiles <= 2;
    Ints second[Tokens][Tiles];
    EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) second[i / Tiles][i % Tiles] = no_ints();
    const uint8_t* at = run.at;
    const int8_t* q = run.q;
    for (size_t step = 0; step < run.steps; ++step, at += kLine * E::kBits, q += E::kColumns) {
      if constexpr (Tiles == 1) fetch_ahead<E::kBits>(at);
      repeat<E::kQuads * E::kPlanes>([&](auto index) __attribute__((always_inline)) {
        constexpr int quad = decltype(index)::value / E::kPlanes, plane = decltype(index)::value % E::kPlanes;
        Bytes values[Tiles];
        EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
          values[t] = E::template quad<Avx512Vnni, quad, plane, false>(at + t * run.tile_stride,
                                                                       run.table + t * run.table_stride);
        }
        EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
          const Ints a = spread(edge::load<int32_t>(q + i * run.q_stride + 4 * quad));
          EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
            Ints& into = plane || (split && quad % 2) ? second[i][t] : sum[i][t];
            into = _mm512_dpbusd_epi32(into, values[t], a);
          }
        }
      });
    }
    if constexpr (split || E::kPlanes == 2) {
      EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) {
        Ints& into = sum[i / Tiles][i % Tiles];
        into = shifted_add<split ? 0 : 8>(second[i / Tiles][i % Tiles], into);
      }
    }
  }
};

}  // namespace
}  // namespace edge
