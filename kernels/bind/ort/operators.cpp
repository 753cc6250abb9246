// ONNX Runtime custom operators, domain "edge": all operators of the kernels' table, by their names there.
// Inputs that are constants of the graph are used where the runtime mapped them; weights among them are checked once.
#include "edge_kernels.h"
#include "ort_abi.h"
#include "support.h"

namespace edge::ort {
namespace {

// Returns from the enclosing function with the error of a call that failed.
#define EDGE_ORT_TRY(call) \
  if (Status* failure = (call)) return failure

constexpr size_t kMostOperators = 8;

struct Operator : CustomOp {
  size_t index;  // in the kernels' table
};

const edge_operator& entry_of(const CustomOp* op) {
  return *edge_operator_at(static_cast<const Operator*>(op)->index);
}

struct Kernel {
  Api api;
  const edge_operator* entry;
  double attributes[EDGE_MAX_SLOTS];
  edge_tensor constants[EDGE_MAX_SLOTS];  // of the graph; inputs that come with each run are absent here
  size_t inputs, outputs;                 // that the node has
  uint32_t checked;                       // the weights; set once, by any thread
};

Status* error(const Api& api, const char* text) {
  return api.CreateStatus(kInvalidArgument, text);
}

Status* error(const Api& api, edge_status status) {
  return status == EDGE_OK ? nullptr : error(api, edge_status_text(status));
}

Status* read_shape(const Api& api, const ShapeInfo* info, edge_tensor* out) {
  size_t rank = 0;
  EDGE_ORT_TRY(api.GetDimensionsCount(info, &rank));
  if (rank > EDGE_MAX_RANK) return error(api, "a tensor has more than 8 dimensions");
  out->rank = static_cast<int32_t>(rank);
  return api.GetDimensions(info, out->dims, rank);
}

// ONNX Runtime holds tensors to the operator's types before it runs anything.
Status* read(const Api& api, const Value* value, int32_t type, edge_tensor* out) {
  if (!value) return nullptr;
  ShapeInfo* info = nullptr;
  out->type = type;
  EDGE_ORT_TRY(api.GetTensorTypeAndShape(value, &info));
  Status* failure = read_shape(api, info, out);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return failure ? failure : api.GetTensorMutableData(const_cast<Value*>(value), &out->data);
}

// ---- Running -------------------------------------------------------------------------------------------------------

struct Pool {
  const Api& api;
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

Status* check(Kernel* kernel, const edge_tensor* inputs) {
  if (__atomic_load_n(&kernel->checked, __ATOMIC_RELAXED)) return nullptr;
  EDGE_ORT_TRY(error(kernel->api, kernel->entry->check(kernel->attributes, inputs)));
  bool all = true;
  for (int32_t i = 0; i < kernel->entry->input_count; ++i) all &= !kernel->entry->inputs[i].packed || inputs[i].type;
  __atomic_store_n(&kernel->checked, all, __ATOMIC_RELAXED);
  return nullptr;
}

Status* compute(void* argument, KernelContext* context) {
  Kernel* kernel = static_cast<Kernel*>(argument);
  const Api& api = kernel->api;
  const edge_operator& entry = *kernel->entry;
  edge_tensor inputs[EDGE_MAX_SLOTS], outputs[EDGE_MAX_SLOTS];
  memcpy(inputs, kernel->constants, entry.input_count * sizeof(edge_tensor));
  for (size_t i = 0; i < kernel->inputs; ++i) {
    const Value* value = nullptr;
    if (inputs[i].type) continue;
    EDGE_ORT_TRY(api.KernelContext_GetInput(context, i, &value));
    EDGE_ORT_TRY(read(api, value, entry.inputs[i].type, &inputs[i]));
  }
  EDGE_ORT_TRY(check(kernel, inputs));
  EDGE_ORT_TRY(error(api, entry.shapes(kernel->attributes, inputs, outputs)));
  for (size_t i = 0; i < static_cast<size_t>(entry.output_count); ++i) {
    Value* value = nullptr;
    edge_tensor& out = outputs[i];
    if (out.type && i < kernel->outputs) {
      EDGE_ORT_TRY(api.KernelContext_GetOutput(context, i, out.dims, static_cast<size_t>(out.rank), &value));
    }
    if (value) {
      EDGE_ORT_TRY(api.GetTensorMutableData(value, &out.data));
    } else {
      out = {};
    }
  }
  Pool pool = {api, context, nullptr};
  const edge_parallel parallel = {&pool, run_on_pool, 0};
  const edge_status status = entry.run(kernel->attributes, inputs, outputs, &parallel);
  return pool.failure ? pool.failure : error(api, status);
}

// ---- Making a kernel -----------------------------------------------------------------------------------------------

bool succeeds(const Api& api, Status* failure) {
  if (failure) api.ReleaseStatus(failure);
  return !failure;
}

Status* read_attribute(const Api& api, const KernelInfo* info, const edge_attribute& attribute, double* out) {
  int64_t whole = 0;
  float real = 0;
  size_t bytes = 0;
  const bool is_whole = succeeds(api, api.KernelInfoGetAttribute_int64(info, attribute.name, &whole));
  const bool is_real = succeeds(api, api.KernelInfoGetAttribute_float(info, attribute.name, &real));
  const bool is_text = succeeds(api, api.KernelInfoGetAttribute_string(info, attribute.name, nullptr, &bytes));
  *out = is_whole ? static_cast<double>(whole) : is_real ? static_cast<double>(real) : attribute.value;
  if (attribute.is_float ? is_real : is_whole) return nullptr;
  if (!attribute.required && !is_whole && !is_real && !is_text) return nullptr;
  return error(api, attribute.is_float ? "a float attribute is missing or has another type"
                                       : "an integer attribute is missing or has another type");
}

Status* set_up(Kernel* kernel, const KernelInfo* info) {
  const Api& api = kernel->api;
  const edge_operator& entry = *kernel->entry;
  for (int32_t i = 0; i < entry.attribute_count; ++i) {
    EDGE_ORT_TRY(read_attribute(api, info, entry.attributes[i], &kernel->attributes[i]));
  }
  EDGE_ORT_TRY(api.KernelInfo_GetInputCount(info, &kernel->inputs));
  EDGE_ORT_TRY(api.KernelInfo_GetOutputCount(info, &kernel->outputs));
  for (size_t i = 0; i < kernel->inputs; ++i) {
    int is_constant = 0;
    const Value* value = nullptr;
    EDGE_ORT_TRY(api.KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
    if (is_constant) EDGE_ORT_TRY(read(api, value, entry.inputs[i].type, &kernel->constants[i]));
  }
  return check(kernel, kernel->constants);
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
  const char* const parts[] = {"node '", name, "': ", api.GetErrorMessage(failure)};
  for (const char* part : parts) append(line, sizeof(line), &end, part);
  api.ReleaseStatus(failure);
  return error(api, line);
}

Status* create(const CustomOp* op, void* const* table, const KernelInfo* info, void** out) {
  const Api api = {table};
  Kernel* kernel = static_cast<Kernel*>(malloc(sizeof(Kernel)));
  if (!kernel) return error(api, EDGE_OUT_OF_MEMORY);
  memset(static_cast<void*>(kernel), 0, sizeof(Kernel));
  kernel->api = api;
  kernel->entry = &entry_of(op);
  if (Status* failure = set_up(kernel, info)) {
    free(kernel);
    return with_node_name(api, info, failure);
  }
  *out = kernel;
  return nullptr;
}

// ---- Shape inference -----------------------------------------------------------------------------------------------

// The API table as RegisterCustomOps got it: ONNX Runtime passes none to shape inference.
void* const* registered_table;

// Dimensions that are unknown go through the operator's `shapes` as numbers below 0, each with its symbol.
struct Shapes {
  edge_tensor inputs[EDGE_MAX_SLOTS], outputs[EDGE_MAX_SLOTS];
  const char* symbols[EDGE_MAX_SLOTS * EDGE_MAX_RANK];
};

double infer_attribute(const Api& api, ShapeContext* context, const edge_attribute& attribute) {
  const Attribute* found = nullptr;
  int64_t whole = 0;
  float real = 0;
  size_t used = 0;
  void* out = attribute.is_float ? static_cast<void*>(&real) : &whole;
  const AttributeType type = attribute.is_float ? kAttributeFloat : kAttributeInt;
  Status* failure = api.ShapeInferContext_GetAttribute(context, attribute.name, &found);
  if (!failure && found) failure = api.ReadOpAttr(found, type, out, attribute.is_float ? 4 : 8, &used);
  if (!succeeds(api, failure) || !used) return attribute.value;
  return attribute.is_float ? static_cast<double>(real) : static_cast<double>(whole);
}

Status* infer_input(const Api& api, ShapeContext* context, size_t index, Shapes* shapes) {
  ShapeInfo* info = nullptr;  // belongs to the context
  edge_tensor& tensor = shapes->inputs[index];
  const char** symbols = shapes->symbols + index * EDGE_MAX_RANK;
  EDGE_ORT_TRY(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  EDGE_ORT_TRY(read_shape(api, info, &tensor));
  EDGE_ORT_TRY(api.GetSymbolicDimensions(info, symbols, static_cast<size_t>(tensor.rank)));
  EDGE_ORT_TRY(api.GetTensorElementType(info, &tensor.type));  // an input that isn't there has none
  for (int32_t i = 0; i < tensor.rank; ++i) {
    if (tensor.dims[i] < 0) tensor.dims[i] = -1 - static_cast<int64_t>(index * EDGE_MAX_RANK) - i;
  }
  return nullptr;
}

Status* infer_output(const Api& api, ShapeContext* context, size_t index, Shapes* shapes) {
  const char* symbols[EDGE_MAX_RANK];
  edge_tensor& tensor = shapes->outputs[index];
  for (int32_t i = 0; i < tensor.rank; ++i) {
    symbols[i] = tensor.dims[i] < 0 ? shapes->symbols[-1 - tensor.dims[i]] : "";
    if (tensor.dims[i] < 0) tensor.dims[i] = -1;
  }
  ShapeInfo* info = nullptr;
  const size_t rank = static_cast<size_t>(tensor.rank);
  EDGE_ORT_TRY(api.CreateTensorTypeAndShapeInfo(&info));
  Status* failure = api.SetTensorElementType(info, static_cast<ElementType>(tensor.type));
  if (!failure) failure = api.SetDimensions(info, tensor.dims, rank);
  if (!failure) failure = api.SetSymbolicDimensions(info, symbols, rank);
  if (!failure) failure = api.ShapeInferContext_SetOutputTypeShape(context, index, info);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return failure;
}

Status* infer(const CustomOp* op, ShapeContext* context) {
  const Api api = {__atomic_load_n(&registered_table, __ATOMIC_ACQUIRE)};
  const edge_operator& entry = entry_of(op);
  Shapes shapes = {};
  double attributes[EDGE_MAX_SLOTS];
  for (int32_t i = 0; i < entry.attribute_count; ++i) {
    attributes[i] = infer_attribute(api, context, entry.attributes[i]);
  }
  size_t inputs = 0;
  EDGE_ORT_TRY(api.ShapeInferContext_GetInputCount(context, &inputs));
  for (size_t i = 0; i < inputs; ++i) EDGE_ORT_TRY(infer_input(api, context, i, &shapes));
  if (entry.shapes(attributes, shapes.inputs, shapes.outputs) != EDGE_OK) return nullptr;  // the kernel refuses them
  for (size_t i = 0; i < static_cast<size_t>(entry.output_count); ++i) {
    if (!shapes.outputs[i].type) continue;
    Status* failure = infer_output(api, context, i, &shapes);
    if (failure && !entry.outputs[i].optional) return failure;
    succeeds(api, failure);  // or the node doesn't have this output
  }
  return nullptr;
}

// ---- Registration --------------------------------------------------------------------------------------------------

Characteristic characteristic(const edge_slot& slot) {
  return slot.optional ? kOptional : kRequired;
}

constexpr Operator describe(size_t index) {
  Operator op = {};
  op.index = index;
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* self) { return entry_of(self).name; };
  op.GetExecutionProviderType = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputType = [](const CustomOp* self, size_t i) { return ElementType{entry_of(self).inputs[i].type}; };
  op.GetOutputType = [](const CustomOp* self, size_t i) { return ElementType{entry_of(self).outputs[i].type}; };
  op.GetInputTypeCount = [](const CustomOp* self) { return static_cast<size_t>(entry_of(self).input_count); };
  op.GetOutputTypeCount = [](const CustomOp* self) { return static_cast<size_t>(entry_of(self).output_count); };
  op.GetInputCharacteristic = [](const CustomOp* self, size_t i) { return characteristic(entry_of(self).inputs[i]); };
  op.GetOutputCharacteristic = [](const CustomOp* self, size_t i) { return characteristic(entry_of(self).outputs[i]); };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { free(kernel); };
  op.InferOutputShapeFn = infer;
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return INT32_MAX; };
  return op;
}

struct Operators {
  Operator list[kMostOperators];
};

constexpr Operators describe_all() {
  Operators all = {};
  for (size_t i = 0; i < kMostOperators; ++i) all.list[i] = describe(i);
  return all;
}

constexpr Operators operators = describe_all();

Status* make_domain(const Api& api, Domain** out) {
  EDGE_ORT_TRY(api.CreateCustomOpDomain("edge", out));
  if (edge_operator_count() > kMostOperators) return error(api, "the kernels' table has more operators than this list");
  for (size_t i = 0; i < edge_operator_count(); ++i) EDGE_ORT_TRY(api.CustomOpDomain_Add(*out, &operators.list[i]));
  return nullptr;
}

// One domain for all sessions. It lives as long as the process: no session says when it is done with it.
Status* shared_domain(const Api& api, Domain** out) {
  static Domain* shared;
  *out = __atomic_load_n(&shared, __ATOMIC_ACQUIRE);
  if (*out) return nullptr;
  Domain* made = nullptr;
  Status* failure = make_domain(api, &made);
  if (!failure && __atomic_compare_exchange_n(&shared, out, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    *out = made;
    return nullptr;
  }
  if (made) api.ReleaseCustomOpDomain(made);  // half made, or another thread was first: `out` holds its own
  return failure;
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
    return oldest ? Api{oldest}.CreateStatus(kFail, "edge's operators need ONNX Runtime 1.24 or newer") : nullptr;
  }
  const Api api = {table};
  __atomic_store_n(&registered_table, table, __ATOMIC_RELEASE);
  Domain* domain = nullptr;
  EDGE_ORT_TRY(shared_domain(api, &domain));
  return api.AddCustomOpDomain(options, domain);
}
