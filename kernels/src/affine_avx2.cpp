// Kernels for AVX2 with F16C. `maddubs` multiplies unsigned codes by signed activations into saturating 16-bit sums:
// codes of 4 bits stay clear of that for the 8 quads of a step (15 * 127 * 2 * 8 = 30480); 8-bit codes go as two
// nibbles.
#include <immintrin.h>

#include "affine_a8.h"
#include "affine_f32.h"

namespace edge {
namespace {

EDGE_INLINE __m256i load256(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Low `bits` bits of every byte of value >> shift. Bits that a 16-bit shift drags in from the next byte are masked off.
template <int Shift, int Mask>
EDGE_INLINE __m256i field(__m256i value) {
  return _mm256_and_si256(Shift ? _mm256_srli_epi16(value, Shift) : value, _mm256_set1_epi8(Mask));
}

// The 8 quads of half a step (8 rows: half of every atom). For 8 bits, the low or the high nibbles.
template <uint32_t Bits, int Plane>
EDGE_INLINE void unpack(const uint8_t* step, __m256i (&quads)[8]) {
  if constexpr (Bits == 8) {
    EDGE_UNROLL for (int j = 0; j < 8; ++j) quads[j] = field<4 * Plane, 15>(load256(step + 64 * j));
  } else if constexpr (Bits == 4) {
    EDGE_UNROLL for (int atom = 0; atom < 4; ++atom) {
      const __m256i codes = load256(step + 64 * atom);
      quads[2 * atom] = field<0, 15>(codes);
      quads[2 * atom + 1] = field<4, 15>(codes);
    }
  } else {
    EDGE_UNROLL for (int atom = 0; atom < 2; ++atom) {
      const __m256i codes = load256(step + 64 * atom);
      quads[4 * atom] = field<0, 3>(codes);
      quads[4 * atom + 1] = field<2, 3>(codes);
      quads[4 * atom + 2] = field<4, 3>(codes);
      quads[4 * atom + 3] = field<6, 3>(codes);
    }
  }
  if constexpr (Bits == 3) {  // bit j of the third atom becomes bit 2 of quad j
    const __m256i high = load256(step + 128), bit = _mm256_set1_epi8(4);
    quads[0] = _mm256_or_si256(quads[0], _mm256_and_si256(_mm256_slli_epi16(high, 2), bit));
    quads[1] = _mm256_or_si256(quads[1], _mm256_and_si256(_mm256_slli_epi16(high, 1), bit));
    quads[2] = _mm256_or_si256(quads[2], field<0, 4>(high));
    quads[3] = _mm256_or_si256(quads[3], field<1, 4>(high));
    quads[4] = _mm256_or_si256(quads[4], field<2, 4>(high));
    quads[5] = _mm256_or_si256(quads[5], field<3, 4>(high));
    quads[6] = _mm256_or_si256(quads[6], field<4, 4>(high));
    quads[7] = _mm256_or_si256(quads[7], field<5, 4>(high));
  }
}

struct Avx2 {
  struct Ints {
    __m256i half[2];
  };
  struct Floats {
    __m256 half[2];
  };
  static constexpr int kTokens = 4;
  template <uint32_t Bits>
  static constexpr int tiles = 1;
  template <uint32_t Bits>
  static constexpr int code_offset = 0;

  static EDGE_INLINE Floats zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }

  static EDGE_INLINE Ints start(int32_t value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }

  static EDGE_INLINE Ints start(const uint8_t* zeros, int32_t offset, int32_t sum) {
    const __m256i factor = _mm256_set1_epi32(sum), from = _mm256_set1_epi32(offset);
    Ints ints;
    EDGE_UNROLL for (int h = 0; h < 2; ++h) {
      const __m256i zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + 8 * h)));
      ints.half[h] = _mm256_mullo_epi32(_mm256_sub_epi32(from, zero), factor);
    }
    return ints;
  }

  template <uint32_t Bits, int Plane, int Tokens>
  static EDGE_INLINE void dot_plane(const uint8_t* step, const int8_t* q, size_t q_stride, Ints (&sum)[Tokens][1]) {
    const __m256i weight = _mm256_set1_epi16(Plane ? 16 : 1);
    __m256i quads[2][8], partial[Tokens][2];
    unpack<Bits, Plane>(step, quads[0]);
    unpack<Bits, Plane>(step + 32, quads[1]);
    EDGE_UNROLL for (int j = 0; j < 8; ++j) {
      EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
        const __m256i a = _mm256_set1_epi32(load<int32_t>(q + i * q_stride + 4 * j));
        EDGE_UNROLL for (int h = 0; h < 2; ++h) {
          const __m256i product = _mm256_maddubs_epi16(quads[h][j], a);
          partial[i][h] = j ? _mm256_add_epi16(partial[i][h], product) : product;
          __asm__("" : "+x"(partial[i][h]));  // add now: GCC would keep all products for a tree of sums, and spill
        }
      }
    }
    EDGE_UNROLL for (int i = 0; i < Tokens * 2; ++i) {
      __m256i& into = sum[i / 2][0].half[i % 2];
      into = _mm256_add_epi32(into, _mm256_madd_epi16(partial[i / 2][i % 2], weight));
    }
  }

  template <uint32_t Bits, int Tokens, int Tiles>
  static EDGE_INLINE void dot32(const uint8_t* step, size_t, const int8_t* q, size_t q_stride,
                                Ints (&sum)[Tokens][Tiles]) {
    dot_plane<Bits, 0>(step, q, q_stride, sum);
    if constexpr (Bits == 8) dot_plane<Bits, 1>(step, q, q_stride, sum);
  }

  static EDGE_INLINE Floats scales(const uint8_t* halves) {
    const __m128i* from = reinterpret_cast<const __m128i*>(halves);
    return {{_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
  }

  static EDGE_INLINE Floats add_scaled(Floats total, const Ints& sum, const Floats& scales) {
    EDGE_UNROLL for (int h = 0; h < 2; ++h) {
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum.half[h]), scales.half[h]);
      total.half[h] = _mm256_add_ps(total.half[h], product);
    }
    return total;
  }

  static EDGE_INLINE Floats scaled(const Floats& floats, float factor) {
    const __m256 all = _mm256_set1_ps(factor);
    return {{_mm256_mul_ps(floats.half[0], all), _mm256_mul_ps(floats.half[1], all)}};
  }

  static EDGE_INLINE Floats add(const Floats& a, const Floats& b) {
    return {{_mm256_add_ps(a.half[0], b.half[0]), _mm256_add_ps(a.half[1], b.half[1])}};
  }

  static EDGE_INLINE Floats load_floats(const float* from) {
    return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
  }

  static EDGE_INLINE void store(float* to, const Floats& floats) {
    _mm256_storeu_ps(to, floats.half[0]);
    _mm256_storeu_ps(to + 8, floats.half[1]);
  }
};

}  // namespace
}  // namespace edge

EDGE_A8_KERNEL(2, avx2, Avx2)
EDGE_A8_KERNEL(3, avx2, Avx2)
EDGE_A8_KERNEL(4, avx2, Avx2)
EDGE_A8_KERNEL(8, avx2, Avx2)
EDGE_F32_KERNEL(2, avx2)
EDGE_F32_KERNEL(3, avx2)
EDGE_F32_KERNEL(4, avx2)
EDGE_F32_KERNEL(8, avx2)
