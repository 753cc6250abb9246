// From the bytes of a step to quads: what the dense-step encodings do before a product, written once over the registers
// of an instruction set V (dense.h says what V brings; a V::Bytes holds a whole atom).
//
// An encoding says
//   kBits, kQuads, kColumns   of a code; quads and columns of a step
//   kPlanes                   atoms per quad: 2 where a value has a low and a high byte
//   kTables, kZero            whether it reads a table; what the table's entries are stored above
//   kOneLookup                a quad costs one look-up at most: cheap enough for blocks of several tiles
//   quad<V, J, Plane, Flip>   quad J of a step. Flip: with the top bit of every byte inverted, so that a byte b
//                             is b - 128 for instructions that want signed ones
// Quads that share an atom load it each for itself; the compiler makes that one load.
#pragma once

#include "format.h"

namespace edge {
namespace {

template <int Value>
struct Index {
  static constexpr int value = Value;
};

// body(Index<0>()) .. body(Index<Count - 1>()): a loop whose index is a constant.
template <int Count, int From = 0, class Body>
EDGE_INLINE void repeat(const Body& body) {
  if constexpr (From < Count) {
    body(Index<From>());
    repeat<Count, From + 1>(body);
  }
}

// Codes of quad J, one per byte.
template <class V, uint32_t Bits, int J>
EDGE_INLINE typename V::Bytes codes(const uint8_t* step) {
  if constexpr (Bits == 8) {
    return V::atom(step + kLine * J);
  } else if constexpr (Bits == 1) {
    return V::template field<J, 1>(V::atom(step));
  } else if constexpr (Bits == 4) {
    return V::template field<4 * (J % 2), 15>(V::atom(step + kLine * (J / 2)));
  } else {
    const typename V::Bytes low = V::template field<2 * (J % 4), 3>(V::atom(step + kLine * (J / 4)));
    if constexpr (Bits == 2) return low;
    if constexpr (Bits == 3) return V::template with_bit2<J - 2>(low, V::atom(step + kLine * 2));
  }
}

template <uint32_t Bits>
struct Affine {
  static constexpr uint32_t kBits = Bits;
  static constexpr int kQuads = 8, kColumns = 32, kPlanes = 1;
  static constexpr bool kTables = false, kOneLookup = true;

  template <class V, int J, int Plane, bool Flip>
  static EDGE_INLINE typename V::Bytes quad(const uint8_t* step, const uint8_t*) {
    if constexpr (Flip) return V::flipped(codes<V, Bits, J>(step));
    if constexpr (!Flip) return codes<V, Bits, J>(step);
  }
};

// Tables with one value per code. Planes 2: int16 entries. RowTables: every row has its own.
template <uint32_t Bits, int Planes, bool RowTables>
struct Scalars {
  static constexpr uint32_t kBits = Bits;
  static constexpr int kQuads = 8, kColumns = 32, kPlanes = Planes;
  static constexpr bool kTables = true, kOneLookup = Planes == 1 && !RowTables;
  static constexpr int32_t kZero = Planes == 2 ? 32768 : 128;
  static constexpr size_t kPlaneBytes = RowTables ? kLine << (slot_bits(Bits) - 2) : kLine;

  template <class V, int J, int Plane, bool Flip>
  static EDGE_INLINE typename V::Bytes quad(const uint8_t* step, const uint8_t* table) {
    const typename V::Bytes index = codes<V, Bits, J>(step);
    const uint8_t* plane = table + Plane * kPlaneBytes;
    if constexpr (RowTables) return V::template lookup_rows<slot_bits(Bits), Flip>(plane, index);
    if constexpr (!RowTables) return V::lookup(V::template line<Flip>(plane), index);
  }
};

// Tables with two values per code, for adjacent columns. An atom of codes makes two quads: bytes 0 and 2 of a row are
// the pairs of the first, bytes 1 and 3 those of the second.
template <uint32_t Bits>
struct Pairs {
  static constexpr uint32_t kBits = Bits;
  static constexpr int kQuads = 16, kColumns = 64, kPlanes = 1;
  static constexpr bool kTables = true, kOneLookup = false;
  static constexpr int32_t kZero = 128;

  template <class V, int J, int Plane, bool Flip>
  static EDGE_INLINE typename V::Bytes quad(const uint8_t* step, const uint8_t* table) {
    const typename V::Bytes index = codes<V, Bits, J / 2>(step);
    const typename V::Bytes first = V::lookup(V::template line<Flip>(table), index);
    const typename V::Bytes second = V::lookup(V::template line<Flip>(table + kLine), index);
    if constexpr (J % 2 == 0) return V::even_bytes(first, second);
    if constexpr (J % 2 == 1) return V::odd_bytes(first, second);
  }
};

// Tables with four values per code. An atom of codes makes four quads: byte K of a row is all of the row in quad K.
template <uint32_t Bits>
struct Fours {
  static constexpr uint32_t kBits = Bits;
  static constexpr int kQuads = 32, kColumns = 128, kPlanes = 1;
  static constexpr bool kTables = true, kOneLookup = false;
  static constexpr int32_t kZero = 128;

  template <class V, int J, int Plane, bool Flip>
  static EDGE_INLINE typename V::Bytes quad(const uint8_t* step, const uint8_t* table) {
    const typename V::Bytes index = codes<V, Bits, J / 4>(step);
    const typename V::Bytes front = two<V, J % 2, Flip>(table, index);
    const typename V::Bytes back = two<V, J % 2, Flip>(table + 2 * kLine, index);
    if constexpr (J % 4 < 2) return V::even_words(front, back);
    if constexpr (J % 4 >= 2) return V::odd_words(front, back);
  }

  // Two values of bytes 0 and 2 of a row, or of 1 and 3.
  template <class V, int Odd, bool Flip>
  static EDGE_INLINE typename V::Bytes two(const uint8_t* table, typename V::Bytes index) {
    const typename V::Bytes first = V::lookup(V::template line<Flip>(table), index);
    const typename V::Bytes second = V::lookup(V::template line<Flip>(table + kLine), index);
    if constexpr (Odd == 0) return V::even_bytes(first, second);
    if constexpr (Odd == 1) return V::odd_bytes(first, second);
  }
};

// All quads of a step, for loops that are not unrolled.
template <class V, class E>
EDGE_INLINE void expand(const uint8_t* step, const uint8_t* table, typename V::Bytes (&quads)[E::kQuads][E::kPlanes]) {
  repeat<E::kQuads * E::kPlanes>([&](auto index) __attribute__((always_inline)) {
    constexpr int quad = decltype(index)::value / E::kPlanes, plane = decltype(index)::value % E::kPlanes;
    quads[quad][plane] = E::template quad<V, quad, plane, false>(step, table);
  });
}

}  // namespace
}  // namespace edge
