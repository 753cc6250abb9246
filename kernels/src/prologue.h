// What comes before and after a matrix product, for any lanes.
#pragma once

#include "float_ops.h"
#include "lane_math.h"

namespace edge {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000;

// s = x + skip -> out; the sum of squares of s, or of s alone.
template <class L>
EDGE_INLINE void add_rows(const float* x, const float* skip, size_t columns, float* out) {
  for (size_t k = 0; k < columns; k += kLanes) {
    const size_t count = columns - k;
    store_some<L>(out + k, L::add(load_some<L>(x + k, count), load_some<L>(skip + k, count)), count);
  }
}

template <class L>
EDGE_INLINE float sum_of(const float* x, size_t columns) {
  auto sum = L::zero();
  for (size_t k = 0; k < columns; k += kLanes) sum = L::add(sum, load_some<L>(x + k, columns - k));
  return L::sum(sum);
}

template <class L>
EDGE_INLINE float sum_of_squares(const float* x, size_t columns) {
  auto sum = L::zero();
  for (size_t k = 0; k < columns; k += kLanes) {
    const auto value = load_some<L>(x + k, columns - k);
    sum = L::add(sum, L::mul(value, value));
  }
  return L::sum(sum);
}

template <class L>
EDGE_INLINE float inverse_deviation(const float* x, size_t columns, float epsilon) {
  return inverse_square_root(sum_of_squares<L>(x, columns) / static_cast<float>(columns) + epsilon);
}

// out = (x * factor) * weight, plus bias where there is one
template <class L>
EDGE_INLINE void scale_row(const float* x, float factor, const float* weight, const float* bias, size_t columns,
                           float* out) {
  const auto factors = L::all(factor);
  for (size_t k = 0; k < columns; k += kLanes) {
    const size_t count = columns - k;
    auto y = L::mul(L::mul(load_some<L>(x + k, count), factors), load_some<L>(weight + k, count));
    if (bias) y = L::add(y, load_some<L>(bias + k, count));
    store_some<L>(out + k, y, count);
  }
}

template <class L>
EDGE_INLINE void rms_norm(const float* x, const float* weight, float epsilon, size_t columns, float* out) {
  scale_row<L>(x, inverse_deviation<L>(x, columns, epsilon), weight, nullptr, columns, out);
}

template <class L>
EDGE_INLINE void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, size_t columns,
                            float* out) {
  const auto mean = L::all(sum_of<L>(x, columns) / static_cast<float>(columns));
  for (size_t k = 0; k < columns; k += kLanes) {
    const size_t count = columns - k;
    store_some<L>(out + k, L::sub(load_some<L>(x + k, count), mean), count);
  }
  scale_row<L>(out, inverse_deviation<L>(out, columns, epsilon), weight, bias, columns, out);
}

// `columns` floats to int8, zeros up to `padded` (a multiple of 16); returns the scale. The sum of the codes goes to
// `sum`. No code can pass 127: x * (1 / (max / 127)) is within a few roundings of it.
template <class L>
EDGE_INLINE float quantize_row(const float* x, size_t columns, size_t padded, int8_t* q, int32_t* sum) {
  auto largest = L::no_ints(), codes = L::no_ints();
  for (size_t k = 0; k < columns; k += kLanes) {
    largest = L::larger(largest, L::magnitude(load_some<L>(x + k, columns - k)));
  }
  const int32_t bits = L::highest(largest);
  const float scale = float_from_bits(static_cast<uint32_t>(bits)) / 127.0f, inverse = 1.0f / scale;
  const bool finite = bits < kInfinityBits, usable = finite && load<int32_t>(&inverse) < kInfinityBits;
  *sum = 0;
  if (!usable) {
    memset(q, 0, padded);
    return finite ? 0.0f : float_from_bits(0x7fc00000u);
  }
  for (size_t k = 0; k < padded; k += kLanes) {
    const auto x16 = load_some<L>(x + k, k < columns ? columns - k : 0);
    const auto q16 = L::rounded(L::mul(x16, L::all(inverse)));
    L::store(q + k, q16);
    codes = L::add(codes, q16);
  }
  *sum = L::sum(codes);
  return scale;
}

// Sums over blocks narrower than a group.
EDGE_INLINE void sum_blocks(const Geometry& matrix, const int8_t* q, int32_t* sums) {
  for (size_t block = 0; block < matrix.sums; ++block) {
    const int8_t* codes = q + block * matrix.sum_columns;
    int32_t sum = 0;
    for (size_t k = 0; k < matrix.sum_columns; ++k) sum += codes[k];
    sums[block] = sum;
  }
}

template <class L>
EDGE_INLINE void quantize_token(const Prologue& p, const float* x, size_t token) {
  const Geometry& m = p.matrix;
  int8_t* q = p.q + token * m.padded_columns;
  int32_t* sums = p.sums + token * m.sums;
  for (size_t group = 0; group < m.groups; ++group) {
    const size_t start = group * m.group_columns, columns = start < m.columns ? m.columns - start : 0;
    const size_t padded = m.columns_of(group);
    int32_t sum;
    p.scales[token * m.groups + group] = quantize_row<L>(x + start, smaller(columns, padded), padded, q + start, &sum);
    if (m.sums == m.groups) sums[group] = sum;
  }
  if (m.sums != m.groups) sum_blocks(m, q, sums);
}

template <class L>
void prepare(const Prologue& p, size_t first, size_t end, float* rows, size_t stride) {
  const size_t columns = p.matrix.columns;
  for (size_t token = first; token < end; ++token) {
    const float* s = p.x + token * columns;
    float* row = rows + token * stride;
    if (p.skip) {
      float* to = p.sum ? p.sum + token * columns : row;
      add_rows<L>(s, p.skip + token * columns, columns, to);
      s = to;
    }
    if (p.norm == EDGE_RMS_NORM) rms_norm<L>(s, p.weight, p.epsilon, columns, row);
    if (p.norm == EDGE_LAYER_NORM) layer_norm<L>(s, p.weight, p.bias, p.epsilon, columns, row);
    if (p.q) quantize_token<L>(p, p.norm == EDGE_NO_NORM ? s : row, token);
  }
}

template <class L, class F>
EDGE_INLINE void map(const float* gate, const float* up, float* out, size_t count, F activation) {
  for (size_t k = 0; k < count; k += kLanes) {
    auto y = activation(load_some<L>(gate + k, count - k));
    if (up) y = L::mul(y, load_some<L>(up + k, count - k));
    store_some<L>(out + k, y, count - k);
  }
}

template <class L>
void activate(edge_epilogue epilogue, const float* gate, const float* up, float* out, size_t count) {
  if (epilogue == EDGE_SILU_GATED) {
    map<L>(gate, up, out, count, silu<L>);
  } else if (epilogue == EDGE_GELU || epilogue == EDGE_GELU_GATED) {
    map<L>(gate, up, out, count, gelu<L>);
  } else {
    map<L>(gate, up, out, count, gelu_tanh<L>);
  }
}

}  // namespace
}  // namespace edge
