// Compiled, never run: ort_abi.h and the runner's ort_session.h against ONNX Runtime's own header. A slot with a wrong
// number is a compile error.
#include <onnxruntime_c_api.h>

#include "edge_kernels.h"
#include "ort_abi.h"
#include "ort_session.h"

#define EDGE_ORT_SLOT(number, name, result, ...) \
  static_assert(offsetof(OrtApi, name) == (number) * sizeof(void*), "slot of " #name);
EDGE_ORT_SLOTS
EDGE_ORT_SESSION_SLOTS
#undef EDGE_ORT_SLOT

static_assert(ORT_API_VERSION >= edge::ort::kApiVersion, "a header older than the ABI in use can't check it");
static_assert(offsetof(OrtApiBase, GetApi) == offsetof(edge::ort::ApiBase, GetApi), "");
static_assert(int{ORT_FAIL} == edge::ort::kFail && int{ORT_INVALID_ARGUMENT} == edge::ort::kInvalidArgument, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED} == 0, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT} == EDGE_FLOAT, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8} == EDGE_UINT8, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32} == EDGE_INT32, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64} == EDGE_INT64, "");
static_assert(int{INPUT_OUTPUT_REQUIRED} == edge::ort::kRequired, "");
static_assert(int{INPUT_OUTPUT_OPTIONAL} == edge::ort::kOptional, "");
static_assert(int{ORT_OP_ATTR_INT} == edge::ort::kAttributeInt && int{ORT_OP_ATTR_FLOAT} == edge::ort::kAttributeFloat,
              "");
static_assert(int{OrtMemTypeDefault} == 0 && int{OrtMemTypeDefault} == edge::ort::kDefaultMemory, "");
static_assert(int{OrtDeviceAllocator} == edge::ort::kDeviceAllocator, "");
static_assert(int{ORT_LOGGING_LEVEL_FATAL} == edge::ort::kLogFatal, "");
static_assert(int{ORT_ENABLE_BASIC} == edge::ort::kOptimizeBasic, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT} == edge::ort::kFloat, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8} == edge::ort::kUint8, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32} == edge::ort::kInt32, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64} == edge::ort::kInt64, "");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16} == edge::ort::kFloat16, "");

#define SAME_PLACE(member) \
  static_assert(offsetof(OrtCustomOp, member) == offsetof(edge::ort::CustomOp, member), #member)
SAME_PLACE(version);
SAME_PLACE(CreateKernel);
SAME_PLACE(GetName);
SAME_PLACE(GetExecutionProviderType);
SAME_PLACE(GetInputType);
SAME_PLACE(GetInputTypeCount);
SAME_PLACE(GetOutputType);
SAME_PLACE(GetOutputTypeCount);
SAME_PLACE(KernelCompute);
SAME_PLACE(KernelDestroy);
SAME_PLACE(GetInputCharacteristic);
SAME_PLACE(GetOutputCharacteristic);
SAME_PLACE(GetInputMemoryType);
SAME_PLACE(GetVariadicInputMinArity);
SAME_PLACE(GetVariadicInputHomogeneity);
SAME_PLACE(GetVariadicOutputMinArity);
SAME_PLACE(GetVariadicOutputHomogeneity);
SAME_PLACE(CreateKernelV2);
SAME_PLACE(KernelComputeV2);
SAME_PLACE(InferOutputShapeFn);
SAME_PLACE(GetStartVersion);
SAME_PLACE(GetEndVersion);
