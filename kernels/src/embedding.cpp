// edge_embedding: rows of the matrix, dequantized. A row is every 16th four bytes of its tile's stream.
#include "format.h"

namespace edge {
namespace {

template <uint32_t Bits>
void dequantize_row(const Geometry& m, const uint8_t* stream, size_t row, float* out) {
  const uint8_t* head = stream;
  size_t column = 0;
  for (size_t group = 0; group < m.groups; ++group) {
    const size_t half = group % 2;
    if (half == 0) {
      head = stream;
      stream += m.head_bytes;
    }
    const float scale = float_from_half(load<uint16_t>(head + half * kScaleBytes + 2 * row));
    const float zero = m.zero_points ? head[2 * kScaleBytes + half * kRows + row] : 1 << (Bits - 1);
    const size_t end = smaller(m.columns, column + m.columns_of(group));
    for (; column < end; stream += 64 * Bits) {
      const size_t used = smaller(kStep, end - column);
      for (size_t i = 0; i < used; ++i) {
        out[column + i] = (static_cast<float>(code_at<Bits>(stream, row, i)) - zero) * scale;
      }
      column += used;
    }
  }
}

using RowKernel = void (*)(const Geometry& m, const uint8_t* stream, size_t row, float* out);

RowKernel row_kernel(uint32_t bits) {
  switch (bits) {
    case 2:
      return dequantize_row<2>;
    case 3:
      return dequantize_row<3>;
    case 4:
      return dequantize_row<4>;
    default:
      return dequantize_row<8>;
  }
}

}  // namespace
}  // namespace edge

extern "C" edge_status edge_embedding(const void* packed, size_t packed_bytes, const int64_t* ids, size_t id_count,
                                      float* out, size_t out_count) {
  edge_packed_header header;
  const edge_status status = edge_check(packed, packed_bytes, &header);
  if (status != EDGE_OK) return status;
  if (header.encoding != EDGE_AFFINE || header.grid == EDGE_HALF_INTEGER) return EDGE_UNSUPPORTED;
  const edge::Geometry m = edge::geometry_of(header);
  if (out_count % m.columns != 0 || out_count / m.columns != id_count) return EDGE_BAD_ARGUMENT;
  if (id_count == 0) return EDGE_OK;
  if (!ids || !out) return EDGE_BAD_ARGUMENT;
  for (size_t i = 0; i < id_count; ++i) {
    if (ids[i] < 0 || static_cast<uint64_t>(ids[i]) >= m.rows) return EDGE_BAD_ARGUMENT;
  }
  const uint8_t* tiles = static_cast<const uint8_t*>(packed) + sizeof(header);
  const edge::RowKernel kernel = edge::row_kernel(header.bits);
  for (size_t i = 0; i < id_count; ++i) {
    const size_t id = static_cast<size_t>(ids[i]);
    kernel(m, tiles + id / edge::kRows * m.tile_bytes, id % edge::kRows, out + i * m.columns);
  }
  return EDGE_OK;
}
