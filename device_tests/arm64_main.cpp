// Runs cases from standard input through the C ABI, for a CPU that the build machine emulates.
// First line of output: the instruction sets. Then, per case, the float32 results as raw bytes.
// Case: five uint32 (isa, activations, packed bytes, x count, out count), the packed bytes, x.
#include <stdio.h>
#include <stdlib.h>

#include "edge_kernels.h"

static void* read_bytes(size_t bytes) {
  void* memory = malloc(bytes);
  if (fread(memory, 1, bytes, stdin) != bytes) exit(2);
  return memory;
}

int main() {
  for (int isa = EDGE_PORTABLE; edge_isa_name(static_cast<edge_isa>(isa)); ++isa) {
    if (edge_isa_available(static_cast<edge_isa>(isa))) printf("%s ", edge_isa_name(static_cast<edge_isa>(isa)));
  }
  printf("\n");
  uint32_t sizes[5];
  while (fread(sizes, sizeof(sizes), 1, stdin) == 1) {
    void* packed = read_bytes(sizes[2]);
    float* x = static_cast<float*>(read_bytes(sizes[3] * sizeof(float)));
    float* out = static_cast<float*>(malloc(sizes[4] * sizeof(float)));
    edge_linear_task task = {};
    task.packed = packed;
    task.packed_bytes = sizes[2];
    task.activations = static_cast<edge_activations>(sizes[1]);
    task.isa = static_cast<edge_isa>(sizes[0]);
    task.x = {x, sizes[3]};
    task.out = {out, sizes[4]};
    const edge_status status = edge_linear(&task, nullptr);
    if (status != EDGE_OK) {
      fprintf(stderr, "%s\n", edge_status_text(status));
      return 1;
    }
    fwrite(out, sizeof(float), sizes[4], stdout);
    free(packed);
    free(x);
    free(out);
  }
  return 0;
}
