// The kernels over tiles that are no plain run of steps, for one instruction set `isa` with the struct `V`.
#pragma once

#include "group_mixed.h"
#include "sparse_2of4.h"
#include "sparse_blocks.h"

#define EDGE_OTHER_KERNEL(name, function)                                       \
  void edge::name(const LinearTask& task, size_t first_tile, size_t end_tile) { \
    function(task, first_tile, end_tile);                                       \
  }
#define EDGE_SPARSE_KERNELS(bits, activations, isa, V)                                                    \
  EDGE_OTHER_KERNEL(sparse##bits##_16x8_##activations##_##isa, (sparse_blocks_##activations<V, bits, 8>)) \
  EDGE_OTHER_KERNEL(sparse##bits##_16x4_##activations##_##isa, (sparse_blocks_##activations<V, bits, 4>)) \
  EDGE_OTHER_KERNEL(sparse##bits##_2of4_##activations##_##isa, (sparse_2of4_##activations<V, bits>))
#define EDGE_OTHER_KERNELS(isa, V)                       \
  EDGE_SPARSE_KERNELS(4, a8, isa, V)                     \
  EDGE_SPARSE_KERNELS(8, a8, isa, V)                     \
  EDGE_SPARSE_KERNELS(4, f32, isa, V)                    \
  EDGE_SPARSE_KERNELS(8, f32, isa, V)                    \
  EDGE_OTHER_KERNEL(mixed1_a8_##isa, (mixed_a8<V, 1>))   \
  EDGE_OTHER_KERNEL(mixed2_a8_##isa, (mixed_a8<V, 2>))   \
  EDGE_OTHER_KERNEL(mixed1_f32_##isa, (mixed_f32<V, 1>)) \
  EDGE_OTHER_KERNEL(mixed2_f32_##isa, (mixed_f32<V, 2>))
