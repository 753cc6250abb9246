// libFuzzer over the C ABI. An input is 64 bytes that choose sizes and options, then a blob of packed weights (as
// corpus.py writes them). Every function gets buffers of exactly the size that it is told, at odd addresses where it
// takes any; all instruction sets must agree on blobs that edge_verify accepts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edge_kernels.h"

namespace {

constexpr size_t kOptions = 64;
constexpr size_t kMostElements = 1 << 18;  // of a buffer: an input should take milliseconds

struct Options {
  const uint8_t* bytes;
  size_t at;

  uint32_t next() { return bytes[at++ % kOptions]; }
  bool flip() { return next() & 1; }
  bool rarely() { return next() > 250; }

  template <size_t Count>
  int64_t pick(const int64_t (&menu)[Count]) {
    return menu[next() % Count];
  }
};

// Memory of exactly `bytes` bytes; `skew` puts it off its alignment.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t skew = 0) : memory_(static_cast<uint8_t*>(malloc(bytes + skew))), skew_(skew) {}
  ~Buffer() { free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* bytes() { return memory_ + skew_; }
  float* floats() { return reinterpret_cast<float*>(memory_); }

 private:
  uint8_t* memory_;
  size_t skew_;
};

class Floats {
 public:
  Floats(size_t count, Options* options) : buffer_(count * sizeof(float)), count_(count) {
    const bool special = options->rarely();
    uint32_t state = options->next() * 2654435761u + 1;
    for (size_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = static_cast<float>(static_cast<int32_t>(state)) / 1e9f;
      const float odd[] = {0, -0.0f, 1e-40f, -3e38f, __builtin_inff(), __builtin_nanf(""), 1e-30f, 1};
      buffer_.floats()[i] = special && state >> 28 == 0 ? odd[state >> 24 & 7] : value;
    }
  }

  float* data() { return buffer_.floats(); }
  size_t count() const { return count_; }
  edge_input input(bool present = true) { return {present ? data() : nullptr, present ? count_ : 0}; }
  edge_output output(bool present = true) { return {present ? data() : nullptr, present ? count_ : 0}; }

 private:
  Buffer buffer_;
  size_t count_;
};

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  abort();
}

void expect_same(Floats& a, Floats& b, const char* what) {
  for (size_t i = 0; i < a.count(); ++i) {
    const float x = a.data()[i], y = b.data()[i];
    if (memcmp(&x, &y, sizeof(x)) != 0 && !(x != x && y != y)) fail(what);
  }
}

// Threads that take their tasks last to first.
void run_backwards(void*, size_t count, void (*task)(void* work, size_t index), void* work) {
  while (count > 0) task(work, --count);
}

constexpr edge_parallel kParallel = {nullptr, run_backwards, 3};

size_t spoiled(size_t count, bool spoil) {
  return spoil ? count + 1 : count;
}

// ---- The functions -------------------------------------------------------------------------------------------------

struct Blob {
  const uint8_t* data;
  size_t size;
  edge_packed_header header;
  bool verified;
};

