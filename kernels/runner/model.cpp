#include "model.h"

namespace edge {
namespace {

// As in runtimes/onnx.py, which says why.
constexpr long kPrefillChunk = 512, kOldestMinor = 24;
constexpr char kSpin[] = "50";
constexpr char kPast[] = "past_key_values.", kPresent[] = "present.";

constexpr const char* kStepInputs[] = {"input_ids", "seqlens_k", "total_sequence_length", "num_logits"};

size_t element_bytes(ort::ElementType type) {
  switch (type) {
    case ort::kFloat:
      return 4;
    case ort::kFloat16:
      return 2;
    case ort::kUint8:
      return 1;
    default:
      return 0;
  }
}

bool is_step_input(const char* name) {
  for (const char* known : kStepInputs) {
    if (strcmp(name, known) == 0) return true;
  }
  return false;
}

// Zeroed pages, which cost memory only once they are written.
void* zeros(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == reinterpret_cast<void*>(-1) ? nullptr : memory;
}

bool readable(const char* path, const char* code, Failure& failure) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(failure, code, "%.400s: %s", path, strerror(errno));
  close(fd);
  return true;
}

}  // namespace

bool Model::check(ort::Status* status, const char* code, Failure& failure) {
  if (!status) return true;
  fail(failure, code, "ONNX Runtime: %s", api_.GetErrorMessage(status));
  api_.ReleaseStatus(status);
  return false;
}

bool Model::load_library(const char* path, Failure& failure) {
  if (!readable(path, "library", failure)) return false;
  void* library = dlopen(path, RTLD_NOW);
  if (!library) return fail(failure, "library", "ONNX Runtime can't be loaded: %s", dlerror());
  using GetBase = const ort::ApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  if (!get_base) return fail(failure, "library", "%.400s is not ONNX Runtime: it has no OrtGetApiBase", path);
  const ort::ApiBase* base = get_base();
  version_ = base->GetVersionString();
  api_.table = base->GetApi(ort::kApiVersion);
  if (!api_.table) {
    return fail(failure, "library", "ONNX Runtime %s is too old: 1.%u and later will do", version_, ort::kApiVersion);
  }
  return check(api_.CreateEnv(ort::kLogFatal, "edge", &env_), "library", failure) &&
         check(api_.DisableTelemetryEvents(env_), "library", failure) &&
         check(api_.GetAllocatorWithDefaultOptions(&allocator_), "library", failure) &&
         check(api_.CreateCpuMemoryInfo(ort::kDeviceAllocator, ort::kDefaultMemory, &memory_), "library", failure);
}

// Before 1.24 ONNX Runtime itself crashes at an operator of ours that leaves out an optional input.
bool Model::check_version(const Plan& plan, Failure& failure) {
  char* end = nullptr;
  const long major = strtol(version_, &end, 10), minor = *end == '.' ? strtol(end + 1, nullptr, 10) : 0;
  if (!plan.kernels || major > 1 || (major == 1 && minor >= kOldestMinor)) return true;
  return fail(failure, "library", "ONNX Runtime %.40s is too old for edge's operators: 1.%ld and later will do",
              version_, kOldestMinor);
}

bool Model::options(const Plan& plan, ort::SessionOptions** out, Failure& failure) {
  // Left to itself, the engine would count all cores and put a thread on each.
  const long threads = plan.threads == 0 && plan.cores.size ? static_cast<long>(plan.cores.size) : plan.threads;
  if (!check(api_.CreateSessionOptions(out), "engine", failure)) return false;
  ort::SessionOptions* set = *out;
  if (!check(api_.SetIntraOpNumThreads(set, static_cast<int>(threads)), "engine", failure) ||
      !check(api_.SetSessionLogSeverityLevel(set, ort::kLogFatal), "engine", failure) ||
      !check(api_.AddSessionConfigEntry(set, "session.intra_op.spin_duration_us", kSpin), "engine", failure) ||
      !check(api_.SetSessionGraphOptimizationLevel(set, ort::kOptimizeBasic), "engine", failure)) {
    return false;
  }
  if (plan.profile && !check(api_.EnableProfiling(set, plan.profile), "engine", failure)) return false;
  if (!plan.kernels) return true;
  return readable(plan.kernels, "library", failure) &&
         check(api_.RegisterCustomOpsLibrary_V2(set, plan.kernels), "library", failure);
}

