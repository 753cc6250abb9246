// The dense-step kernels' common part, and what an instruction set brings to them: a struct V of static functions that
// extends its lanes (lanes_portable.h: Floats and Ints, one for each of a tile's 16 rows) by
//
//   Bytes                    the 64 bytes of an atom
//   atom(p)                  loads one
//   field<Shift, Mask>(x)    (byte >> Shift) & Mask
//   with_bit2<Shift>(x, y)   x | ((byte of y >> Shift) & 4), Shift from -2
//   flipped(x)               every byte with its top bit inverted
//   line<Flip>(p)            a line of a table, flipped or not
//   lookup(t, x)             t[x], 16-byte lane by lane; every x below 16
//   lookup_rows<Bits, Flip>(p, x)   the same with a table of 2^Bits entries for each row
//   even_bytes(x, y)         bytes 0 of x, 0 of y, 2 of x, 2 of y ..; odd_bytes: 1 of x, 1 of y ..
//   even_words(x, y)         the same with pairs of bytes: 0 and 1 of x, 0 and 1 of y, 4 and 5 of x ..; odd_words
//   spread(n), bytes(p), minus(a, b), times(a, n), shifted_add<Shift>(a, b) = (a << Shift) + b   Ints that wrap
//   column<K>(x)             byte K of each row of a quad, as Ints
//
// and for products with int8 activations
//
//   kTokens<E, Tiles>        the most tokens of a block, a power of two
//   kTiles<E>                tiles of a block for many tokens
//   kOffset<E>               what `dot` takes off every value that encoding E stores (128 for flipped bytes)
//   dot<E>(run, sum)         adds the products of a run of steps to sum[tokens][tiles]
//
// and for float activations kFloatTokens, the most tokens of a block.
//
// portable.h is the definition of each in plain loops.
#pragma once

#include "expand.h"
#include "task.h"

namespace edge {
namespace {

// Steps of one group, for some tiles and tokens.
struct Run {
  const uint8_t* at;  // of the first tile
  size_t steps;
  size_t tile_stride;
  const uint8_t* table;
  size_t table_stride;  // 0: all tiles have the same
  const int8_t* q;      // of the first token
  size_t q_stride;
};

// Asks for lines that the stream comes to later, beyond what instructions in flight reach: one tile after the other
// lies ahead. The hardware's own guesses get lost among the tokens, and don't keep memory busy even with one.
template <uint32_t Lines>
EDGE_INLINE void fetch_ahead(const uint8_t* at) {
  constexpr uintptr_t ahead = 8192;  // 4096 and 16384 were slower
  EDGE_UNROLL for (uint32_t i = 0; i < Lines; ++i) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + ahead + kLine * i));
  }
}

// Walks the stream of one tile, group by group.
template <class E>
struct Stream {
  const Geometry& m;
  const uint8_t* tile;
  const uint8_t* at;  // after `enter`: the steps of the group
  const uint8_t* head;
  const uint8_t* table;
  size_t next_table = 0;
  size_t half = 0;

  EDGE_INLINE Stream(const LinearTask& task, size_t index)
      : m(task.matrix), tile(task.tiles + index * m.tile_bytes), at(tile), head(tile), table(task.prefix) {
    if constexpr (E::kTables) at += m.row_scale_bytes;
  }

  EDGE_INLINE void enter(size_t group) {
    half = group % 2;
    if (half) return;
    if constexpr (E::kTables) {
      if (m.table_groups && group == next_table) {
        table = at;
        at += m.table_bytes;
        next_table += m.table_groups;
      }
    }
    head = at;
    at += m.head_bytes;
  }

  // Of the tile that is `ahead` tiles further.
  EDGE_INLINE const Half* scales(size_t ahead) const {
    const bool by_row = E::kTables && m.row_scale_bytes;
    return reinterpret_cast<const Half*>((by_row ? tile : head + half * kScaleBytes) + ahead * m.tile_bytes);
  }
  EDGE_INLINE const uint8_t* zero_points() const { return head + 2 * kScaleBytes + half * kRows; }
  EDGE_INLINE size_t table_stride() const { return m.table_groups ? m.tile_bytes : 0; }
};

// The rows of one tile and token, with the bias.
template <class V>
EDGE_INLINE void store_tile(const LinearTask& task, size_t tile, size_t token, typename V::Floats value) {
  const size_t row = tile * kRows, count = smaller(kRows, task.matrix.rows - row);
  float* out = task.out + token * task.matrix.rows + row;
  if (count == kRows) {
    if (task.bias) value = V::add(value, V::load(task.bias + row));
    V::store(out, value);
    return;
  }
  float lanes[kRows], bias[kRows] = {};
  if (task.bias) memcpy(bias, task.bias + row, count * sizeof(float));
  V::store(lanes, task.bias ? V::add(value, V::load(bias)) : value);
  memcpy(out, lanes, count * sizeof(float));
}

// body(E()) with the encoding of a codebook of dim 1: bits belong to the kernel, the rest to the matrix.
template <uint32_t Bits, class Body>
EDGE_INLINE void with_scalars(const Geometry& m, const Body& body) {
  if (m.entry == EDGE_INT16_ENTRIES) {
    if (m.row_tables) return body(Scalars<Bits, 2, true>());
    return body(Scalars<Bits, 2, false>());
  }
  if (m.row_tables) return body(Scalars<Bits, 1, true>());
  body(Scalars<Bits, 1, false>());
}

}  // namespace
}  // namespace edge
