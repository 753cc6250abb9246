// One product with packed weights of a file, for a CPU that is emulated: mca.py follows its instructions.
#include <stdio.h>
#include <stdlib.h>

#include "edge_kernels.h"

// Arguments: the file, the number of tokens.
int main(int count, char** arguments) {
  FILE* file = count == 3 ? fopen(arguments[1], "rb") : nullptr;
  if (!file) return 2;
  fseek(file, 0, SEEK_END);
  const size_t bytes = static_cast<size_t>(ftell(file)), tokens = static_cast<size_t>(atoi(arguments[2]));
  rewind(file);
  void* packed = malloc(bytes);
  edge_packed_header header;
  if (fread(packed, 1, bytes, file) != bytes || edge_check(packed, bytes, &header) != EDGE_OK) return 2;
  edge_linear_task task = {};
  task.packed = packed;
  task.packed_bytes = bytes;
  float* x = static_cast<float*>(malloc(tokens * header.columns * sizeof(float)));
  for (size_t i = 0; i < tokens * header.columns; ++i) x[i] = static_cast<float>(i % 7) - 3.0f;
  task.x = {x, tokens * header.columns};
  task.out = {static_cast<float*>(malloc(tokens * header.rows * sizeof(float))), tokens * header.rows};
  const edge_status status = edge_linear(&task, nullptr);
  fprintf(stderr, "%s\n", edge_status_text(status));
  return status;
}
