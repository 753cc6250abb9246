// Kernels for AVX-512 with VNNI (F, BW, VL). One register is one quad of a tile: 16 rows of 4 codes; `dpbusd`
// multiplies it by 4 activations, broadcast, and adds into 16 exact 32-bit sums.
#include <immintrin.h>

#include "affine_a8.h"

namespace edge {
namespace {

EDGE_INLINE __m512i load512(const uint8_t* from) {
  return _mm512_loadu_si512(from);
}

template <int Shift, int Mask>
EDGE_INLINE __m512i field(__m512i value) {
  return _mm512_and_si512(Shift ? _mm512_srli_epi16(value, Shift) : value, _mm512_set1_epi8(Mask));
}

// low | (high & 4): the low two bits of a 3-bit code and its third bit, shifted into place.
EDGE_INLINE __m512i with_bit2(__m512i low, __m512i high) {
  return _mm512_ternarylogic_epi64(low, high, _mm512_set1_epi8(4), 0xf8);
}

// Codes come in chunks: the fewest quads that fill whole atoms.
template <uint32_t Bits>
constexpr int kChunkQuads = Bits == 8   ? 1
                            : Bits == 4 ? 2
                            : Bits == 2 ? 4
                                        : 8;

template <uint32_t Bits>
EDGE_INLINE void unpack(const uint8_t* chunk, __m512i (&quads)[kChunkQuads<Bits>]) {
  const __m512i codes = load512(chunk);
  if constexpr (Bits == 8) {
    quads[0] = codes;
  } else if constexpr (Bits == 4) {
    quads[0] = field<0, 15>(codes);
    quads[1] = field<4, 15>(codes);
  } else {
    quads[0] = field<0, 3>(codes);
    quads[1] = field<2, 3>(codes);
    quads[2] = field<4, 3>(codes);
    quads[3] = field<6, 3>(codes);
  }
  if constexpr (Bits == 3) {
    const __m512i more = load512(chunk + 64), high = load512(chunk + 128);
    quads[0] = with_bit2(quads[0], _mm512_slli_epi16(high, 2));
    quads[1] = with_bit2(quads[1], _mm512_slli_epi16(high, 1));
    quads[2] = with_bit2(quads[2], high);
    quads[3] = with_bit2(quads[3], _mm512_srli_epi16(high, 1));
    quads[4] = with_bit2(field<0, 3>(more), _mm512_srli_epi16(high, 2));
    quads[5] = with_bit2(field<2, 3>(more), _mm512_srli_epi16(high, 3));
    quads[6] = with_bit2(field<4, 3>(more), _mm512_srli_epi16(high, 4));
    quads[7] = with_bit2(field<6, 3>(more), _mm512_srli_epi16(high, 5));
  }
}

struct Avx512Vnni {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kTokens = 4;
  template <uint32_t Bits>
  static constexpr int tiles = Bits == 3 ? 2 : 3;  // 4 x 3 sums, 4 x 3 totals and the codes fill the 32 registers
  template <uint32_t Bits>
  static constexpr int code_offset = 0;

  static EDGE_INLINE Floats zero() { return _mm512_setzero_ps(); }

  static EDGE_INLINE Ints start(int32_t value) { return _mm512_set1_epi32(value); }

  static EDGE_INLINE Ints start(const uint8_t* zeros, int32_t offset, int32_t sum) {
    const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
    return _mm512_mullo_epi32(_mm512_sub_epi32(_mm512_set1_epi32(offset), zero), _mm512_set1_epi32(sum));
  }

  template <uint32_t Bits, int Tokens, int Tiles>
  static EDGE_INLINE void dot32(const uint8_t* step, size_t tile_stride, const int8_t* q, size_t q_stride,
                                Ints (&sum)[Tokens][Tiles]) {
    constexpr int quads = kChunkQuads<Bits>;
    constexpr bool split = Tokens * Tiles <= 2;  // a second chain of sums hides the latency where there are few
    Ints second[Tokens][Tiles];
    EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) second[i / Tiles][i % Tiles] = _mm512_setzero_si512();
    EDGE_UNROLL for (int chunk = 0; chunk < 8 / quads; ++chunk) {
      __m512i codes[Tiles][quads];
      EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
        unpack<Bits>(step + t * tile_stride + chunk * quads * 8 * Bits, codes[t]);
      }
      EDGE_UNROLL for (int j = 0; j < quads; ++j) {
        EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
          const int quad = chunk * quads + j;
          const __m512i a = _mm512_set1_epi32(load<int32_t>(q + i * q_stride + 4 * quad));
          EDGE_UNROLL for (int t = 0; t < Tiles; ++t) {
            Ints& into = split && quad % 2 ? second[i][t] : sum[i][t];
            into = _mm512_dpbusd_epi32(into, codes[t][j], a);
          }
        }
      }
    }
    if constexpr (split) {
      EDGE_UNROLL for (int i = 0; i < Tokens * Tiles; ++i) {
        Ints& into = sum[i / Tiles][i % Tiles];
        into = _mm512_add_epi32(into, second[i / Tiles][i % Tiles]);
      }
    }
  }

  static EDGE_INLINE Floats scales(const uint8_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }

  static EDGE_INLINE Floats add_scaled(Floats total, Ints sum, Floats scales) {
    return _mm512_add_ps(total, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales));
  }

  static EDGE_INLINE Floats scaled(Floats floats, float factor) {
    return _mm512_mul_ps(floats, _mm512_set1_ps(factor));
  }

  static EDGE_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }

  static EDGE_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }

  static EDGE_INLINE void store(float* to, Floats floats) { _mm512_storeu_ps(to, floats); }
};

}  // namespace
}  // namespace edge

EDGE_A8_KERNEL(2, avx512vnni, Avx512Vnni)
EDGE_A8_KERNEL(3, avx512vnni, Avx512Vnni)
EDGE_A8_KERNEL(4, avx512vnni, Avx512Vnni)
EDGE_A8_KERNEL(8, avx512vnni, Avx512Vnni)
