// Plain C++: the twin that every other instruction set is compared with, and the one for CPUs without them.
#pragma once

#include "dense.h"
#include "lanes_portable.h"

namespace edge {
namespace {

// Loops over 64 bytes that each kernel calls: inlined, they would make a library of megabytes.
#define EDGE_APART __attribute__((noinline))

struct Portable : PortableLanes {
  struct Bytes {
    uint8_t lane[kLine];
  };

  // Byte by byte; `value` gets the byte's index.
  template <class F>
  static EDGE_INLINE Bytes each(F value) {
    Bytes bytes;
    for (size_t i = 0; i < kLine; ++i) bytes.lane[i] = static_cast<uint8_t>(value(i));
    return bytes;
  }

  static EDGE_INLINE Bytes atom(const uint8_t* from) { return edge::load<Bytes>(from); }
  template <int Shift, int Mask>
  static EDGE_APART Bytes field(const Bytes& x) {
    return each([&](size_t i) { return (x.lane[i] >> Shift) & Mask; });
  }
  template <int Shift>
  static EDGE_APART Bytes with_bit2(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return x.lane[i] | (((y.lane[i] << 2) >> (Shift + 2)) & 4); });
  }
  static EDGE_APART Bytes flipped(const Bytes& x) {
    return each([&](size_t i) { return x.lane[i] ^ 128; });
  }
  template <bool Flip>
  static EDGE_INLINE Bytes line(const uint8_t* table) {
    return Flip ? flipped(atom(table)) : atom(table);
  }
  static EDGE_APART Bytes lookup(const Bytes& table, const Bytes& index) {
    return each([&](size_t i) { return table.lane[i / 16 * 16 + index.lane[i]]; });
  }
  // Entry e of a row: the four rows of a lane have their tables one after the other, over 16 bytes of 1, 2 or 4 lines.
  template <uint32_t Bits, bool Flip>
  static EDGE_APART Bytes lookup_rows(const uint8_t* table, const Bytes& index) {
    const Bytes found = each([&](size_t i) {
      const size_t entry = (i / 4 % 4 << Bits) + index.lane[i];
      return table[entry / 16 * kLine + i / 16 * 16 + entry % 16];
    });
    return Flip ? flipped(found) : found;
  }
  static EDGE_APART Bytes even_bytes(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return i % 2 ? y.lane[i - 1] : x.lane[i]; });
  }
  static EDGE_APART Bytes odd_bytes(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return i % 2 ? y.lane[i] : x.lane[i + 1]; });
  }
  static EDGE_APART Bytes even_words(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return i % 4 < 2 ? x.lane[i] : y.lane[i - 2]; });
  }
  static EDGE_APART Bytes odd_words(const Bytes& x, const Bytes& y) {
    return each([&](size_t i) { return i % 4 < 2 ? x.lane[i + 2] : y.lane[i]; });
  }

  // Wrapping integers go through unsigned ones.
  template <class F>
  static EDGE_INLINE Ints wrapped(F value) {
    return make<Ints>([&](int row) { return static_cast<int32_t>(value(row)); });
  }
  static EDGE_INLINE Ints spread(int32_t value) {
    return make<Ints>([&](int) { return value; });
  }
  static EDGE_INLINE Ints bytes(const uint8_t* from) {
    return make<Ints>([&](int row) { return from[row]; });
  }
  static EDGE_INLINE Ints minus(const Ints& a, const Ints& b) {
    return wrapped([&](int row) { return static_cast<uint32_t>(a.lane[row]) - static_cast<uint32_t>(b.lane[row]); });
  }
  static EDGE_INLINE Ints times(const Ints& a, int32_t factor) {
    return wrapped([&](int row) { return static_cast<uint32_t>(a.lane[row]) * static_cast<uint32_t>(factor); });
  }
  template <int Shift>
  static EDGE_INLINE Ints shifted_add(const Ints& a, const Ints& b) {
    return wrapped(
        [&](int row) { return (static_cast<uint32_t>(a.lane[row]) << Shift) + static_cast<uint32_t>(b.lane[row]); });
  }
  template <int K>
  static EDGE_INLINE Ints column(const Bytes& quad) {
    return make<Ints>([&](int row) { return quad.lane[4 * row + K]; });
  }

  static constexpr int kFloatTokens = 2;

  template <class E>
  static constexpr int kTiles = 1;
  template <class E, int Tiles>
  static constexpr int kTokens = 2;
  template <class E>
  static constexpr int32_t kOffset = 0;

  // Four sums per row, in the order of the bytes, until the end of the run.
  template <class E, int Tokens, int Tiles>
  static void dot(const Run& run, Ints (&sum)[Tokens][Tiles]) {
    int32_t lanes[E::kPlanes][Tokens][kLine] = {};
    const uint8_t* at = run.at;
    const int8_t* q = run.q;
    for (size_t step = 0; step < run.steps; ++step, at += kLine * E::kBits, q += E::kColumns) {
      Bytes quads[E::kQuads][E::kPlanes];
      expand<Portable, E>(at, run.table, quads);
      for (int quad = 0; quad < E::kQuads; ++quad) {
        for (int i = 0; i < Tokens; ++i) {
          for (int plane = 0; plane < E::kPlanes; ++plane) {
            multiply(quads[quad][plane], q + i * run.q_stride + 4 * quad, lanes[plane][i]);
          }
        }
      }
    }
    for (int i = 0; i < Tokens; ++i) {
      sum[i][0] = shifted_add<0>(rows(lanes[0][i]), sum[i][0]);
      if constexpr (E::kPlanes == 2) sum[i][0] = shifted_add<8>(rows(lanes[1][i]), sum[i][0]);
    }
  }

  static void multiply(const Bytes& values, const int8_t* four, int32_t (&sum)[kLine]) {
    const int16_t wide[4] = {four[0], four[1], four[2], four[3]};
    int16_t activations[kLine];
    for (size_t row = 0; row < kRows; ++row) memcpy(activations + 4 * row, wide, sizeof(wide));
    for (size_t i = 0; i < kLine; ++i) sum[i] += values.lane[i] * activations[i];
  }
  static EDGE_INLINE Ints rows(const int32_t (&sum)[kLine]) {
    return make<Ints>([&](int row) {
      const int32_t* four = sum + 4 * row;
      return four[0] + four[1] + four[2] + four[3];
    });
  }
};

}  // namespace
}  // namespace edge