void fuzz_linear(const Blob& blob, Options options) {
  const edge_packed_header& m = blob.header;
  const size_t tokens = static_cast<size_t>(options.pick({1, 2, 3, 4, 5, 8, 17, 0}));
  if (tokens * m.columns > kMostElements || tokens * m.rows > kMostElements) return;
  edge_linear_task task = {};
  task.packed = blob.data;
  task.packed_bytes = blob.size;
  task.activations = static_cast<edge_activations>(options.rarely() ? 2 : options.next() % 2);
  task.norm = static_cast<edge_norm>(options.rarely() ? 3 : options.next() % 3);
  task.epilogue = static_cast<edge_epilogue>(options.rarely() ? 6 : options.next() % 6);
  task.epsilon = 1e-5f;
  const size_t outputs = task.epilogue >= EDGE_SILU_GATED ? m.rows / 2 : m.rows;
  Floats x(spoiled(tokens * m.columns, options.rarely()), &options);
  Floats skip(spoiled(tokens * m.columns, options.rarely()), &options);
  Floats norm_weight(spoiled(m.columns, options.rarely()), &options);
  Floats norm_bias(spoiled(m.columns, options.rarely()), &options);
  Floats bias(spoiled(m.rows, options.rarely()), &options);
  const size_t sums = spoiled(tokens * m.columns, options.rarely());
  const size_t outs = spoiled(tokens * outputs, options.rarely());
  task.x = x.input(!options.rarely());
  task.skip = skip.input(options.flip());
  task.norm_weight = norm_weight.input(task.norm != EDGE_NO_NORM && !options.rarely());
  task.norm_bias = norm_bias.input(task.norm == EDGE_LAYER_NORM && options.flip());
  task.bias = bias.input(options.flip());
  const bool wants_sum = task.skip.data && options.flip();
  Floats first(outs, &options), first_sum(sums, &options);
  edge_status expected = EDGE_NO_ISA;
  for (int isa = EDGE_PORTABLE; isa <= EDGE_NEON_I8MM; ++isa) {
    if (!edge_isa_available(static_cast<edge_isa>(isa))) continue;
    Options again = options;  // buffers that start alike
    Floats out(outs, &again), sum(sums, &again);
    task.isa = static_cast<edge_isa>(isa);
    task.out = out.output();
    task.sum = sum.output(wants_sum);
    const edge_status status = edge_linear(&task, again.flip() ? &kParallel : nullptr);
    if (expected == EDGE_NO_ISA) {
      expected = status;
      memcpy(first.data(), out.data(), outs * sizeof(float));
      memcpy(first_sum.data(), sum.data(), sums * sizeof(float));
    } else if (status != expected) {
      fail("instruction sets return different statuses");
    } else if (status == EDGE_OK && blob.verified) {
      expect_same(first, out, "instruction sets give different results");
      if (wants_sum) expect_same(first_sum, sum, "instruction sets give different sums");
    }
  }
}

void fuzz_embedding(const Blob& blob, Options options) {
  const int64_t rows = blob.header.rows;
  const int64_t menu[] = {0, rows - 1, rows / 2, rows / 3, 15, rows, -1, INT64_MAX, INT64_MIN, 16};
  const size_t count = options.next() % 5;
  if (count * blob.header.columns > kMostElements) return;
  Buffer ids(count * sizeof(int64_t));
  const bool valid = !options.rarely();
  for (size_t i = 0; i < count; ++i) {
    const int64_t id = options.pick(menu);
    reinterpret_cast<int64_t*>(ids.bytes())[i] = valid && (id < 0 || id >= rows) ? 0 : id;
  }
  Floats out(spoiled(count * blob.header.columns, options.rarely()), &options);
  edge_embedding(blob.data, blob.size, reinterpret_cast<int64_t*>(ids.bytes()), count, out.data(), out.count());
}

// Levels and boundaries of EDGE_CACHE_TABLE, in any order.
class Tables {
 public:
  Tables(edge_attention_task* task, Options* options)
      : table_(task->cache == EDGE_CACHE_TABLE),
        key_bits_(task->key_bits = table_ ? bits(options) : 0),
        value_bits_(task->value_bits = table_ ? bits(options) : 0),
        keys_(
            spoiled(static_cast<size_t>(2 * task->kv_heads * task->head_dim) * levels(key_bits_, 1), options->rarely()),
            options),
        values_(spoiled(2 * levels(value_bits_, 0), options->rarely()), options) {
    task->outliers = table_ ? options->rarely() ? -1 : options->next() % 5 : 0;
    task->key_table = keys_.input(table_);
    task->value_table = values_.input(table_ && value_bits_ != 8);
  }

 private:
  static int64_t bits(Options* options) { return options->rarely() ? 5 : options->pick({2, 3, 4, 8}); }
  static size_t levels(int64_t bits, size_t linear) { return bits == 8 ? linear : size_t{1} << bits; }

  bool table_;
  int64_t key_bits_, value_bits_;
  Floats keys_, values_;
};

size_t cache_bytes(const edge_attention_task& task, int64_t bits, bool values) {
  const size_t heads = static_cast<size_t>(task.kv_heads);
  if (task.cache == EDGE_CACHE_TABLE) {
    return heads * edge_table_cache_bytes(values, task.head_dim, bits, task.outliers, task.capacity);
  }
  const size_t tiles = static_cast<size_t>(task.capacity > 0 ? task.capacity / 16 : 0);
  return heads * tiles * edge_cache_tile_bytes(task.cache, task.head_dim);
}

