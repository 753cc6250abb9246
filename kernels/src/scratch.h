// Memory for the length of a call: on the stack while it is little, as it is in a decode step.
#pragma once

#include "support.h"

namespace edge {
namespace {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(heap_); }

  // Offset of `count` elements in the memory that `reserve` will get.
  template <class T>
  size_t plan(size_t count) {
    const size_t offset = bytes_;
    bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }

  bool reserve() {
    if (bytes_ > sizeof(local_)) heap_ = static_cast<uint8_t*>(malloc(bytes_));
    return heap_ || bytes_ <= sizeof(local_);
  }

  template <class T>
  T* at(size_t offset) {
    return reinterpret_cast<T*>((heap_ ? heap_ : local_) + offset);
  }

 private:
  static constexpr size_t kAlignment = 64;
  alignas(kAlignment) uint8_t local_[32 * 1024];
  uint8_t* heap_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace
}  // namespace edge
