// edge_embedding: rows of the matrix, dequantized. A row is every 16th four bytes of its tile's stream.
#include "dense.h"
#include "mixed_stream.h"
#include "sparse_tile.h"

namespace edge {
namespace {

EDGE_INLINE float half_at(const void* halves, size_t index) {
  return float_from_half(load<uint16_t>(static_cast<const uint8_t*>(halves) + 2 * index));
}

// Codes of `row` in the steps at `at`, less `zero`, times `scale`, to the `count` elements of `out`. Codes twice as far
// apart are the half-integer grid's.
template <uint32_t Bits>
void affine_run(const uint8_t* at, size_t row, float apart, float zero, float scale, float* out, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* step = at + i / kStep * (kLine * Bits);
    out[i] = (apart * code_at<Bits>(step, row, i % kStep) - zero) * scale;
  }
}

template <uint32_t Bits>
void affine_row(const LinearTask& task, size_t tile, size_t row, float* out) {
  const Geometry& m = task.matrix;
  const bool half_integer = m.grid == EDGE_HALF_INTEGER;
  const float middle = half_integer ? (1 << Bits) - 1 : 1 << (Bits - 1);
  Stream<Affine<Bits>> stream(task, tile);
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    const size_t column = group * m.group_columns, count = smaller(m.group_columns, m.columns - column);
    const float zero = m.zero_points ? stream.zero_points()[row] : middle;
    affine_run<Bits>(stream.at, row, half_integer ? 2 : 1, zero, half_at(stream.scales(0), row), out + column, count);
    stream.at += m.columns_of(group) / kStep * m.step_bytes;
  }
}

// Entry `entry` of the table that `row` has, from one of its planes.
EDGE_INLINE int32_t table_byte(const Geometry& m, const uint8_t* plane, size_t row, size_t entry) {
  if (m.row_tables) entry += row % 4 << slot_bits(m.bits);
  return plane[entry / 16 * kLine + row / 4 * 16 + entry % 16];
}

// The coordinates of an entry.
template <uint32_t Dim>
EDGE_INLINE void entry_values(const Geometry& m, const uint8_t* table, size_t row, size_t entry, float (&values)[Dim]) {
  if (m.entry == EDGE_INT16_ENTRIES) {
    const int32_t low = table_byte(m, table, row, entry), high = table_byte(m, table + m.plane_bytes, row, entry);
    values[0] = low + 256 * high - 32768;
    return;
  }
  for (uint32_t d = 0; d < Dim; ++d) values[d] = table_byte(m, table + d * m.plane_bytes, row, entry) - 128;
}

// Where the code of a column of a step lies; a code serves `Dim` columns.
template <uint32_t Dim>
EDGE_INLINE size_t code_column(size_t column) {
  constexpr uint8_t place[4] = {0, 2, 1, 3};
  return Dim == 2 ? column / 8 * 4 + place[column / 2 % 4] : column / Dim;
}

template <uint32_t Bits, uint32_t Dim>
void codebook_row(const LinearTask& task, size_t tile, size_t row, float* out) {
  constexpr size_t step_columns = kStep * Dim;
  const Geometry& m = task.matrix;
  Stream<Scalars<Bits, 1, false>> stream(task, tile);
  float values[1 << Bits][Dim];
  const uint8_t* known = nullptr;
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    if (stream.table != known) {
      known = stream.table;
      for (size_t entry = 0; entry < 1 << Bits; ++entry) entry_values<Dim>(m, known, row, entry, values[entry]);
    }
    const float scale = half_at(stream.scales(0), row);
    const size_t column = group * m.group_columns, count = smaller(m.group_columns, m.columns - column);
    for (size_t i = 0; i < count; ++i) {
      const uint8_t* step = stream.at + i / step_columns * (kLine * Bits);
      out[column + i] = values[code_at<Bits>(step, row, code_column<Dim>(i % step_columns))][i % Dim] * scale;
    }
    stream.at += m.columns_of(group) / step_columns * m.step_bytes;
  }
}

template <uint32_t Bits>
void mixed_groups(MixedStream& stream, size_t groups, size_t row, float* out) {
  const Geometry& m = stream.m;
  for (size_t i = 0; i < groups; ++i) {
    const size_t column = stream.enter(i == 0) * m.group_columns, count = smaller(m.group_columns, m.columns - column);
    const bool second_order = stream.row_scales != nullptr;
    const float scale =
        second_order ? stream.scales()[row] * half_at(stream.row_scales, row) : half_at(stream.scales(), row);
    const float zero = m.zero_points ? stream.zero_points()[row] : middle_of(Bits);
    affine_run<Bits>(stream.at, row, 1 << shift_of(Bits), zero, scale, out + column, count);
    stream.at += m.group_columns / kStep * (kLine * Bits);
  }
}

template <uint32_t Bits>
void mixed_row(const LinearTask& task, size_t tile, size_t row, float* out) {
  const Geometry& m = task.matrix;
  MixedStream stream(task, tile);
  mixed_groups<Bits>(stream, m.groups - m.high_groups, row, out);
  mixed_groups<high_bits_of(Bits)>(stream, m.high_groups, row, out);
}