bool Model::load(const Plan& plan, Failure& failure) {
  ort::SessionOptions* set = nullptr;
  if (!check_version(plan, failure) || !readable(plan.model, "model", failure) || !options(plan, &set, failure))
    return false;
  logits_ = static_cast<float*>(zeros(static_cast<size_t>(plan.vocab) * sizeof(float)));
  if (!logits_) return fail(failure, "engine", "there is no memory for the logits");
  return check(api_.CreateSession(env_, plan.model, set, &session_), "model", failure) &&
         check(api_.CreateIoBinding(session_, &bindings_[kStep]), "engine", failure) &&
         check(api_.CreateIoBinding(session_, &bindings_[kPrefill]), "engine", failure) && bind_inputs(failure) &&
         bind_outputs(plan, failure) && bind_tokens(bindings_[kStep], &token_, 1, failure);
}

bool Model::tensor_of(ort::TypeInfo* info, Tensor& out, Failure& failure) {
  const ort::ShapeInfo* shape = nullptr;
  bool good = check(api_.CastTypeInfoToTensorInfo(info, &shape), "model", failure);
  if (good && !shape) good = fail(failure, "model", "the model has an input or output that is no tensor");
  good = good && check(api_.GetTensorElementType(shape, &out.type), "model", failure) &&
         check(api_.GetDimensionsCount(shape, &out.dimensions), "model", failure);
  if (good && out.dimensions > 8) good = fail(failure, "model", "the model has a tensor of over 8 dimensions");
  good = good && check(api_.GetDimensions(shape, out.shape, out.dimensions), "model", failure);
  api_.ReleaseTypeInfo(info);
  return good;
}

bool Model::bind_inputs(Failure& failure) {
  size_t count = 0, found = 0;
  if (!check(api_.SessionGetInputCount(session_, &count), "engine", failure)) return false;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    ort::TypeInfo* info = nullptr;
    Tensor tensor;
    if (!check(api_.SessionGetInputName(session_, i, allocator_, &name), "engine", failure) ||
        !check(api_.SessionGetInputTypeInfo(session_, i, &info), "engine", failure) ||
        !tensor_of(info, tensor, failure)) {
      return false;
    }
    if (is_step_input(name)) {
      ++found;
    } else if (strncmp(name, kPast, strlen(kPast)) != 0 || !element_bytes(tensor.type)) {
      return fail(failure, "model", "it is no decoder of ours: nothing is given to its input '%.200s'", name);
    } else if (!bind_cache(name, tensor, failure)) {
      return false;
    }
  }
  const size_t wanted = sizeof(kStepInputs) / sizeof(*kStepInputs);
  if (found != wanted) return fail(failure, "model", "it is no decoder of ours: it lacks an input");
  const Tensor one = {ort::kInt64, {1}, 1}, length = {ort::kInt32, {1}, 1}, total = {ort::kInt32, {}, 0};
  for (ort::Binding* binding : bindings_) {
    if (!bind_input(binding, "num_logits", &num_logits_, sizeof(num_logits_), one, failure) ||
        !bind_input(binding, "seqlens_k", &seqlens_k_, sizeof(seqlens_k_), length, failure) ||
        !bind_input(binding, "total_sequence_length", &total_length_, sizeof(total_length_), total, failure)) {
      return false;
    }
  }
  return true;
}

bool Model::bind_outputs(const Plan& plan, Failure& failure) {
  size_t count = 0;
  if (!check(api_.SessionGetOutputCount(session_, &count), "engine", failure)) return false;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    ort::TypeInfo* info = nullptr;
    Tensor tensor;
    if (!check(api_.SessionGetOutputName(session_, i, allocator_, &name), "engine", failure)) return false;
    if (strcmp(name, "logits") != 0) continue;  // the caches, which are bound with their inputs
    if (!check(api_.SessionGetOutputTypeInfo(session_, i, &info), "engine", failure)) return false;
    if (!tensor_of(info, tensor, failure)) return false;
    if (tensor.type != ort::kFloat || tensor.dimensions == 0 || tensor.shape[tensor.dimensions - 1] != plan.vocab)
      break;
    const Tensor logits = {ort::kFloat, {1, 1, plan.vocab}, 3};
    return bind_both(nullptr, "logits", logits_, static_cast<size_t>(plan.vocab) * sizeof(float), logits, failure);
  }
  return fail(failure, "model", "it is no decoder of ours: it gives no logits of %ld tokens", plan.vocab);
}

