// Which kernel runs: the table of kernels.inc against what the CPU has.
#pragma once

#include "task.h"

namespace edge {

struct Kernel {
  const char* name;
  uint32_t encoding, bits;
  uint32_t variant;  // dim of EDGE_CODEBOOK, pattern of EDGE_SPARSE, else 0
  edge_activations activations;
  edge_isa isa;
  LinearKernel run;
};

// The newest instruction set that runs here, no newer than `cap` (EDGE_AUTO: than the environment's cap, if any).
edge_status pick_isa(edge_isa cap, edge_isa* found);

// The fastest kernel for these weights on this CPU, no newer than `cap` (EDGE_AUTO: the environment's cap, if any).
edge_status find_kernel(const edge_packed_header& header, edge_activations activations, edge_isa cap,
                        const Kernel** found);

}  // namespace edge
