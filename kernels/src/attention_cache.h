// Heads on their way to attention: norm, rotation, and keys and values into the cache.
#pragma once

#include "attention.h"
#include "prologue.h"

namespace edge {
namespace {

// Halves of the leading rotary_dim elements: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).
template <class L>
EDGE_INLINE void rotate(const AttentionTask& task, size_t position, float* head) {
  const size_t half = static_cast<size_t>(task.call.rotary_dim) / 2;
  const float* cos = task.call.cos.data + position * half;
  const float* sin = task.call.sin.data + position * half;
  for (size_t d = 0; d < half; d += kLanes) {
    const size_t count = half - d;
    const auto x1 = load_some<L>(head + d, count), x2 = load_some<L>(head + half + d, count);
    const auto c = load_some<L>(cos + d, count), s = load_some<L>(sin + d, count);
    store_some<L>(head + d, L::sub(L::mul(x1, c), L::mul(x2, s)), count);
    store_some<L>(head + half + d, L::add(L::mul(x2, c), L::mul(x1, s)), count);
  }
}

EDGE_INLINE void copy_head(const AttentionTask& task, const float* from, float* to) {
  memcpy(to, from, task.head_dim * sizeof(float));
  memset(to + task.head_dim, 0, (task.width - task.head_dim) * sizeof(float));
}

// A query or a key: [head_dim] -> [width], zeros after head_dim.
template <class L>
EDGE_INLINE void prepare_head(const AttentionTask& task, const float* from, const float* norm_weight, size_t position,
                              float* to, bool rotated = true) {
  copy_head(task, from, to);
  if (norm_weight) rms_norm<L>(from, norm_weight, task.call.epsilon, task.head_dim, to);
  if (task.call.rotary_dim && rotated) rotate<L>(task, position, to);
}

// A head as elements of the cache; returns the scale where they have one.
template <class L>
EDGE_INLINE float encode(const AttentionTask& task, const float* head, float* to) {
  memcpy(to, head, task.width * sizeof(float));
  return 1.0f;
}

template <class L>
EDGE_INLINE float encode(const AttentionTask& task, const float* head, Half* to) {
  for (size_t d = 0; d < task.width; d += kLanes) L::store(to + d, L::load(head + d));
  return 1.0f;
}

template <class L>
EDGE_INLINE float encode(const AttentionTask& task, const float* head, int8_t* to) {
  int32_t sum;
  return quantize_row<L>(head, task.head_dim, task.width, to, &sum);
}

template <class T>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<int8_t> = true;

template <class L, class T>
void append(const AttentionTask& task, size_t kv_head, size_t first, size_t end) {
  const size_t heads = static_cast<size_t>(task.call.heads), kv_heads = static_cast<size_t>(task.call.kv_heads);
  for (size_t token = first; token < end; ++token) {
    const float* qkv = task.call.qkv.data + token * (heads + 2 * kv_heads) * task.head_dim;
    const float* key = qkv + (heads + kv_head) * task.head_dim;
    const size_t position = static_cast<size_t>(task.call.position) + token, lane = position % kTilePositions;
    uint8_t* keys = task.key_tile(kv_head, position / kTilePositions);
    uint8_t* values = task.value_tile(kv_head, position / kTilePositions);
    float head[kMaxHeadDim];
    T elements[kMaxHeadDim];
    prepare_head<L>(task, key, task.call.k_norm.data, position, head);
    const float key_scale = encode<L>(task, head, elements);
    for (size_t d = 0; d < task.width; ++d) reinterpret_cast<T*>(keys)[kTilePositions * d + lane] = elements[d];
    copy_head(task, key + kv_heads * task.head_dim, head);
    const float value_scale = encode<L>(task, head, reinterpret_cast<T*>(values) + task.width * lane);
    if (kScaled<T>) {
      task.scales_of(keys)[lane] = key_scale;
      task.scales_of(values)[lane] = value_scale;
    }
  }
}

}  // namespace
}  // namespace edge