bool Model::bind_cache(const char* name, const Tensor& tensor, Failure& failure) {
  size_t bytes = element_bytes(tensor.type);
  for (size_t i = 0; i < tensor.dimensions; ++i) {
    if (tensor.shape[i] <= 0) return fail(failure, "model", "its cache '%.200s' has no fixed size", name);
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(tensor.shape[i]), &bytes)) bytes = SIZE_MAX;
  }
  void* memory = zeros(bytes);
  if (!memory) return fail(failure, "engine", "there is no memory for the cache '%.200s'", name);
  Text present;
  present.add(kPresent);
  present.add(name + strlen(kPast));
  const bool good = bind_both(name, present.data, memory, bytes, tensor, failure);
  free(present.data);
  return good;
}

// The same memory as input, output or both, for single tokens and for prompts.
bool Model::bind_both(const char* input, const char* output, void* data, size_t bytes, const Tensor& as,
                      Failure& failure) {
  ort::Value* value = nullptr;
  bool good = check(api_.CreateTensorWithDataAsOrtValue(memory_, data, bytes, as.shape, as.dimensions, as.type, &value),
                    "engine", failure);
  for (ort::Binding* binding : bindings_) {
    if (input) good = good && check(api_.BindInput(binding, input, value), "model", failure);
    good = good && check(api_.BindOutput(binding, output, value), "model", failure);
  }
  if (value) api_.ReleaseValue(value);
  return good;
}

bool Model::bind_input(ort::Binding* binding, const char* name, void* data, size_t bytes, const Tensor& as,
                       Failure& failure) {
  ort::Value* value = nullptr;
  if (!check(api_.CreateTensorWithDataAsOrtValue(memory_, data, bytes, as.shape, as.dimensions, as.type, &value),
             "engine", failure)) {
    return false;
  }
  const bool good = check(api_.BindInput(binding, name, value), "model", failure);
  api_.ReleaseValue(value);
  return good;
}

bool Model::bind_tokens(ort::Binding* binding, const int64_t* tokens, long count, Failure& failure) {
  const Tensor ids = {ort::kInt64, {1, count}, 2};
  auto* data = const_cast<int64_t*>(tokens);  // an input, which nobody writes to
  return bind_input(binding, "input_ids", data, static_cast<size_t>(count) * sizeof(int64_t), ids, failure);
}

bool Model::run(ort::Binding* binding, long end, Failure& failure) {
  seqlens_k_ = static_cast<int32_t>(end - 1);
  total_length_ = static_cast<int32_t>(end);
  const ort::RunOptions* none = nullptr;
  if (!check(api_.RunWithBinding(session_, none, binding), "engine", failure)) return false;
  position_ = end;
  return true;
}

bool Model::feed(const int64_t* tokens, long count, Failure& failure) {
  if (count == 1) {
    token_ = *tokens;
    return run(bindings_[kStep], position_ + 1, failure);
  }
  for (long start = 0; start < count; start += kPrefillChunk) {
    const long piece = count - start < kPrefillChunk ? count - start : kPrefillChunk;
    if (!bind_tokens(bindings_[kPrefill], tokens + start, piece, failure)) return false;
    if (!run(bindings_[kPrefill], position_ + piece, failure)) return false;
  }
  return true;
}

bool Model::end_profile(const char* to, Failure& failure) {
  char* written = nullptr;
  if (!check(api_.SessionEndProfiling(session_, allocator_, &written), "engine", failure)) return false;
  if (rename(written, to) == 0) return true;
  return fail(failure, "disk", "trace %.300s: %s", to, strerror(errno));
}

}  // namespace edge
