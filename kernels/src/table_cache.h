// EDGE_CACHE_TABLE: new keys and values into it, and its tiles as floats.
#pragma once

#include "attention_cache.h"

namespace edge {
namespace {

// ---- Writing: little enough to be plain loops
// ------------------------------------------------------------------------

// Code `index` of a stream of 16.
EDGE_INLINE void put_code(uint8_t* stream, size_t bits, size_t index, uint32_t code) {
  const size_t first = index * bits, shift = first % 8;
  const uint32_t mask = ((1u << bits) - 1) << shift;
  uint8_t* bytes = stream + first / 8;
  bytes[0] = static_cast<uint8_t>((bytes[0] & ~mask) | code << shift);
  if (shift + bits > 8) bytes[1] = static_cast<uint8_t>((bytes[1] & ~(mask >> 8)) | (code << shift) >> 8);
}

EDGE_INLINE uint32_t count_below(float x, const float* boundaries, size_t bits) {
  uint32_t count = 0;
  for (size_t i = 0; i + 1 < size_t{1} << bits; ++i) count += x > boundaries[i];
  return count;
}

// The nearest whole number of -127 .. 127; NaN: -127.
EDGE_INLINE int32_t nearest_int8(float x) {
  const float clipped = x > 127.0f ? 127.0f : x > -127.0f ? x : -127.0f, shifted = clipped + 12582912.0f;
  return load<int32_t>(&shifted) - 0x4b400000;
}

EDGE_INLINE Half finite_half(float x) {
  return half_from_float(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

// Which of `count` elements have the largest `size`, the largest first, of equals the first; NaN is below all. Those
// sizes become -1.
EDGE_INLINE void take_largest(float* size, size_t count, size_t outliers, uint8_t* index) {
  for (size_t i = 0; i < outliers; ++i) {
    float most = -1.0f;
    size_t found = 0;
    for (size_t d = 0; d < count; ++d) {
      if (size[d] > most) most = size[d], found = d;
    }
    size[found] = -1.0f;
    index[i] = static_cast<uint8_t>(found);
  }
}

// Where the outliers of a position are in a tile.
struct Outliers {
  Half* element;
  uint8_t* index;
  size_t count;
};

EDGE_INLINE Outliers outliers_of(const AttentionTask& task, uint8_t* tile, const TableSide& side, bool values,
                                 size_t lane) {
  const size_t count = static_cast<size_t>(task.call.outliers);
  uint8_t* first = tile + side.code_bytes + TableSide::scale_bytes(values);
  return {reinterpret_cast<Half*>(first) + lane * count, first + (2 * kTilePositions + lane) * count, count};
}

struct KeyLevel {
  uint32_t code;
  float level;
};

EDGE_INLINE KeyLevel encode_key(const AttentionTask& task, size_t kv_head, size_t d, float x) {
  const size_t channels = static_cast<size_t>(task.call.kv_heads) * task.head_dim, bits = task.key_side.bits;
  const size_t channel = kv_head * task.head_dim + d;
  const float* table = task.call.key_table.data;
  if (bits == 8) {
    const float scale = table[channel], offset = table[channels + channel];
    const int32_t code = nearest_int8((x - offset) * (1.0f / scale));
    return {static_cast<uint8_t>(code), scale * static_cast<float>(code) + offset};
  }
  const uint32_t code = count_below(x, table + ((channels + channel) << bits), bits);
  return {code, table[(channel << bits) + code]};
}

EDGE_INLINE void append_key(const AttentionTask& task, size_t kv_head, const float* head, uint8_t* tile, size_t lane) {
  const TableSide& side = task.key_side;
  float error[kMaxTableHeadDim];
  for (size_t d = 0; d < task.head_dim; ++d) {
    const KeyLevel key = encode_key(task, kv_head, d, head[d]);
    put_code(tile + d * 2 * side.bits, side.bits, lane, key.code);
    const float difference = head[d] - key.level;
    error[d] = difference < 0 ? -difference : difference;
  }
  const Outliers outliers = outliers_of(task, tile, side, false, lane);
  take_largest(error, task.head_dim, outliers.count, outliers.index);
  for (size_t i = 0; i < outliers.count; ++i) outliers.element[i] = finite_half(head[outliers.index[i]]);
}

// `head` is overwritten with (element - offset) / scale.
EDGE_INLINE void append_value(const AttentionTask& task, float* head, uint8_t* tile, size_t lane) {
  const TableSide& side = task.value_side;
  const Outliers outliers = outliers_of(task, tile, side, true, lane);
  float size[kMaxTableHeadDim];
  for (size_t d = 0; d < task.head_dim; ++d) size[d] = head[d] < 0 ? -head[d] : head[d];
  take_largest(size, task.head_dim, outliers.count, outliers.index);
  float lowest = float_from_bits(0x7f800000u), highest = -lowest;
  for (size_t d = 0; d < task.head_dim; ++d) {
    if (size[d] >= 0 && head[d] < lowest) lowest = head[d];
    if (size[d] >= 0 && head[d] > highest) highest = head[d];
  }
  const float half_range = (highest - lowest) * 0.5f, smallest = float_from_bits(0x38800000u);  // 2^-14
  const Half exact = finite_half(side.bits == 8 ? half_range * (1.0f / 127.0f) : half_range);
  const Half scale = float_from_half(exact.bits) < smallest ? half_from_float(smallest) : exact;
  const Half offset = finite_half((highest + lowest) * 0.5f);
  const float inverse = 1.0f / float_from_half(scale.bits), middle = float_from_half(offset.bits);
  Half* scales = reinterpret_cast<Half*>(tile + side.code_bytes);
  scales[lane] = scale;
  scales[kTilePositions + lane] = offset;
  uint8_t* codes = tile + lane * task.width / 16 * 2 * side.bits;
  for (size_t d = 0; d < task.width; ++d) {
    if (d < task.head_dim) head[d] = (head[d] - middle) * inverse;
    uint32_t code = 0;
    if (d < task.head_dim && side.bits == 8) code = static_cast<uint8_t>(nearest_int8(head[d]));
    if (d < task.head_dim && side.bits != 8) {
      code = count_below(head[d], task.call.value_table.data + (size_t{1} << side.bits), side.bits);
    }
    put_code(codes + d / 16 * 2 * side.bits, side.bits, d % 16, code);
  }
  for (size_t i = 0; i < outliers.count; ++i) outliers.element[i] = finite_half(head[outliers.index[i]]);
}

template <class L>
void append_table(const AttentionTask& task, size_t kv_head, size_t first, size_t end) {
  const size_t heads = static_cast<size_t>(task.call.heads), kv_heads = static_cast<size_t>(task.call.kv_heads);
  for (size_t token = first; token < end; ++token) {
    const float* qkv = task.call.qkv.data + token * (heads + 2 * kv_heads) * task.head_dim;
    const size_t position = static_cast<size_t>(task.call.position) + token, lane = position % kTilePositions;
    uint8_t* keys = task.key_side.tile(task.call.keys, kv_head, position / kTilePositions);
    uint8_t* values = task.value_side.tile(task.call.values, kv_head, position / kTilePositions);
    float key[kMaxTableHeadDim], value[kMaxTableHeadDim];
    const float* from = qkv + (heads + kv_head) * task.head_dim;
    prepare_head<L>(task, from, task.call.k_norm.data, position, key, position < kTilePositions);
    copy_head(task, from + kv_heads * task.head_dim, value);
    if (position >= kTilePositions) {
      append_key(task, kv_head, key, keys, lane);
      append_value(task, value, values, lane);
      continue;
    }
    Half elements[kMaxTableHeadDim];
    encode<L>(task, key, elements);
    for (size_t d = 0; d < task.width; ++d) reinterpret_cast<Half*>(keys)[kTilePositions * d + lane] = elements[d];
    encode<L>(task, value, reinterpret_cast<Half*>(values) + task.width * lane);
  }
}

// ---- Reading
// --------------------------------------------------------------------------------------------------------- What a loop
// needs of a task is in variables of its own: the compiler has to think that a store of floats changes it.

// Elements of a tile that no table has. What was never written may be anything.
template <class L>
EDGE_INLINE void put_outliers(const AttentionTask& task, uint8_t* tile, const TableSide& side, bool values, float* to) {
  const size_t element = values ? 1 : kTilePositions, position = values ? task.width : 1, head_dim = task.head_dim;
  const Outliers outliers = outliers_of(task, tile, side, values, 0);
  const size_t count = outliers.count;
  float kept[kTilePositions * kMaxOutliers];
  for (size_t i = 0; i < count; ++i) L::store(kept + kLanes * i, L::load(outliers.element + kLanes * i));
  for (size_t lane = 0; lane < kTilePositions; ++lane) {
    for (size_t i = lane * count; i < (lane + 1) * count; ++i) {
      const size_t d = outliers.index[i];
      if (d < head_dim) to[d * element + lane * position] = kept[i];
    }
  }
}

template <class L, int Bits>
EDGE_INLINE void read_codes(const uint8_t* codes, const float* levels, size_t next_levels, size_t count, float* to) {
  for (size_t i = 0; i < count; ++i) {
    L::store(to + kLanes * i, L::template levels<Bits>(levels + i * next_levels, codes + i * 2 * Bits));
  }
}

// Tables of 2^bits levels, one after the other for each stream, or one for all.
template <class L>
EDGE_INLINE void read_streams(size_t bits, const uint8_t* codes, const float* levels, bool one_table, size_t count,
                              float* to) {
  const size_t next = one_table ? 0 : size_t{1} << bits;
  if (bits == 2) read_codes<L, 2>(codes, levels, next, count, to);
  if (bits == 3) read_codes<L, 3>(codes, levels, next, count, to);
  if (bits == 4) read_codes<L, 4>(codes, levels, next, count, to);
}

template <class L>
EDGE_INLINE void read_halves(const uint8_t* halves, size_t count, float* to) {
  for (size_t i = 0; i < count; ++i)
    L::store(to + kLanes * i, L::load(reinterpret_cast<const Half*>(halves) + kLanes * i));
}

// Keys of a tile: [head_dim][16 positions]; those of the first tile are rotated.
template <class L>
void read_keys(const AttentionTask& task, size_t kv_head, size_t tile, float* to) {
  uint8_t* from = task.key_side.tile(task.call.keys, kv_head, tile);
  const size_t head_dim = task.head_dim, channel = kv_head * head_dim, bits = task.key_side.bits;
  if (tile == 0) return read_halves<L>(from, head_dim, to);
  if (bits == 8) {
    const float* scale = task.call.key_table.data + channel;
    const float* offset = scale + static_cast<size_t>(task.call.kv_heads) * head_dim;
    for (size_t d = 0; d < head_dim; ++d) {
      const auto code = L::load(reinterpret_cast<const int8_t*>(from) + kLanes * d);
      L::store(to + kLanes * d, L::add(L::mul(L::all(scale[d]), code), L::all(offset[d])));
    }
  } else {
    read_streams<L>(bits, from, task.call.key_table.data + (channel << bits), false, head_dim, to);
  }
  put_outliers<L>(task, from, task.key_side, false, to);
}

// Values of a tile without their scales and offsets: [16 positions][width].
template <class L>
void read_values(const AttentionTask& task, size_t kv_head, size_t tile, float* to) {
  uint8_t* from = task.value_side.tile(task.call.values, kv_head, tile);
  const size_t width = task.width, bits = task.value_side.bits;
  if (tile == 0) return read_halves<L>(from, width, to);
  if (bits == 8) {
    for (size_t i = 0; i < width; ++i) L::store(to + kLanes * i, L::load(reinterpret_cast<int8_t*>(from) + kLanes * i));
  } else {
    read_streams<L>(bits, from, task.call.value_table.data, true, width, to);
  }
  put_outliers<L>(task, from, task.value_side, true, to);
}

// A pair of elements of 16 positions, rotated by their places in a tile.
template <class L>
EDGE_INLINE void turn(const AttentionTask& task, size_t d, typename L::Floats* first, typename L::Floats* second) {
  const auto x1 = *first, x2 = *second;
  const auto c = L::load(task.lane_cos + kLanes * d), s = L::load(task.lane_sin + kLanes * d);
  *first = L::sub(L::mul(x1, c), L::mul(x2, s));
  *second = L::add(L::mul(x2, c), L::mul(x1, s));
}

template <class L>
EDGE_INLINE void turn_keys(const AttentionTask& task, float* keys) {
  const size_t half = static_cast<size_t>(task.call.rotary_dim) / 2;
  for (size_t d = 0; d < half; ++d) {
    auto first = L::load(keys + kLanes * d), second = L::load(keys + kLanes * (half + d));
    turn<L>(task, d, &first, &second);
    L::store(keys + kLanes * d, first);
    L::store(keys + kLanes * (half + d), second);
  }
}

}  // namespace
}  // namespace edge