void fuzz_attention(Options options) {
  edge_attention_task task = {};
  task.cache = static_cast<edge_cache>(options.rarely() ? 4 : options.next() % 4);
  task.kv_heads = options.pick({1, 2, 3});
  task.heads = task.kv_heads * options.pick({1, 2, 3, 4}) + options.rarely();
  task.head_dim = options.pick({16, 32, 64, 8, 24, 20, 7, 80});
  task.rotary_dim = options.rarely() ? options.pick({-2, 1, 3, 82, INT64_MAX}) : task.head_dim / 4 * 2 * options.flip();
  task.window = options.rarely() ? -1 : options.pick({0, 0, 1, 5, 16, 1000});
  task.scale = 0.25f;
  task.softcap = options.flip() ? 0 : 30;
  task.epsilon = 1e-6f;
  task.capacity = options.rarely() ? options.pick({-16, 0, 8, 17}) : options.pick({16, 32, 48});
  const int64_t tokens = options.pick({1, 2, 3, 17, 5, 20});
  task.position = options.rarely() ? options.pick({-1, INT64_MAX, 48, INT64_MAX - 5}) : options.next() % 32;
  const size_t width = static_cast<size_t>((task.heads + 2 * task.kv_heads) * task.head_dim);
  const size_t half = static_cast<size_t>(task.rotary_dim > 0 && task.rotary_dim < 1000 ? task.rotary_dim / 2 : 0);
  Floats qkv(spoiled(static_cast<size_t>(tokens) * width, options.rarely()), &options);
  Floats cos(spoiled(52 * half, options.rarely()), &options), sin(spoiled(52 * half, options.rarely()), &options);
  Floats q_norm(spoiled(static_cast<size_t>(task.head_dim), options.rarely()), &options);
  Floats k_norm(spoiled(static_cast<size_t>(task.head_dim), options.rarely()), &options);
  task.qkv = qkv.input();
  task.cos = cos.input(half != 0);
  task.sin = sin.input(half != 0 && !options.rarely());
  task.q_norm = q_norm.input(options.flip());
  task.k_norm = k_norm.input(options.flip());
  const size_t outs = spoiled(static_cast<size_t>(tokens * task.heads * task.head_dim), options.rarely());
  const Tables tables(&task, &options);
  task.key_bytes = cache_bytes(task, task.key_bits, false) + 4 * options.rarely();
  task.value_bytes = cache_bytes(task, task.value_bits, true) + 4 * options.rarely();
  const int dirt =
      task.cache == EDGE_CACHE_TABLE && options.flip() ? 0xff : 0;  // its codes and indices may be anything
  Floats first(outs, &options);
  edge_status expected = EDGE_NO_ISA;
  for (int isa = EDGE_PORTABLE; isa <= EDGE_NEON_I8MM; ++isa) {
    if (!edge_isa_available(static_cast<edge_isa>(isa))) continue;
    Options again = options;
    Floats out(outs, &again);
    Buffer keys(task.key_bytes), values(task.value_bytes);
    memset(keys.bytes(), dirt, task.key_bytes);
    memset(values.bytes(), dirt, task.value_bytes);
    task.isa = static_cast<edge_isa>(isa);
    task.keys = keys.bytes();
    task.values = values.bytes();
    task.out = out.output();
    const edge_status status = edge_attention(&task, again.flip() ? &kParallel : nullptr);
    if (expected == EDGE_NO_ISA) {
      expected = status;
      memcpy(first.data(), out.data(), outs * sizeof(float));
    } else if (status != expected) {
      fail("instruction sets return different statuses of attention");
    } else if (status == EDGE_OK) {
      expect_same(first, out, "instruction sets give different attention");
    }
  }
}

// ---- Operators -----------------------------------------------------------------------------------------------------

// Sizes that fit each other, for the tensors and attributes of one call.
struct Sizes {
  int64_t rows, columns, tokens, kv_heads, heads, head_dim, cache, cache_tiles;