template <uint32_t Bits>
void blocks_row(const LinearTask& task, size_t tile, size_t row, float* out) {
  const Geometry& m = task.matrix;
  SparseTile found;
  if (!find_sparse_tile(m, task.prefix, tile, &found)) {
    for (size_t i = 0; i < m.columns; ++i) out[i] = float_from_bits(0x7fc00000u);
    return;
  }
  memset(out, 0, m.columns * sizeof(float));
  const uint8_t *indices = found.indices, *values = found.stream, *head = values;
  for (size_t group = 0; group < m.groups; ++group) {
    if (group % 2 == 0) {
      head = values;
      values += m.head_bytes;
    }
    const float scale = half_at(head + group % 2 * kScaleBytes, row);
    const size_t count = load<uint16_t>(found.counts + 2 * group);
    size_t last = m.sums;  // no block: one that fills up a unit repeats the index before it and is left out
    for (size_t i = 0; i < count; ++i) {
      const size_t index = load<uint16_t>(indices + 2 * i), column = index * m.block_columns;
      for (size_t k = 0; index != last && k < m.block_columns && column + k < m.columns; ++k) {
        out[column + k] = (code_at<Bits>(values, row, i * m.block_columns + k) - (1 << (Bits - 1))) * scale;
      }
      last = index;
    }
    indices += 2 * count;
    values += count * m.block_columns * kRows * Bits / 8;
  }
}

template <uint32_t Bits>
void two_of_four_row(const LinearTask& task, size_t tile, size_t row, float* out) {
  const Geometry& m = task.matrix;
  Stream<Affine<Bits>> stream(task, tile);
  memset(out, 0, m.columns * sizeof(float));
  for (size_t group = 0; group < m.groups; ++group) {
    stream.enter(group);
    const float scale = half_at(stream.scales(0), row);
    const size_t column = group * m.group_columns, count = smaller(m.group_columns, m.columns - column);
    for (size_t i = 0; i < count / 2; ++i) {  // kept values: two of each quad
      const uint8_t* step = stream.at + i / (kStep / 2) * m.step_bytes;
      const size_t slot = i % (kStep / 2), position = code_at<2>(step, row, slot);
      const float value = (code_at<Bits>(step + kLine, row, slot) - (1 << (Bits - 1))) * scale;
      out[column + i / 2 * 4 + position] = value;
    }
    stream.at += m.columns_of(group) / kStep * m.step_bytes;
  }
}

using RowKernel = void (*)(const LinearTask& task, size_t tile, size_t row, float* out);

RowKernel affine_kernel(uint32_t bits) {
  constexpr RowKernel kernels[] = {affine_row<2>, affine_row<3>, affine_row<4>};
  return bits == 8 ? affine_row<8> : kernels[bits - 2];
}

RowKernel codebook_kernel(uint32_t bits, uint32_t dim) {
  constexpr RowKernel scalars[] = {codebook_row<1, 1>, codebook_row<2, 1>, codebook_row<3, 1>, codebook_row<4, 1>};
  constexpr RowKernel vectors[2][3] = {{codebook_row<2, 2>, codebook_row<3, 2>, codebook_row<4, 2>},
                                       {codebook_row<2, 4>, codebook_row<3, 4>, codebook_row<4, 4>}};
  return dim == 1 ? scalars[bits - 1] : vectors[dim / 4][bits - 2];
}

RowKernel sparse_kernel(uint32_t bits, uint32_t pattern) {
  if (pattern == EDGE_2OF4) return bits == 4 ? two_of_four_row<4> : two_of_four_row<8>;
  return bits == 4 ? blocks_row<4> : blocks_row<8>;
}

RowKernel row_kernel(const edge_packed_header& header) {
  switch (header.encoding) {
    case EDGE_AFFINE:
      return affine_kernel(header.bits);
    case EDGE_CODEBOOK:
      return codebook_kernel(header.bits, header.dim);
    case EDGE_GROUP_MIXED:
      return header.bits == 1 ? mixed_row<1> : mixed_row<2>;
    default:
      return sparse_kernel(header.bits, header.pattern);
  }
}

}  // namespace
}  // namespace edge

extern "C" edge_status edge_embedding(const void* packed, size_t packed_bytes, const int64_t* ids, size_t id_count,
                                      float* out, size_t out_count) {
  edge_packed_header header;
  const edge_status status = edge_check(packed, packed_bytes, &header);
  if (status != EDGE_OK) return status;
  edge::LinearTask task = {};
  task.matrix = edge::geometry_of(header);
  task.prefix = static_cast<const uint8_t*>(packed) + sizeof(header);
  task.tiles = task.prefix + task.matrix.prefix_bytes;
  const edge::Geometry& m = task.matrix;
  if (out_count % m.columns != 0 || out_count / m.columns != id_count) return EDGE_BAD_ARGUMENT;
  if (id_count == 0) return EDGE_OK;
  if (!ids || !out) return EDGE_BAD_ARGUMENT;
  for (size_t i = 0; i < id_count; ++i) {
    if (ids[i] < 0 || static_cast<uint64_t>(ids[i]) >= m.rows) return EDGE_BAD_ARGUMENT;
  }
  const edge::RowKernel kernel = edge::row_kernel(header);
  for (size_t i = 0; i < id_count; ++i) {
    const size_t id = static_cast<size_t>(ids[i]);
    kernel(task, id / edge::kRows, id % edge::kRows, out + i * m.columns);
  }
  return EDGE_OK;
}
