// 16 codes of a few bits each, one after the other with the lowest bits first: where the bits of each are.
#pragma once

#include "support.h"

namespace edge {
namespace {

template <int Bits>
struct CodeStream {
  static constexpr size_t kBytes = 2 * Bits;

  // Of code i: the two bytes that it lies in, as two bytes of 32-bit (and of 16-bit) lane i, and its first bit there.
  struct Places {
    alignas(64) uint8_t of_words[64];
    alignas(64) uint8_t of_halves[32];
    alignas(64) int32_t word_shifts[16];
    alignas(32) int16_t half_shifts[16];  // to the left, as NEON has them
  };

  static constexpr Places make() {
    Places places = {};
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 2; ++j) {
        const uint8_t byte = static_cast<uint8_t>((i * Bits / 8 + j) % 8);
        places.of_words[4 * i + j] = places.of_halves[2 * i + j] = byte;
      }
      places.of_words[4 * i + 2] = places.of_words[4 * i + 3] = 0x80;  // zero
      places.word_shifts[i] = i * Bits % 8;
      places.half_shifts[i] = static_cast<int16_t>(-(i * Bits % 8));
    }
    return places;
  }
  static constexpr Places kPlaces = make();
};

}  // namespace
}  // namespace edge
