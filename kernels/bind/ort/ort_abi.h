// The part of ONNX Runtime's C ABI that the operators use, so that no header of it is needed to build.
//
// OrtApi is a table of function pointers that only ever grows: a slot keeps its number for good. The numbers below are
// those of onnxruntime_c_api.h, and test_ort_abi.py holds them against that header. All slots exist since version 17.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edge::ort {

constexpr uint32_t kApiVersion = 17;

struct Status;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct Attribute;
struct Domain;
struct SessionOptions;
struct CustomOp;

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
using ElementType = int32_t;  // edge_type has the same numbers, 0 is none
enum Characteristic { kRequired = 0, kOptional = 1 };
enum AttributeType { kAttributeInt = 1, kAttributeFloat = 3 };

// EDGE_ORT_SLOT(number, name in OrtApi, result, parameters...)
#define EDGE_ORT_SLOTS                                                                                              \
  EDGE_ORT_SLOT(0, CreateStatus, Status*, ErrorCode code, const char* text)                                         \
  EDGE_ORT_SLOT(2, GetErrorMessage, const char*, const Status* status)                                              \
  EDGE_ORT_SLOT(26, CreateCustomOpDomain, Status*, const char* name, Domain** out)                                  \
  EDGE_ORT_SLOT(27, CustomOpDomain_Add, Status*, Domain* domain, const CustomOp* op)                                \
  EDGE_ORT_SLOT(28, AddCustomOpDomain, Status*, SessionOptions* options, Domain* domain)                            \
  EDGE_ORT_SLOT(51, GetTensorMutableData, Status*, Value* value, void** out)                                        \
  EDGE_ORT_SLOT(57, CreateTensorTypeAndShapeInfo, Status*, ShapeInfo** out)                                         \
  EDGE_ORT_SLOT(58, SetTensorElementType, Status*, ShapeInfo* info, ElementType type)                               \
  EDGE_ORT_SLOT(59, SetDimensions, Status*, ShapeInfo* info, const int64_t* dims, size_t count)                     \
  EDGE_ORT_SLOT(60, GetTensorElementType, Status*, const ShapeInfo* info, ElementType* out)                         \
  EDGE_ORT_SLOT(61, GetDimensionsCount, Status*, const ShapeInfo* info, size_t* out)                                \
  EDGE_ORT_SLOT(62, GetDimensions, Status*, const ShapeInfo* info, int64_t* dims, size_t count)                     \
  EDGE_ORT_SLOT(63, GetSymbolicDimensions, Status*, const ShapeInfo* info, const char** names, size_t count)        \
  EDGE_ORT_SLOT(65, GetTensorTypeAndShape, Status*, const Value* value, ShapeInfo** out)                            \
  EDGE_ORT_SLOT(85, KernelInfoGetAttribute_float, Status*, const KernelInfo* info, const char* name, float* out)    \
  EDGE_ORT_SLOT(86, KernelInfoGetAttribute_int64, Status*, const KernelInfo* info, const char* name, int64_t* out)  \
  EDGE_ORT_SLOT(87, KernelInfoGetAttribute_string, Status*, const KernelInfo* info, const char* name, char* out,    \
                size_t* bytes)                                                                                      \
  EDGE_ORT_SLOT(90, KernelContext_GetInput, Status*, const KernelContext* context, size_t index, const Value** out) \
  EDGE_ORT_SLOT(91, KernelContext_GetOutput, Status*, KernelContext* context, size_t index, const int64_t* dims,    \
                size_t count, Value** out)                                                                          \
  EDGE_ORT_SLOT(93, ReleaseStatus, void, Status* status)                                                            \
  EDGE_ORT_SLOT(99, ReleaseTensorTypeAndShapeInfo, void, ShapeInfo* info)                                           \
  EDGE_ORT_SLOT(101, ReleaseCustomOpDomain, void, Domain* domain)                                                   \
  EDGE_ORT_SLOT(230, KernelInfo_GetInputCount, Status*, const KernelInfo* info, size_t* out)                        \
  EDGE_ORT_SLOT(231, KernelInfo_GetOutputCount, Status*, const KernelInfo* info, size_t* out)                       \
  EDGE_ORT_SLOT(244, KernelInfo_GetNodeName, Status*, const KernelInfo* info, char* out, size_t* bytes)             \
  EDGE_ORT_SLOT(249, KernelInfoGetConstantInput_tensor, Status*, const KernelInfo* info, size_t index,              \
                int* is_constant, const Value** out)                                                                \
  EDGE_ORT_SLOT(267, ShapeInferContext_GetInputCount, Status*, const ShapeContext* context, size_t* out)            \
  EDGE_ORT_SLOT(268, ShapeInferContext_GetInputTypeShape, Status*, const ShapeContext* context, size_t index,       \
                ShapeInfo** out)                                                                                    \
  EDGE_ORT_SLOT(269, ShapeInferContext_GetAttribute, Status*, const ShapeContext* context, const char* name,        \
                const Attribute** out)                                                                              \
  EDGE_ORT_SLOT(270, ShapeInferContext_SetOutputTypeShape, Status*, const ShapeContext* context, size_t index,      \
                const ShapeInfo* info)                                                                              \
  EDGE_ORT_SLOT(271, SetSymbolicDimensions, Status*, ShapeInfo* info, const char** names, size_t count)             \
  EDGE_ORT_SLOT(272, ReadOpAttr, Status*, const Attribute* attribute, AttributeType type, void* out, size_t bytes,  \
                size_t* used)                                                                                       \
  EDGE_ORT_SLOT(274, KernelContext_ParallelFor, Status*, const KernelContext* context, void (*task)(void*, size_t), \
                size_t count, size_t batches, void* work)

// A view of the runtime's table. `api.GetDimensions(...)` calls through its slot.
struct Api {
  void* const* table;
#define EDGE_ORT_SLOT(number, name, result, ...)                    \
  template <class... Arguments>                                     \
  result name(Arguments... arguments) const {                       \
    using Function = result (*)(__VA_ARGS__);                       \
    return reinterpret_cast<Function>(table[number])(arguments...); \
  }
  EDGE_ORT_SLOTS
#undef EDGE_ORT_SLOT
};

struct ApiBase {
  void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp as of version 17; later members are never read from an operator that says so.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, void* const* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  int (*GetInputMemoryType)(const CustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, void* const* api, const KernelInfo* info, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeContext* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
};

static_assert(sizeof(CustomOp) == 22 * sizeof(void*), "one pointer per member, the version padded to one");

}  // namespace edge::ort
