// ExecuTorch operators "edge::linear.out", .. : all operators of the kernels' table. Loading this library registers
// them. The stack of a call: the table's inputs, its attributes, then the outputs that are not inputs updated in place.
#include <ctype.h>
#include <executorch/runtime/core/exec_aten/util/dim_order_util.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>
#include <executorch/runtime/platform/platform.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <utility>

#include "edge_kernels.h"

namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;

constexpr size_t kMostOperators = 8;

int32_t type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return EDGE_FLOAT;
    case ScalarType::Byte:
      return EDGE_UINT8;
    case ScalarType::Int:
      return EDGE_INT32;
    case ScalarType::Long:
      return EDGE_INT64;
    default:
      return -1;  // no operator takes it
  }
}

edge_status read(const et::EValue& value, edge_tensor* out) {
  *out = {};
  if (value.isNone()) return EDGE_OK;
  if (!value.isTensor()) return EDGE_BAD_ARGUMENT;
  const Tensor& tensor = value.toTensor();
  const auto order = tensor.dim_order();
  if (tensor.dim() > EDGE_MAX_RANK || !et::is_contiguous_dim_order(order.data(), order.size()))
    return EDGE_BAD_ARGUMENT;
  out->data = const_cast<void*>(tensor.const_data_ptr());
  out->type = type_of(tensor.scalar_type());
  out->rank = static_cast<int32_t>(tensor.dim());
  for (int32_t i = 0; i < out->rank; ++i) out->dims[i] = tensor.size(i);
  return EDGE_OK;
}

// Gives an output its shape; one that is absent has no elements.
edge_status make(et::EValue& value, edge_tensor* out) {
  if (!value.isTensor()) return EDGE_BAD_ARGUMENT;
  Tensor& tensor = value.toTensor();
  executorch::aten::SizesType sizes[EDGE_MAX_RANK] = {0};
  const size_t rank = out->type ? static_cast<size_t>(out->rank) : 1;
  for (size_t i = 0; out->type && i < rank; ++i) sizes[i] = static_cast<executorch::aten::SizesType>(out->dims[i]);
  if (et::resize_tensor(tensor, {sizes, rank}) != et::Error::Ok) return EDGE_OUT_OF_MEMORY;
  return out->type ? read(value, out) : EDGE_OK;
}

edge_status read_attribute(const et::EValue& value, double* out) {
  if (value.isInt()) *out = static_cast<double>(value.toInt());
  if (value.isDouble()) *out = value.toDouble();
  return value.isInt() || value.isDouble() ? EDGE_OK : EDGE_BAD_ARGUMENT;
}

// Whether a weight was checked already: by where it is and its checksum, as a kernel has no state of its own.
std::atomic<uint64_t>* place_of(const edge_tensor& weight, uint64_t* key) {
  static std::atomic<uint64_t> checked[4096];
  edge_packed_header header = {};
  if (weight.rank == 1 && weight.dims[0] >= 64) memcpy(&header, weight.data, sizeof(header));
  *key = (header.checksum ^ reinterpret_cast<uintptr_t>(weight.data)) | 1;
  const uint64_t start = *key * 0x9e3779b97f4a7c15u >> 52;
  for (uint64_t i = 0; i < 16; ++i) {
    std::atomic<uint64_t>& place = checked[(start + i) % 4096];
    if (place.load(std::memory_order_relaxed) == *key || !place.load(std::memory_order_relaxed)) return &place;
  }
  return &checked[start];
}

edge_status check(const edge_operator& entry, const double* attributes, const edge_tensor* inputs) {
  for (int32_t i = 0; i < entry.input_count; ++i) {
    if (!entry.inputs[i].packed) continue;
    uint64_t key;
    std::atomic<uint64_t>* place = place_of(inputs[i], &key);
    if (place->load(std::memory_order_relaxed) == key) continue;
    const edge_status status = entry.check(attributes, inputs);
    if (status != EDGE_OK) return status;
    place->store(key, std::memory_order_relaxed);
  }
  return EDGE_OK;
}

