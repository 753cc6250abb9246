// A decoder in ONNX Runtime, opened and fed as runtimes/onnx.py does: caches of fixed size that the graph reads and
// writes in place, single tokens without an allocation.
#pragma once

#include "ort_session.h"
#include "plan.h"

namespace edge {

class Model {
 public:
  // ONNX Runtime itself, telemetry off. version() tells which, null before.
  bool load_library(const char* path, Failure& failure);
  const char* version() const { return version_; }

  // The session and its empty caches.
  bool load(const Plan& plan, Failure& failure);

  void rewind() { position_ = 0; }
  // Reads tokens at the present position; logits() are those of the last.
  bool feed(const int64_t* tokens, long count, Failure& failure);
  const float* logits() const { return logits_; }

  // Puts the engine's trace at `to`.
  bool end_profile(const char* to, Failure& failure);

 private:
  struct Tensor {
    ort::ElementType type = 0;
    int64_t shape[8] = {};
    size_t dimensions = 0;
  };
  bool check_version(const Plan& plan, Failure& failure);
  bool check(ort::Status* status, const char* code, Failure& failure);
  bool options(const Plan& plan, ort::SessionOptions** out, Failure& failure);
  bool tensor_of(ort::TypeInfo* info, Tensor& out, Failure& failure);
  bool bind_inputs(Failure& failure);
  bool bind_outputs(const Plan& plan, Failure& failure);
  bool bind_input(ort::Binding* binding, const char* name, void* data, size_t bytes, const Tensor& as,
                  Failure& failure);
  bool bind_cache(const char* name, const Tensor& tensor, Failure& failure);
  bool bind_tokens(ort::Binding* binding, const int64_t* tokens, long count, Failure& failure);
  bool bind_both(const char* input, const char* output, void* data, size_t bytes, const Tensor& as, Failure& failure);
  bool run(ort::Binding* binding, long end, Failure& failure);

  ort::SessionApi api_ = {};
  ort::Env* env_ = nullptr;
  ort::Session* session_ = nullptr;
  ort::Allocator* allocator_ = nullptr;
  ort::MemoryInfo* memory_ = nullptr;
  enum { kStep, kPrefill };
  ort::Binding* bindings_[2] = {};  // of the one token in token_; of pieces of a prompt
  const char* version_ = nullptr;
  float* logits_ = nullptr;
  long position_ = 0;
  int64_t token_ = 0, num_logits_ = 1;
  int32_t seqlens_k_ = 0, total_length_ = 0;
};

}  // namespace edge
