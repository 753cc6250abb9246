// The part of ONNX Runtime's C ABI with which a program runs a model: more slots of the same table
// (bind/ort/ort_abi.h). All of them exist since version 17 and longer.
#pragma once

#include "ort_abi.h"

namespace edge::ort {

struct Env;
struct Session;
struct Allocator;
struct MemoryInfo;
struct TypeInfo;
struct Binding;
struct RunOptions;

enum LoggingLevel { kLogFatal = 4 };
enum GraphOptimization { kOptimizeBasic = 1 };
enum AllocatorType { kDeviceAllocator = 0 };
enum MemoryType { kDefaultMemory = 0 };
enum Element { kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };

#define EDGE_ORT_SESSION_SLOTS                                                                                     \
  EDGE_ORT_SLOT(3, CreateEnv, Status*, LoggingLevel level, const char* name, Env** out)                            \
  EDGE_ORT_SLOT(6, DisableTelemetryEvents, Status*, const Env* env)                                                \
  EDGE_ORT_SLOT(7, CreateSession, Status*, const Env* env, const char* path, const SessionOptions* options,        \
                Session** out)                                                                                     \
  EDGE_ORT_SLOT(10, CreateSessionOptions, Status*, SessionOptions** out)                                           \
  EDGE_ORT_SLOT(14, EnableProfiling, Status*, SessionOptions* options, const char* prefix)                         \
  EDGE_ORT_SLOT(22, SetSessionLogSeverityLevel, Status*, SessionOptions* options, int level)                       \
  EDGE_ORT_SLOT(23, SetSessionGraphOptimizationLevel, Status*, SessionOptions* options, GraphOptimization level)   \
  EDGE_ORT_SLOT(24, SetIntraOpNumThreads, Status*, SessionOptions* options, int threads)                           \
  EDGE_ORT_SLOT(30, SessionGetInputCount, Status*, const Session* session, size_t* out)                            \
  EDGE_ORT_SLOT(31, SessionGetOutputCount, Status*, const Session* session, size_t* out)                           \
  EDGE_ORT_SLOT(33, SessionGetInputTypeInfo, Status*, const Session* session, size_t index, TypeInfo** out)        \
  EDGE_ORT_SLOT(34, SessionGetOutputTypeInfo, Status*, const Session* session, size_t index, TypeInfo** out)       \
  EDGE_ORT_SLOT(36, SessionGetInputName, Status*, const Session* session, size_t index, Allocator* allocator,      \
                char** out)                                                                                        \
  EDGE_ORT_SLOT(37, SessionGetOutputName, Status*, const Session* session, size_t index, Allocator* allocator,     \
                char** out)                                                                                        \
  EDGE_ORT_SLOT(49, CreateTensorWithDataAsOrtValue, Status*, const MemoryInfo* info, void* data, size_t bytes,     \
                const int64_t* shape, size_t dimensions, ElementType type, Value** out)                            \
  EDGE_ORT_SLOT(55, CastTypeInfoToTensorInfo, Status*, const TypeInfo* info, const ShapeInfo** out)                \
  EDGE_ORT_SLOT(69, CreateCpuMemoryInfo, Status*, AllocatorType allocator, MemoryType memory, MemoryInfo** out)    \
  EDGE_ORT_SLOT(78, GetAllocatorWithDefaultOptions, Status*, Allocator** out)                                      \
  EDGE_ORT_SLOT(96, ReleaseValue, void, Value* value)                                                              \
  EDGE_ORT_SLOT(98, ReleaseTypeInfo, void, TypeInfo* info)                                                         \
  EDGE_ORT_SLOT(110, SessionEndProfiling, Status*, Session* session, Allocator* allocator, char** out)             \
  EDGE_ORT_SLOT(130, AddSessionConfigEntry, Status*, SessionOptions* options, const char* key, const char* value)  \
  EDGE_ORT_SLOT(133, RunWithBinding, Status*, Session* session, const RunOptions* options, const Binding* binding) \
  EDGE_ORT_SLOT(134, CreateIoBinding, Status*, Session* session, Binding** out)                                    \
  EDGE_ORT_SLOT(136, BindInput, Status*, Binding* binding, const char* name, const Value* value)                   \
  EDGE_ORT_SLOT(137, BindOutput, Status*, Binding* binding, const char* name, const Value* value)                  \
  EDGE_ORT_SLOT(228, RegisterCustomOpsLibrary_V2, Status*, SessionOptions* options, const char* path)

// A view of the same table for a program.
struct SessionApi : Api {
#define EDGE_ORT_SLOT(number, name, result, ...)                    \
  template <class... Arguments>                                     \
  result name(Arguments... arguments) const {                       \
    using Function = result (*)(__VA_ARGS__);                       \
    return reinterpret_cast<Function>(table[number])(arguments...); \
  }
  EDGE_ORT_SESSION_SLOTS
#undef EDGE_ORT_SLOT
};

}  // namespace edge::ort
