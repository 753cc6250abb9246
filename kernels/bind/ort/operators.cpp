// ONNX Runtime custom operators over the kernels, domain "edge":
//   LinearAffine(x float [.., K], weight uint8 [bytes], bias? float [N]) -> float [.., N]   N, K: int; activations:
//   string EmbeddingAffine(ids int64 [..], weight uint8 [bytes]) -> float [.., hidden]              hidden: int
// Packed weights that are constants of the graph are used where the runtime mapped them; they are verified once.
#include "edge_kernels.h"
#include "ort_abi.h"
#include "support.h"

namespace edge::ort {
namespace {

constexpr size_t kMaxDims = 8;

// Returns from the enclosing function with the error of a call that failed.
#define EDGE_ORT_TRY(call) \
  if (Status* failure = (call)) return failure

struct Tensor {
  ElementType type = kUndefined;
  void* data = nullptr;  // null for an optional input that is not there
  size_t count = 0;
  size_t rank = 0;
  int64_t dims[kMaxDims];
};

struct Kernel {
  Api api;
  bool embedding;
  int64_t rows, columns;
  edge_activations activations;
  uint32_t verified;  // the weights' checksum was found right; set once, by any thread
};

Status* error(const Api& api, const char* text) {
  return api.CreateStatus(kInvalidArgument, text);
}

Status* error(const Api& api, edge_status status) {
  return status == EDGE_OK ? nullptr : api.CreateStatus(kInvalidArgument, edge_status_text(status));
}

Status* shape_of(const Api& api, const ShapeInfo* info, Tensor* out) {
  EDGE_ORT_TRY(api.GetTensorElementType(info, &out->type));
  EDGE_ORT_TRY(api.GetTensorShapeElementCount(info, &out->count));
  EDGE_ORT_TRY(api.GetDimensionsCount(info, &out->rank));
  if (out->rank > kMaxDims) return error(api, "edge: a tensor has more than 8 dimensions");
  return api.GetDimensions(info, out->dims, out->rank);
}

Status* read(const Api& api, const Value* value, Tensor* out) {
  if (!value) return nullptr;
  ShapeInfo* info = nullptr;
  EDGE_ORT_TRY(api.GetTensorTypeAndShape(value, &info));
  Status* failure = shape_of(api, info, out);
  api.ReleaseTensorTypeAndShapeInfo(info);
  if (failure) return failure;
  return api.GetTensorMutableData(const_cast<Value*>(value), &out->data);
}

Status* input(const Api& api, const KernelContext* context, size_t index, Tensor* out) {
  const Value* value = nullptr;
  EDGE_ORT_TRY(api.KernelContext_GetInput(context, index, &value));
  return read(api, value, out);
}

Status* output(const Api& api, KernelContext* context, const int64_t* dims, size_t rank, Tensor* out) {
  Value* value = nullptr;
  EDGE_ORT_TRY(api.KernelContext_GetOutput(context, 0, dims, rank, &value));
  return read(api, value, out);
}

// ---- Threads: chunks of work on the pool of the session ------------------------------------------------------------

struct Pool {
  Api api;
  const KernelContext* context;
  Status* failure;
};

void run_on_pool(void* host, size_t count, void (*task)(void* work, size_t index), void* work) {
  Pool* pool = static_cast<Pool*>(host);
  Status* failure = pool->api.KernelContext_ParallelFor(pool->context, task, count, 0, work);
  if (!failure) return;
  if (pool->failure) pool->api.ReleaseStatus(pool->failure);
  pool->failure = failure;
}

// ---- Kernels -------------------------------------------------------------------------------------------------------

// Weights must be what the node's attributes say. Their checksum is taken the first time only.
Status* check_weight(Kernel* kernel, const Tensor& weight) {
  if (weight.type != kUint8 || weight.rank != 1) return error(kernel->api, "edge: weight must be uint8 [bytes]");
  edge_packed_header header;
  EDGE_ORT_TRY(error(kernel->api, edge_check(weight.data, weight.count, &header)));
  if (header.rows != kernel->rows && !(kernel->embedding && kernel->rows == 0)) {
    return error(kernel->api, "edge: attribute N differs from the rows of the packed weight");
  }
  if (header.columns != kernel->columns) {
    return error(kernel->api, "edge: attribute K (or hidden) differs from the columns of the packed weight");
  }
  if (__atomic_load_n(&kernel->verified, __ATOMIC_RELAXED)) return nullptr;
  EDGE_ORT_TRY(error(kernel->api, edge_verify(weight.data, weight.count)));
  __atomic_store_n(&kernel->verified, 1u, __ATOMIC_RELAXED);
  return nullptr;
}

Status* compute_linear(Kernel* kernel, KernelContext* context) {
  const Api& api = kernel->api;
  Tensor x, weight, bias, out;
  size_t inputs = 0;
  EDGE_ORT_TRY(input(api, context, 0, &x));
  EDGE_ORT_TRY(input(api, context, 1, &weight));
  EDGE_ORT_TRY(api.KernelContext_GetInputCount(context, &inputs));
  if (inputs > 2) EDGE_ORT_TRY(input(api, context, 2, &bias));
  EDGE_ORT_TRY(check_weight(kernel, weight));
  if (x.type != kFloat || x.rank == 0 || x.dims[x.rank - 1] != kernel->columns) {
    return error(api, "edge: x must be float with a last dimension of K");
  }
  if (bias.data && (bias.type != kFloat || bias.rank != 1 || bias.dims[0] != kernel->rows)) {
    return error(api, "edge: bias must be float [N]");
  }
  x.dims[x.rank - 1] = kernel->rows;
  EDGE_ORT_TRY(output(api, context, x.dims, x.rank, &out));
  Pool pool = {api, context, nullptr};
  const edge_parallel parallel = {&pool, run_on_pool, 0};
  edge_linear_task task = {};
  task.packed = weight.data;
  task.packed_bytes = weight.count;
  task.activations = kernel->activations;
  task.x = {static_cast<const float*>(x.data), x.count};
  task.bias = {static_cast<const float*>(bias.data), bias.count};
  task.out = {static_cast<float*>(out.data), out.count};
  const edge_status status = edge_linear(&task, &parallel);
  return pool.failure ? pool.failure : error(api, status);
}

Status* compute_embedding(Kernel* kernel, KernelContext* context) {
  const Api& api = kernel->api;
  Tensor ids, weight, out;
  EDGE_ORT_TRY(input(api, context, 0, &ids));
  EDGE_ORT_TRY(input(api, context, 1, &weight));
  EDGE_ORT_TRY(check_weight(kernel, weight));
  if (ids.type != kInt64 || ids.rank == kMaxDims) return error(api, "edge: ids must be int64 of at most 7 dimensions");
  ids.dims[ids.rank] = kernel->columns;
  EDGE_ORT_TRY(output(api, context, ids.dims, ids.rank + 1, &out));
  return error(api, edge_embedding(weight.data, weight.count, static_cast<const int64_t*>(ids.data), ids.count,
                                   static_cast<float*>(out.data), out.count));
}

Status* compute(void* kernel, KernelContext* context) {
  Kernel* self = static_cast<Kernel*>(kernel);
  return self->embedding ? compute_embedding(self, context) : compute_linear(self, context);
}

Status* read_activations(const Api& api, const KernelInfo* info, edge_activations* out) {
  char text[8] = {};
  size_t bytes = sizeof(text);
  if (Status* failure = api.KernelInfoGetAttribute_string(info, "activations", text, &bytes)) {
    api.ReleaseStatus(failure);  // absent or too long: the message below says what is wanted
  }
  const bool a8 = text[0] == 'a' && text[1] == '8' && !text[2];
  const bool f32 = text[0] == 'f' && text[1] == '3' && text[2] == '2' && !text[3];
  *out = a8 ? EDGE_A8 : EDGE_F32;
  return a8 || f32 ? nullptr : error(api, "edge: attribute activations must be \"a8\" or \"f32\"");
}

Status* check_constant_weight(Kernel* kernel, const KernelInfo* info) {
  int is_constant = 0;
  const Value* value = nullptr;
  Tensor weight;
  EDGE_ORT_TRY(kernel->api.KernelInfoGetConstantInput_tensor(info, 1, &is_constant, &value));
  if (!is_constant || !value) return nullptr;  // checked when it comes
  EDGE_ORT_TRY(read(kernel->api, value, &weight));
  return check_weight(kernel, weight);
}

Status* set_up(Kernel* kernel, const KernelInfo* info) {
  const Api& api = kernel->api;
  if (kernel->embedding) {
    EDGE_ORT_TRY(api.KernelInfoGetAttribute_int64(info, "hidden", &kernel->columns));
  } else {
    EDGE_ORT_TRY(api.KernelInfoGetAttribute_int64(info, "N", &kernel->rows));
    EDGE_ORT_TRY(api.KernelInfoGetAttribute_int64(info, "K", &kernel->columns));
    EDGE_ORT_TRY(read_activations(api, info, &kernel->activations));
  }
  return check_constant_weight(kernel, info);
}

// Appends `text` to the line that ends at `*end` of a buffer of `size` bytes, cut where it is full.
void append(char* line, size_t size, size_t* end, const char* text) {
  while (*text && *end + 1 < size) line[(*end)++] = *text++;
  line[*end] = 0;
}

// The same error with the name of the node before it: ONNX Runtime adds that when a node runs, not when it is made.
Status* with_node_name(const Api& api, const KernelInfo* info, Status* failure) {
  char name[256] = {}, line[512];
  size_t bytes = sizeof(name), end = 0;
  if (Status* unnamed = api.KernelInfo_GetNodeName(info, name, &bytes)) {
    api.ReleaseStatus(unnamed);  // none, or too long to show
    return failure;
  }
  append(line, sizeof(line), &end, "node '");
  append(line, sizeof(line), &end, name);
  append(line, sizeof(line), &end, "': ");
  append(line, sizeof(line), &end, api.GetErrorMessage(failure));
  api.ReleaseStatus(failure);
  return error(api, line);
}

Status* create(bool embedding, void* const* table, const KernelInfo* info, void** out) {
  const Api api = {table};
  Kernel* kernel = static_cast<Kernel*>(malloc(sizeof(Kernel)));
  if (!kernel) return error(api, EDGE_OUT_OF_MEMORY);
  *kernel = {api, embedding, 0, 0, EDGE_A8, 0};
  if (Status* failure = set_up(kernel, info)) {
    free(kernel);
    return with_node_name(api, info, failure);
  }
  *out = kernel;
  return nullptr;
}

// ---- Shape inference -----------------------------------------------------------------------------------------------

// Set the output's shape: that of the first input with `last` as its last dimension, or appended after it.
Status* set_shape(const Api& api, ShapeContext* context, const ShapeInfo* in, bool append, int64_t last) {
  Tensor shape;
  const char* names[kMaxDims] = {};
  EDGE_ORT_TRY(api.GetDimensionsCount(in, &shape.rank));
  if (shape.rank + append > kMaxDims || shape.rank + append == 0) return nullptr;  // the kernel refuses it
  EDGE_ORT_TRY(api.GetDimensions(in, shape.dims, shape.rank));
  EDGE_ORT_TRY(api.GetSymbolicDimensions(in, names, shape.rank));
  shape.rank += append;
  shape.dims[shape.rank - 1] = last;
  names[shape.rank - 1] = "";
  ShapeInfo* info = nullptr;
  EDGE_ORT_TRY(api.CreateTensorTypeAndShapeInfo(&info));
  Status* failure = api.SetTensorElementType(info, kFloat);
  if (!failure) failure = api.SetDimensions(info, shape.dims, shape.rank);
  if (!failure) failure = api.SetSymbolicDimensions(info, names, shape.rank);
  if (!failure) failure = api.ShapeInferContext_SetOutputTypeShape(context, 0, info);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return failure;
}

// The API table as RegisterCustomOps got it: ONNX Runtime passes none to shape inference.
void* const* registered_table;

Status* infer(ShapeContext* context, const char* attribute_name, bool append) {
  const Api api = {__atomic_load_n(&registered_table, __ATOMIC_ACQUIRE)};
  const Attribute* attribute = nullptr;
  int64_t last = 0;
  size_t used = 0;
  EDGE_ORT_TRY(api.ShapeInferContext_GetAttribute(context, attribute_name, &attribute));
  EDGE_ORT_TRY(api.ReadOpAttr(attribute, kAttributeInt, static_cast<void*>(&last), sizeof(last), &used));
  ShapeInfo* in = nullptr;
  EDGE_ORT_TRY(api.ShapeInferContext_GetInputTypeShape(context, 0, &in));
  return set_shape(api, context, in, append, last);  // `in` belongs to the context
}

// ---- The two operators ---------------------------------------------------------------------------------------------

template <bool Embedding>
struct Operator : CustomOp {
  constexpr Operator() : CustomOp{} {
    version = kApiVersion;
    GetName = [](const CustomOp*) { return Embedding ? "EmbeddingAffine" : "LinearAffine"; };
    GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
    GetInputType = [](const CustomOp*, size_t index) {
      return index == 1 ? kUint8 : index == 0 && Embedding ? kInt64 : kFloat;
    };
    GetInputTypeCount = [](const CustomOp*) -> size_t { return Embedding ? 2 : 3; };
    GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
    GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
    KernelDestroy = [](void* kernel) { free(kernel); };
    GetInputCharacteristic = [](const CustomOp*, size_t index) { return index == 2 ? kOptional : kRequired; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
    GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
    GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
    CreateKernelV2 = [](const CustomOp*, void* const* table, const KernelInfo* info, void** kernel) {
      return create(Embedding, table, info, kernel);
    };
    KernelComputeV2 = compute;
    InferOutputShapeFn = [](const CustomOp*, ShapeContext* context) {
      return infer(context, Embedding ? "hidden" : "N", Embedding);
    };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return INT32_MAX; };
  }
};

constexpr Operator<false> kLinear;
constexpr Operator<true> kEmbedding;

Status* make_domain(const Api& api, Domain** out) {
  EDGE_ORT_TRY(api.CreateCustomOpDomain("edge", out));
  EDGE_ORT_TRY(api.CustomOpDomain_Add(*out, &kLinear));
  return api.CustomOpDomain_Add(*out, &kEmbedding);
}

// One domain for the life of the process: sessions keep a pointer to it and none says when it is done.
Status* shared_domain(const Api& api, Domain** out) {
  static Domain* shared;
  *out = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
  if (*out) return nullptr;
  Domain* made = nullptr;
  if (Status* failure = make_domain(api, &made)) {
    if (made) api.ReleaseCustomOpDomain(made);
    return failure;
  }
  if (__atomic_compare_exchange_n(&shared, out, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    *out = made;
  } else {
    api.ReleaseCustomOpDomain(made);  // another thread was first; `out` holds its domain
  }
  return nullptr;
}

}  // namespace
}  // namespace edge::ort

// Called by ONNX Runtime's register_custom_ops_library.
extern "C" EDGE_API edge::ort::Status* RegisterCustomOps(edge::ort::SessionOptions* options,
                                                         const edge::ort::ApiBase* base) {
  using namespace edge::ort;
  void* const* table = base->GetApi(kApiVersion);
  if (!table) {
    void* const* oldest = base->GetApi(1);  // slot 0, CreateStatus, is in every version
    return oldest ? Api{oldest}.CreateStatus(kFail, "edge's operators need ONNX Runtime 1.17 or newer") : nullptr;
  }
  const Api api = {table};
  __atomic_store_n(&registered_table, table, __ATOMIC_RELEASE);
  Domain* domain = nullptr;
  EDGE_ORT_TRY(shared_domain(api, &domain));
  return api.AddCustomOpDomain(options, domain);
}
