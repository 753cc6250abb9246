// Loops over tiles and blocks of tokens, and the float sums of such a block, for kernels that do one tile at a time.
#pragma once

#include "dense.h"

namespace edge {
namespace {

constexpr size_t kTokenBytes = 384 * 1024;  // of activations, that stay in the second-level cache

// body(Index<Tokens>(), token) for the tokens from `token` to `end`, `Most` at once, the rest in halves.
template <int Most, class Body>
EDGE_INLINE void token_blocks(size_t token, size_t end, const Body& body) {
  for (; token + Most <= end; token += Most) body(Index<Most>(), token);
  if constexpr (Most > 1) token_blocks<Most / 2>(token, end, body);
}

// body(tile, token, end_token): every tile with every panel of tokens. `token_bytes`: of one token's activations.
template <int Most, class Body>
EDGE_INLINE void tile_panels(const LinearTask& task, size_t token_bytes, size_t first_tile, size_t end_tile,
                             const Body& body) {
  const size_t panel = (kTokenBytes / token_bytes / Most + 1) * Most;
  for (size_t token = 0; token < task.tokens; token += panel) {
    const size_t end = smaller(task.tokens, token + panel);
    for (size_t tile = first_tile; tile < end_tile; ++tile) body(tile, token, end);
  }
}

// body(Index<Tokens>(), tile, token): the same in blocks of tokens.
template <int Most, class Body>
EDGE_INLINE void tile_blocks(const LinearTask& task, size_t token_bytes, size_t first_tile, size_t end_tile,
                             const Body& body) {
  tile_panels<Most>(task, token_bytes, first_tile, end_tile, [&](size_t tile, size_t first, size_t end) {
    token_blocks<Most>(first, end, [&](auto tokens, size_t token) { body(tokens, tile, token); });
  });
}

template <class V>
EDGE_INLINE void dequantize_quad(typename V::Bytes codes, typename V::Floats zeros, typename V::Floats scales,
                                 typename V::Floats (&values)[4]) {
  values[0] = V::mul(V::sub(V::floats(V::template column<0>(codes)), zeros), scales);
  values[1] = V::mul(V::sub(V::floats(V::template column<1>(codes)), zeros), scales);
  values[2] = V::mul(V::sub(V::floats(V::template column<2>(codes)), zeros), scales);
  values[3] = V::mul(V::sub(V::floats(V::template column<3>(codes)), zeros), scales);
}

// Partial sums of f32 kernels, over columns 0 .. 3 modulo 4.
template <class V, int Tokens>
struct FloatSums {
  typename V::Floats sum[Tokens][4];

  EDGE_INLINE FloatSums() { EDGE_UNROLL for (int i = 0; i < 4 * Tokens; ++i) sum[i / 4][i % 4] = V::zero(); }

  // Columns column .. column + 3, as far as there are such.
  EDGE_INLINE void add_quad(const LinearTask& task, size_t token, size_t column,
                            const typename V::Floats (&values)[4]) {
    const size_t columns = task.matrix.columns;
    const float* x = task.x + token * columns + column;
    if (column + 4 <= columns) {
      EDGE_UNROLL for (int i = 0; i < 4 * Tokens; ++i) add(i / 4, i % 4, x[i / 4 * columns + i % 4], values);
      return;
    }
    for (size_t k = 0; column + k < columns; ++k) {
      for (int i = 0; i < Tokens; ++i) add(i, k, x[i * columns + k], values);
    }
  }

  EDGE_INLINE void store(const LinearTask& task, size_t tile, size_t token) const {
    EDGE_UNROLL for (int i = 0; i < Tokens; ++i) {
      const auto all = V::add(V::add(sum[i][0], sum[i][1]), V::add(sum[i][2], sum[i][3]));
      store_tile<V>(task, tile, token + i, all);
    }
  }

 private:
  EDGE_INLINE void add(int token, size_t k, float x, const typename V::Floats (&values)[4]) {
    sum[token][k] = V::add(sum[token][k], V::mul(V::all(x), values[k]));
  }
};

}  // namespace
}  // namespace edge
