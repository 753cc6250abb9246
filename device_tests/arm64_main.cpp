// Runs operators of the kernels' table, for a CPU that the build machine emulates. First line of output: the
// instruction sets; second line: the kernels that this CPU runs. Then, per case, the outputs as raw bytes; and to
// standard error, a line with the kernel that a Linear had.
// Case: the operator's name; int64 number of attributes, of each name and double; int64 number of inputs, of each name,
// int32 type and rank, int64 dims[8] and elements. Names are 32 bytes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "edge_kernels.h"

struct Name {
  char text[32];
};

static void read_bytes(void* to, size_t bytes) {
  if (bytes && fread(to, 1, bytes, stdin) != bytes) exit(2);
}

template <class T>
static T read() {
  T value;
  read_bytes(&value, sizeof(value));
  return value;
}

static bool is(const Name& name, const char* text) {
  return strncmp(name.text, text, sizeof(name.text)) == 0;
}

// Which of `count` rows of the table has the name that comes next.
template <class Row>
static int read_index(const Row* rows, int count) {
  const Name name = read<Name>();
  for (int i = 0; i < count; ++i) {
    if (is(name, rows[i].name)) return i;
  }
  exit(3);
}

static size_t bytes_of(const edge_tensor& tensor) {
  size_t bytes = tensor.type == EDGE_UINT8 ? 1 : tensor.type == EDGE_INT64 ? 8 : 4;
  for (int i = 0; i < tensor.rank; ++i) bytes *= static_cast<size_t>(tensor.dims[i]);
  return tensor.type ? bytes : 0;
}

static edge_tensor read_tensor() {
  edge_tensor tensor = {};
  tensor.type = read<int32_t>();
  tensor.rank = read<int32_t>();
  read_bytes(tensor.dims, sizeof(tensor.dims));
  tensor.data = malloc(bytes_of(tensor));
  read_bytes(tensor.data, bytes_of(tensor));
  return tensor;
}

static void check(edge_status status) {
  if (status == EDGE_OK) return;
  fprintf(stderr, "%s\n", edge_status_text(status));
  exit(1);
}

static void list() {
  for (int isa = EDGE_PORTABLE; edge_isa_name(static_cast<edge_isa>(isa)); ++isa) {
    if (edge_isa_available(static_cast<edge_isa>(isa))) printf("%s ", edge_isa_name(static_cast<edge_isa>(isa)));
  }
  printf("\n");
  edge_kernel_info info;
  for (size_t i = 0; edge_kernel_at(i, &info) == EDGE_OK; ++i) {
    if (info.available) printf("%s ", info.name);
  }
  printf("\n");
}

static void run(const edge_operator& op) {
  double attributes[EDGE_MAX_SLOTS];
  edge_tensor inputs[EDGE_MAX_SLOTS] = {}, outputs[EDGE_MAX_SLOTS] = {};
  for (int i = 0; i < op.attribute_count; ++i) attributes[i] = op.attributes[i].value;
  for (int64_t left = read<int64_t>(); left > 0; --left) {
    const int i = read_index(op.attributes, op.attribute_count);
    attributes[i] = read<double>();
  }
  for (int64_t left = read<int64_t>(); left > 0; --left) {
    const int i = read_index(op.inputs, op.input_count);
    inputs[i] = read_tensor();
  }
  check(op.check(attributes, inputs));
  check(op.shapes(attributes, inputs, outputs));
  for (int i = 0; i < op.output_count; ++i) {
    if (!outputs[i].type) continue;  // an optional one that these inputs don't give
    const int alias = op.outputs[i].alias;
    outputs[i].data = alias < 0 ? malloc(bytes_of(outputs[i])) : inputs[alias].data;
  }
  if (strcmp(op.name, "Linear") == 0) {  // attribute 1: activations; input 1: the weight
    const char* kernel;
    const size_t bytes = bytes_of(inputs[1]);
    check(edge_linear_kernel(inputs[1].data, bytes, static_cast<edge_activations>(attributes[1]), EDGE_AUTO, &kernel));
    fprintf(stderr, "%s\n", kernel);
  }
  check(op.run(attributes, inputs, outputs, nullptr));
  for (int i = 0; i < op.output_count; ++i) fwrite(outputs[i].data, 1, bytes_of(outputs[i]), stdout);
}

int main() {
  list();
  Name name;
  while (fread(&name, sizeof(name), 1, stdin) == 1) {
    const edge_operator* op = nullptr;
    for (size_t i = 0; i < edge_operator_count(); ++i) {
      if (is(name, edge_operator_at(i)->name)) op = edge_operator_at(i);
    }
    if (!op) return 3;
    run(*op);
  }
  return 0;
}