  Sizes(const Blob& blob, Options* options)
      : rows(blob.header.rows),
        columns(blob.header.columns),
        tokens(1 + options->next() % 4),
        kv_heads(options->pick({1, 2, 3})),
        heads(kv_heads * options->pick({1, 2, 4})),
        head_dim(options->pick({16, 8, 20, 64})),
        cache(options->pick({0, 1, 2})),
        cache_tiles(options->pick({1, 2, 3})) {}
};

bool named(const char* name, const char* a, const char* b = "") {
  return strcmp(name, a) == 0 || strcmp(name, b) == 0;
}

template <size_t Rank>
void set_dims(const int64_t (&dims)[Rank], edge_tensor* tensor) {
  tensor->rank = Rank;
  memcpy(tensor->dims, dims, sizeof(dims));
}

void shape_for(const edge_slot& slot, const Sizes& s, Options* options, edge_tensor* tensor) {
  const char* name = slot.name;
  tensor->type = options->rarely() ? EDGE_INT32 : slot.type;
  set_dims({s.rows}, tensor);
  if (named(name, "x", "skip")) set_dims({s.tokens, s.columns}, tensor);
  if (named(name, "norm_weight", "norm_bias")) set_dims({s.columns}, tensor);
  if (named(name, "ids")) set_dims({s.tokens}, tensor);
  if (named(name, "qkv")) set_dims({1, s.tokens, (s.heads + 2 * s.kv_heads) * s.head_dim}, tensor);
  if (named(name, "total")) set_dims({1}, tensor);
  if (named(name, "keys", "values")) {
    const size_t tile = edge_cache_tile_bytes(static_cast<edge_cache>(s.cache), s.head_dim);
    set_dims({1, s.kv_heads, s.cache_tiles, static_cast<int64_t>(tile)}, tensor);
  }
  if (named(name, "cos", "sin")) set_dims({64, s.head_dim / 2}, tensor);
  if (named(name, "q_norm", "k_norm")) set_dims({s.head_dim}, tensor);
  if (options->rarely()) tensor->rank = static_cast<int32_t>(options->next() % 12) - 1;
  if (options->rarely()) tensor->dims[options->next() % 4] = options->pick({-1, 0, 1, 5, INT64_MAX});
}

double attribute_for(const edge_attribute& attribute, const Sizes& s, Options* options) {
  const char* name = attribute.name;
  if (options->rarely()) return options->pick({-1, 0, 1, 7, INT64_MAX, INT64_MIN}) + (options->flip() ? 0.5 : 0);
  if (named(name, "rows")) return s.rows;
  if (named(name, "columns")) return s.columns;
  if (named(name, "heads")) return s.heads;
  if (named(name, "kv_heads")) return s.kv_heads;
  if (named(name, "head_dim")) return s.head_dim;
  if (named(name, "cache")) return s.cache;
  if (!attribute.required && options->flip()) return attribute.value;
  return attribute.is_float ? 0.5 : options->pick({0, 1, 2, 3, 4, 5});
}

// Tensors of one call.
class Tensors {
 public:
  ~Tensors() {
    for (size_t i = 0; i < count_; ++i) free(memory_[i]);
  }

  // Gives a tensor memory for exactly its dimensions; none when they make no sense or would be too much.
  void allocate(const Sizes& sizes, Options* options, edge_tensor* tensor) {
    if (tensor->rank < 0 || tensor->rank > EDGE_MAX_RANK) return;
    const size_t size = tensor->type == EDGE_UINT8 ? 1 : tensor->type == EDGE_INT64 ? 8 : 4;
    size_t count = 1;
    for (int32_t i = 0; i < tensor->rank; ++i) {
      if (tensor->dims[i] < 0 || static_cast<uint64_t>(tensor->dims[i]) > kMostElements) return;
      count *= static_cast<size_t>(tensor->dims[i]);
      if (count > kMostElements) return;
    }
    tensor->data = memory_[count_++] = calloc(count, size);
    for (size_t i = 0; i < count; ++i) {
      if (tensor->type == EDGE_INT64) static_cast<int64_t*>(tensor->data)[i] = options->next() % sizes.rows;
      if (tensor->type == EDGE_INT32) static_cast<int32_t*>(tensor->data)[i] = total(sizes, options);
      if (tensor->type == EDGE_FLOAT) static_cast<float*>(tensor->data)[i] = static_cast<float>(i % 7) - 3;
    }
  }