void run_on_pool(void*, size_t count, void (*task)(void* work, size_t index), void* work) {
  executorch::extension::parallel_for(0, static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(work, static_cast<size_t>(i));
  });
}

edge_status call(const edge_operator& entry, et::Span<et::EValue*> stack) {
  edge_tensor inputs[EDGE_MAX_SLOTS], outputs[EDGE_MAX_SLOTS];
  double attributes[EDGE_MAX_SLOTS];
  size_t next = 0, made = 0;
  for (int32_t i = 0; i < entry.output_count; ++i) made += entry.outputs[i].alias < 0;
  const size_t expected = static_cast<size_t>(entry.input_count + entry.attribute_count) + made;
  edge_status status = stack.size() < expected ? EDGE_BAD_ARGUMENT : EDGE_OK;
  for (int32_t i = 0; i < entry.input_count && status == EDGE_OK; ++i) status = read(*stack[next++], &inputs[i]);
  for (int32_t i = 0; i < entry.attribute_count && status == EDGE_OK; ++i) {
    status = read_attribute(*stack[next++], &attributes[i]);
  }
  if (status == EDGE_OK) status = check(entry, attributes, inputs);
  if (status == EDGE_OK) status = entry.shapes(attributes, inputs, outputs);
  for (int32_t i = 0; i < entry.output_count && status == EDGE_OK; ++i) {
    const int32_t alias = entry.outputs[i].alias;
    if (alias >= 0) outputs[i] = inputs[alias];
    if (alias < 0) status = make(*stack[next++], &outputs[i]);
  }
  const edge_parallel parallel = {nullptr, run_on_pool, static_cast<size_t>(executorch::extension::get_thread_count())};
  return status == EDGE_OK ? entry.run(attributes, inputs, outputs, &parallel) : status;
}

template <size_t Index>
void kernel(et::KernelRuntimeContext& context, et::Span<et::EValue*> stack) {
  const edge_operator& entry = *edge_operator_at(Index);
  const edge_status status = call(entry, stack);
  if (status == EDGE_OK) return;
  ET_LOG(Error, "edge::%s: %s", entry.name, edge_status_text(status));
  context.fail(status == EDGE_OUT_OF_MEMORY ? et::Error::MemoryAllocationFailed : et::Error::InvalidArgument);
}

bool is_registered(const char* name) {  // the runtime's own look-up would log an error
  bool found = false;
  for (const et::Kernel& known : et::get_registered_kernels()) found |= strcmp(known.name_, name) == 0;
  return found;
}

template <size_t... Index>
bool register_all(std::index_sequence<Index...>) {
  static char names[sizeof...(Index)][64];
  const et::OpFunction functions[] = {kernel<Index>...};
  for (size_t i = 0; const edge_operator* entry = i < sizeof...(Index) ? edge_operator_at(i) : nullptr; ++i) {
    snprintf(names[i], sizeof(names[i]), "edge::%s.out", entry->name);
    for (char* letter = names[i]; *letter; ++letter) *letter = static_cast<char>(tolower(*letter));
    if (is_registered(names[i])) continue;  // by another copy of this library
    if (et::register_kernel(et::Kernel(names[i], functions[i])) != et::Error::Ok) return false;
  }
  return true;
}

[[maybe_unused]] const bool registered = register_all(std::make_index_sequence<kMostOperators>());

}  // namespace

// ---- The log, for who has messages of their own --------------------------------------------------------------------

namespace {

char kept_error[512];

void keep(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t) {
  const bool wrong = level == kError || level == kFatal;
  if (wrong && !kept_error[0]) snprintf(kept_error, sizeof(kept_error), "%s", message);  // what follows is its echo
}

}  // namespace

// From the first call on, ExecuTorch prints nothing. Returns the first error since the call before, empty for none.
extern "C" const char* edge_executorch_error() {
  // register_pal would say on stderr that somebody else, ExecuTorch's Python module, was there before.
  const_cast<et::PalImpl*>(et::get_pal_impl())->emit_log_message = keep;
  static char last[sizeof(kept_error)];
  snprintf(last, sizeof(last), "%s", kept_error);
  kept_error[0] = 0;
  return last;
}
