// The table of operators: tensors, checked and handed to the functions of edge_kernels.h.
#include "edge_kernels.h"
#include "support.h"

namespace edge {
namespace {

constexpr edge_slot required(const char* name, edge_type type) {
  return {name, type, 0, -1, 0};
}

constexpr edge_slot optional(const char* name, edge_type type) {
  return {name, type, 1, -1, 0};
}

constexpr edge_slot updated(const char* name, int32_t input) {  // memory of that input
  return {name, EDGE_UINT8, 0, input, 0};
}

constexpr edge_slot kWeightSlot = {"weight", EDGE_UINT8, 0, -1, 1};

constexpr edge_attribute number(const char* name) {
  return {name, 0, 1, 0};
}

constexpr edge_attribute choice(const char* name) {  // 0 unless given
  return {name, 0, 0, 0};
}

constexpr edge_attribute epsilon() {
  return {"epsilon", 1, 0, 1e-5};
}

// ---- Tensors -------------------------------------------------------------------------------------------------------

bool present(const edge_tensor& tensor) {
  return tensor.type != 0;
}

bool is_whole(double value, int64_t low, int64_t high) {
  return value >= static_cast<double>(low) && value <= static_cast<double>(high) &&
         static_cast<double>(static_cast<int64_t>(value)) == value;
}

bool may_equal(int64_t a, int64_t b) {
  return a < 0 || b < 0 || a == b;
}

// Whether a tensor is absent, or may have the dimensions `dims`.
template <size_t Rank>
bool fits(const edge_tensor& tensor, const int64_t (&dims)[Rank]) {
  if (!present(tensor)) return true;
  bool same = tensor.rank == Rank;
  for (size_t i = 0; same && i < Rank; ++i) same = may_equal(tensor.dims[i], dims[i]);
  return same;
}

bool same_shape(const edge_tensor& a, const edge_tensor& b) {
  bool same = a.rank == b.rank;
  for (int32_t i = 0; same && i < a.rank; ++i) same = may_equal(a.dims[i], b.dims[i]);
  return same;
}

bool types_fit(const edge_slot* slots, int32_t count, const edge_tensor* tensors) {
  for (int32_t i = 0; i < count; ++i) {
    const edge_tensor& tensor = tensors[i];
    if (!present(tensor) && slots[i].optional) continue;
    if (tensor.type != slots[i].type || tensor.rank < 0 || tensor.rank > EDGE_MAX_RANK) return false;
  }
  return true;
}

bool count_elements(const edge_tensor& tensor, size_t* count) {
  *count = present(tensor);
  for (int32_t i = 0; i < tensor.rank && *count; ++i) {
    if (tensor.dims[i] < 0 || __builtin_mul_overflow(*count, static_cast<size_t>(tensor.dims[i]), count)) return false;
  }
  return *count == 0 || tensor.data;
}

bool have_memory(const edge_tensor* tensors, int32_t count) {
  size_t elements;
  for (int32_t i = 0; i < count; ++i) {
    if (!count_elements(tensors[i], &elements)) return false;
  }
  return true;
}

size_t elements(const edge_tensor& tensor) {
  size_t count;
  return count_elements(tensor, &count) ? count : 0;
}

edge_input input(const edge_tensor& tensor) {
  return {static_cast<const float*>(tensor.data), elements(tensor)};
}

edge_output output(const edge_tensor& tensor) {
  return {static_cast<float*>(tensor.data), elements(tensor)};
}

void set(edge_tensor* tensor, edge_type type, const edge_tensor& shape, int32_t rank, int64_t last) {
  *tensor = shape;
  tensor->type = type;
  tensor->rank = rank;
  tensor->dims[rank - 1] = last;
}

edge_status check_weight(const edge_tensor& weight, double rows, double columns) {
  if (!present(weight)) return EDGE_OK;
  edge_packed_header header;
  const edge_status status = edge_check(weight.data, elements(weight), &header);
  if (status != EDGE_OK) return status;
  if ((rows && header.rows != rows) || (columns && header.columns != columns)) return EDGE_BAD_ARGUMENT;
  return edge_verify(weight.data, elements(weight));
}

// What `run` of every operator does first: all tensors as the operator's own `shapes` says, aliased ones copied.
edge_status prepare(const edge_operator& op, const double* attributes, const edge_tensor* inputs,
                    const edge_tensor* outputs) {
  edge_tensor expected[EDGE_MAX_SLOTS];
  const edge_status status = op.shapes(attributes, inputs, expected);
  if (status != EDGE_OK) return status;
  if (!have_memory(inputs, op.input_count) || !have_memory(outputs, op.output_count)) return EDGE_BAD_ARGUMENT;
  if (!types_fit(op.outputs, op.output_count, outputs)) return EDGE_BAD_ARGUMENT;
  for (int32_t i = 0; i < op.output_count; ++i) {
    if (!present(outputs[i])) continue;
    if (!present(expected[i]) || !same_shape(outputs[i], expected[i])) return EDGE_BAD_ARGUMENT;
  }
  for (int32_t i = 0; i < op.output_count; ++i) {
    const int32_t alias = op.outputs[i].alias;
    if (alias < 0 || outputs[i].data == inputs[alias].data) continue;
    memcpy(outputs[i].data, inputs[alias].data, elements(inputs[alias]));  // aliased ones are bytes
  }
  return EDGE_OK;
}

// ---- Linear --------------------------------------------------------------------------------------------------------

namespace linear {

enum { kX, kWeight, kBias, kSkip, kNormWeight, kNormBias, kInputs };
enum { kOut, kSum, kOutputs };
enum { kRows, kActivations, kNorm, kEpilogue, kEpsilon, kAttributes };

constexpr edge_slot kInputSlots[] = {required("x", EDGE_FLOAT),           kWeightSlot,
                                     optional("bias", EDGE_FLOAT),        optional("skip", EDGE_FLOAT),
                                     optional("norm_weight", EDGE_FLOAT), optional("norm_bias", EDGE_FLOAT)};
constexpr edge_slot kOutputSlots[] = {required("out", EDGE_FLOAT), optional("sum", EDGE_FLOAT)};
constexpr edge_attribute kAttributeSlots[] = {number("rows"), choice("activations"), choice("norm"), choice("epilogue"),
                                              epsilon()};

bool in_range(const double* attributes) {
  return is_whole(attributes[kRows], 1, UINT32_MAX) && is_whole(attributes[kActivations], 0, EDGE_F32) &&
         is_whole(attributes[kNorm], 0, EDGE_LAYER_NORM) && is_whole(attributes[kEpilogue], 0, EDGE_GELU_TANH_GATED);
}

edge_status check(const double* attributes, const edge_tensor* inputs) {
  return in_range(attributes) ? check_weight(inputs[kWeight], attributes[kRows], 0) : EDGE_BAD_ARGUMENT;
}

edge_status shapes(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs) {
  const edge_tensor& x = inputs[kX];
  if (!types_fit(kInputSlots, kInputs, inputs) || x.rank == 0) return EDGE_BAD_ARGUMENT;
  if (!in_range(attributes)) return EDGE_BAD_ARGUMENT;
  const int64_t rows = static_cast<int64_t>(attributes[kRows]), columns = x.dims[x.rank - 1];
  const bool gated = attributes[kEpilogue] >= EDGE_SILU_GATED;
  if (gated && rows % 2) return EDGE_BAD_ARGUMENT;
  if (present(inputs[kSkip]) && !same_shape(x, inputs[kSkip])) return EDGE_BAD_ARGUMENT;
  if (inputs[kWeight].rank != 1 || !fits(inputs[kBias], {rows}) || !fits(inputs[kNormWeight], {columns}) ||
      !fits(inputs[kNormBias], {columns})) {
    return EDGE_BAD_ARGUMENT;
  }
  set(&outputs[kOut], EDGE_FLOAT, x, x.rank, gated ? rows / 2 : rows);
  outputs[kSum] = present(inputs[kSkip]) ? x : edge_tensor{};
  return EDGE_OK;
}

// Whether the header says these sides; edge_linear checks all else that it says.
edge_status sides_fit(const edge_tensor& weight, double rows, int64_t columns) {
  if (elements(weight) >= sizeof(edge_packed_header)) {
    const edge_packed_header header = load<edge_packed_header>(weight.data);
    if (header.rows == rows && header.columns == columns) return EDGE_OK;
  }
  const edge_status status = edge_check(weight.data, elements(weight), nullptr);
  return status == EDGE_OK ? EDGE_BAD_ARGUMENT : status;
}

edge_status run(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs,
                const edge_parallel* parallel);

constexpr edge_operator kOperator = {"Linear", kInputSlots, kOutputSlots, kAttributeSlots, kInputs,
                                     kOutputs, kAttributes, check,        shapes,          run};

edge_status run(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs,
                const edge_parallel* parallel) {
  const edge_status status = prepare(kOperator, attributes, inputs, outputs);
  if (status != EDGE_OK) return status;
  const edge_tensor& x = inputs[kX];
  const edge_status mismatch = sides_fit(inputs[kWeight], attributes[kRows], x.dims[x.rank - 1]);
  if (mismatch != EDGE_OK) return mismatch;
  edge_linear_task task = {};
  task.packed = inputs[kWeight].data;
  task.packed_bytes = elements(inputs[kWeight]);
  task.activations = static_cast<edge_activations>(attributes[kActivations]);
  task.norm = static_cast<edge_norm>(attributes[kNorm]);
  task.epilogue = static_cast<edge_epilogue>(attributes[kEpilogue]);
  task.epsilon = static_cast<float>(attributes[kEpsilon]);
  task.x = input(x);
  task.skip = input(inputs[kSkip]);
  task.norm_weight = input(inputs[kNormWeight]);
  task.norm_bias = input(inputs[kNormBias]);
  task.bias = input(inputs[kBias]);
  task.sum = output(outputs[kSum]);
  task.out = output(outputs[kOut]);
  return edge_linear(&task, parallel);
}

}  // namespace linear

// ---- Embedding -----------------------------------------------------------------------------------------------------

namespace embedding {

enum { kIds, kWeight, kInputs };

constexpr edge_slot kInputSlots[] = {required("ids", EDGE_INT64), kWeightSlot};
constexpr edge_slot kOutputSlots[] = {required("out", EDGE_FLOAT)};
constexpr edge_attribute kAttributeSlots[] = {number("columns")};

edge_status check(const double* attributes, const edge_tensor* inputs) {
  return is_whole(attributes[0], 1, UINT32_MAX) ? check_weight(inputs[kWeight], 0, attributes[0]) : EDGE_BAD_ARGUMENT;
}

edge_status shapes(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs) {
  const edge_tensor& ids = inputs[kIds];
  if (!types_fit(kInputSlots, kInputs, inputs) || ids.rank == EDGE_MAX_RANK) return EDGE_BAD_ARGUMENT;
  if (inputs[kWeight].rank != 1 || !is_whole(attributes[0], 1, UINT32_MAX)) return EDGE_BAD_ARGUMENT;
  set(outputs, EDGE_FLOAT, ids, ids.rank + 1, static_cast<int64_t>(attributes[0]));
  return EDGE_OK;
}

edge_status run(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs,
                const edge_parallel* parallel);

constexpr edge_operator kOperator = {"Embedding", kInputSlots, kOutputSlots, kAttributeSlots, kInputs,
                                     1,           1,           check,        shapes,          run};

edge_status run(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs, const edge_parallel*) {
  const edge_status status = prepare(kOperator, attributes, inputs, outputs);
  if (status != EDGE_OK) return status;
  const edge_tensor &ids = inputs[kIds], &weight = inputs[kWeight];
  return edge_embedding(weight.data, elements(weight), static_cast<const int64_t*>(ids.data), elements(ids),
                        static_cast<float*>(outputs[0].data), elements(outputs[0]));
}

}  // namespace embedding

// ---- Attention -----------------------------------------------------------------------------------------------------

namespace attention {

enum { kQkv, kTotal, kKeys, kValues, kCos, kSin, kQNorm, kKNorm, kKeyTable, kValueTable, kInputs };
enum { kOut, kNewKeys, kNewValues, kOutputs };
enum {
  kHeads,
  kKvHeads,
  kHeadDim,
  kScale,
  kWindow,
  kSoftcap,
  kCache,
  kEpsilon,
  kKeyBits,
  kValueBits,
  kOutliers,
  kAttributes
};

constexpr edge_slot kInputSlots[] = {required("qkv", EDGE_FLOAT),       required("total", EDGE_INT32),
                                     required("keys", EDGE_UINT8),      required("values", EDGE_UINT8),
                                     optional("cos", EDGE_FLOAT),       optional("sin", EDGE_FLOAT),
                                     optional("q_norm", EDGE_FLOAT),    optional("k_norm", EDGE_FLOAT),
                                     optional("key_table", EDGE_FLOAT), optional("value_table", EDGE_FLOAT)};
constexpr edge_slot kOutputSlots[] = {required("out", EDGE_FLOAT), updated("new_keys", kKeys),
                                      updated("new_values", kValues)};
constexpr edge_attribute kAttributeSlots[] = {number("heads"),      number("kv_heads"), number("head_dim"),
                                              {"scale", 1, 1, 0},   choice("window"),   {"softcap", 1, 0, 0},
                                              choice("cache"),      epsilon(),          choice("key_bits"),
                                              choice("value_bits"), choice("outliers")};

constexpr int64_t kMost = 1 << 16;  // heads and their width: products of them stay far below 2^63

edge_status check(const double* attributes, const edge_tensor*) {
  const bool known = is_whole(attributes[kHeads], 1, kMost) && is_whole(attributes[kKvHeads], 1, kMost) &&
                     is_whole(attributes[kHeadDim], 1, kMost) && is_whole(attributes[kWindow], 0, INT32_MAX) &&
                     is_whole(attributes[kCache], 0, EDGE_CACHE_TABLE) && is_whole(attributes[kKeyBits], 0, 8) &&
                     is_whole(attributes[kValueBits], 0, 8) && is_whole(attributes[kOutliers], 0, kMost);
  return known ? EDGE_OK : EDGE_BAD_ARGUMENT;
}

// Bytes of the keys, or of the values, of a head for `capacity` positions; 0: no such cache.
int64_t table_bytes(const double* attributes, bool values, int64_t capacity) {
  const int64_t bits = static_cast<int64_t>(attributes[values ? kValueBits : kKeyBits]);
  return static_cast<int64_t>(edge_table_cache_bytes(values, static_cast<int64_t>(attributes[kHeadDim]), bits,
                                                     static_cast<int64_t>(attributes[kOutliers]), capacity));
}

// Positions that so many bytes of a head hold; 0: not a whole number of tiles.
int64_t table_capacity(const double* attributes, bool values, int64_t bytes) {
  const int64_t tile = EDGE_TILE_ROWS, first = table_bytes(attributes, values, tile);
  const int64_t next = table_bytes(attributes, values, 2 * tile) - first;
  return first && bytes >= first && (bytes - first) % next == 0 ? tile + (bytes - first) / next * tile : 0;
}

int64_t capacity_of(const double* attributes, const edge_tensor* inputs) {
  if (attributes[kCache] != EDGE_CACHE_TABLE) return inputs[kKeys].dims[2] * EDGE_TILE_ROWS;
  return table_capacity(attributes, false, inputs[kKeys].dims[2]);
}

bool caches_fit(const double* attributes, const edge_tensor* inputs) {
  const int64_t kv_heads = static_cast<int64_t>(attributes[kKvHeads]),
                head_dim = static_cast<int64_t>(attributes[kHeadDim]);
  const edge_tensor &keys = inputs[kKeys], &values = inputs[kValues];
  if (attributes[kCache] == EDGE_CACHE_TABLE) {
    if (!fits(keys, {1, kv_heads, -1}) || !fits(values, {1, kv_heads, -1})) return false;
    if (!table_bytes(attributes, false, EDGE_TILE_ROWS) || !table_bytes(attributes, true, EDGE_TILE_ROWS)) return false;
    const int64_t capacity = keys.dims[2] < 0 ? -1 : table_capacity(attributes, false, keys.dims[2]);
    return capacity && (values.dims[2] < 0 || may_equal(capacity, table_capacity(attributes, true, values.dims[2])));
  }
  const edge_cache cache = static_cast<edge_cache>(attributes[kCache]);
  const int64_t tile_bytes = static_cast<int64_t>(edge_cache_tile_bytes(cache, head_dim));
  return fits(keys, {1, kv_heads, -1, tile_bytes}) && same_shape(keys, values);
}

bool tables_fit(const double* attributes, const edge_tensor* inputs) {
  const edge_tensor &keys = inputs[kKeyTable], &values = inputs[kValueTable];
  if (attributes[kCache] != EDGE_CACHE_TABLE) return !present(keys) && !present(values);
  const int64_t kv_heads = static_cast<int64_t>(attributes[kKvHeads]),
                head_dim = static_cast<int64_t>(attributes[kHeadDim]);
  const int key_bits = static_cast<int>(attributes[kKeyBits]), value_bits = static_cast<int>(attributes[kValueBits]);
  if (!present(keys) || !fits(keys, {2, kv_heads, head_dim, key_bits == 8 ? 1 : 1 << key_bits})) return false;
  return present(values) == (value_bits != 8) && fits(values, {2, 1 << value_bits});
}

bool inputs_fit(const double* attributes, const edge_tensor* inputs) {
  const int64_t heads = static_cast<int64_t>(attributes[kHeads]), kv_heads = static_cast<int64_t>(attributes[kKvHeads]);
  const int64_t head_dim = static_cast<int64_t>(attributes[kHeadDim]);
  const edge_tensor &total = inputs[kTotal], &cos = inputs[kCos];
  if (!fits(inputs[kQkv], {1, -1, (heads + 2 * kv_heads) * head_dim})) return false;
  if (total.rank != 0 && !fits(total, {1})) return false;
  if (!caches_fit(attributes, inputs) || !tables_fit(attributes, inputs)) return false;
  if (present(cos) != present(inputs[kSin]) || !fits(cos, {-1, -1}) || !same_shape(cos, inputs[kSin])) return false;
  return fits(inputs[kQNorm], {head_dim}) && fits(inputs[kKNorm], {head_dim});
}

edge_status shapes(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs) {
  if (!types_fit(kInputSlots, kInputs, inputs) || check(attributes, inputs) != EDGE_OK) return EDGE_BAD_ARGUMENT;
  if (!inputs_fit(attributes, inputs)) return EDGE_BAD_ARGUMENT;
  set(&outputs[kOut], EDGE_FLOAT, inputs[kQkv], 3, static_cast<int64_t>(attributes[kHeads] * attributes[kHeadDim]));
  outputs[kNewKeys] = inputs[kKeys];
  outputs[kNewValues] = inputs[kValues];
  return EDGE_OK;
}

edge_status run(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs,
                const edge_parallel* parallel);

constexpr edge_operator kOperator = {"Attention", kInputSlots, kOutputSlots, kAttributeSlots, kInputs,
                                     kOutputs,    kAttributes, check,        shapes,          run};

edge_status run(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs,
                const edge_parallel* parallel) {
  const edge_status status = prepare(kOperator, attributes, inputs, outputs);
  if (status != EDGE_OK) return status;
  edge_attention_task task = {};
  task.cache = static_cast<edge_cache>(attributes[kCache]);
  task.heads = static_cast<int64_t>(attributes[kHeads]);
  task.kv_heads = static_cast<int64_t>(attributes[kKvHeads]);
  task.head_dim = static_cast<int64_t>(attributes[kHeadDim]);
  task.rotary_dim = present(inputs[kCos]) ? 2 * inputs[kCos].dims[1] : 0;
  task.window = static_cast<int64_t>(attributes[kWindow]);
  task.scale = static_cast<float>(attributes[kScale]);
  task.softcap = static_cast<float>(attributes[kSoftcap]);
  task.epsilon = static_cast<float>(attributes[kEpsilon]);
  task.position = *static_cast<const int32_t*>(inputs[kTotal].data) - inputs[kQkv].dims[1];
  task.capacity = capacity_of(attributes, inputs);
  task.qkv = input(inputs[kQkv]);
  task.cos = input(inputs[kCos]);
  task.sin = input(inputs[kSin]);
  task.q_norm = input(inputs[kQNorm]);
  task.k_norm = input(inputs[kKNorm]);
  task.key_table = input(inputs[kKeyTable]);
  task.value_table = input(inputs[kValueTable]);
  task.key_bits = static_cast<int64_t>(attributes[kKeyBits]);
  task.value_bits = static_cast<int64_t>(attributes[kValueBits]);
  task.outliers = static_cast<int64_t>(attributes[kOutliers]);
  task.keys = outputs[kNewKeys].data;
  task.key_bytes = elements(outputs[kNewKeys]);
  task.values = outputs[kNewValues].data;
  task.value_bytes = elements(outputs[kNewValues]);
  task.out = output(outputs[kOut]);
  return edge_attention(&task, parallel);
}

}  // namespace attention

const edge_operator* const kOperators[] = {&linear::kOperator, &embedding::kOperator, &attention::kOperator};
constexpr size_t kCount = sizeof(kOperators) / sizeof(kOperators[0]);

}  // namespace
}  // namespace edge

extern "C" {

size_t edge_operator_count(void) {
  return edge::kCount;
}

const edge_operator* edge_operator_at(size_t index) {
  return index < edge::kCount ? edge::kOperators[index] : nullptr;
}

}  // extern "C"