 private:
  static int32_t total(const Sizes& sizes, Options* options) {
    const int64_t odd[] = {0, -1, INT32_MAX, INT32_MIN};
    const int64_t fitting = sizes.tokens + options->next() % 16;
    return static_cast<int32_t>(options->rarely() ? options->pick(odd) : fitting);
  }

  void* memory_[2 * EDGE_MAX_SLOTS] = {};
  size_t count_ = 0;
};

void fuzz_operator(const edge_operator& op, const Blob& blob, Options options) {
  double attributes[EDGE_MAX_SLOTS];
  edge_tensor inputs[EDGE_MAX_SLOTS] = {}, outputs[EDGE_MAX_SLOTS] = {};
  const Sizes sizes(blob, &options);
  Tensors tensors;
  for (int32_t i = 0; i < op.attribute_count; ++i) attributes[i] = attribute_for(op.attributes[i], sizes, &options);
  for (int32_t i = 0; i < op.input_count; ++i) {
    if (op.inputs[i].optional ? options.flip() : options.rarely()) continue;
    if (op.inputs[i].packed) {
      inputs[i] = {const_cast<uint8_t*>(blob.data), EDGE_UINT8, 1, {static_cast<int64_t>(blob.size)}};
      continue;
    }
    shape_for(op.inputs[i], sizes, &options, &inputs[i]);
    tensors.allocate(sizes, &options, &inputs[i]);
  }
  op.check(attributes, inputs);
  if (op.shapes(attributes, inputs, outputs) != EDGE_OK) return;
  for (int32_t i = 0; i < op.output_count; ++i) {
    edge_tensor* output = &outputs[i];
    if (op.outputs[i].optional && options.flip()) *output = edge_tensor{};
    if (output->rank > 0 && options.rarely()) output->dims[output->rank - 1] += 1;
    if (output->type) tensors.allocate(sizes, &options, output);
  }
  op.run(attributes, inputs, outputs, options.flip() ? &kParallel : nullptr);
}

void fuzz_blob(const uint8_t* data, size_t size, Options options) {
  Blob blob = {data, size, {}, edge_verify(data, size) == EDGE_OK};
  const char* name;
  const edge_status checked = edge_check(data, size, &blob.header);
  if (blob.verified && checked != EDGE_OK) fail("verified, but not checked");
  edge_linear_kernel(data, size, static_cast<edge_activations>(options.next() % 2), EDGE_AUTO, &name);
  if (checked != EDGE_OK) {
    blob.header.rows = blob.header.columns = 1;
  }
  fuzz_linear(blob, options);
  fuzz_embedding(blob, options);
  for (size_t i = 0; const edge_operator* op = edge_operator_at(i); ++i) fuzz_operator(*op, blob, options);
}

// The size and the checksum that belong to the bytes, so that the checks behind them are reached.
void repair(uint8_t* blob, size_t size) {
  if (size < sizeof(edge_packed_header)) return;
  const uint64_t payload = size - sizeof(edge_packed_header);
  memcpy(blob + offsetof(edge_packed_header, payload_bytes), &payload, sizeof(payload));
  const size_t field = offsetof(edge_packed_header, checksum);
  memset(blob + field, 0, sizeof(uint64_t));
  uint64_t sum = 0;
  for (uint64_t i = 0; i < size / sizeof(uint64_t); ++i) {
    uint64_t word;
    memcpy(&word, blob + i * sizeof(word), sizeof(word));
    sum += (2 * i + 1) * word;
  }
  memcpy(blob + field, &sum, sizeof(sum));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kOptions) return 0;
  const Options options = {data, 0};
  const size_t blob_size = size - kOptions;
  Buffer blob(blob_size, data[0] % 4);
  memcpy(blob.bytes(), data + kOptions, blob_size);
  fuzz_blob(blob.bytes(), blob_size, options);
  repair(blob.bytes(), blob_size);
  fuzz_blob(blob.bytes(), blob_size, options);
  fuzz_attention(options);
  return 0;
}
