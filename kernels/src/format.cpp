#include "format.h"

namespace edge {
namespace {

bool known_bits(uint32_t bits) {
  return bits == 2 || bits == 3 || bits == 4 || bits == 8;
}

bool known_group(uint32_t group_size) {
  return group_size == 0 || group_size == 32 || group_size == 64 || group_size == 128;
}

bool reserved_is_zero(const edge_packed_header& header) {
  uint8_t any = 0;
  for (uint8_t byte : header.reserved) any |= byte;
  return any == 0;
}

edge_status check_fields(const edge_packed_header& header) {
  if (header.magic != EDGE_PACKED_MAGIC) return EDGE_BAD_HEADER;
  if (header.version > EDGE_PACKED_VERSION) return EDGE_NEWER;
  if (header.version == 0 || header.tile_rows != kRows || !reserved_is_zero(header)) return EDGE_BAD_HEADER;
  if (header.rows == 0 || header.columns == 0) return EDGE_BAD_HEADER;
  if (header.rows > INT32_MAX || header.columns > INT32_MAX || header.grid > EDGE_ZERO_POINT) return EDGE_BAD_HEADER;
  if (header.encoding != EDGE_AFFINE || header.layout != EDGE_TILE16_STREAM) return EDGE_UNSUPPORTED;
  if (!known_bits(header.bits) || !known_group(header.group_size)) return EDGE_UNSUPPORTED;
  if (header.group_size == 0 && header.columns > EDGE_MAX_GROUP) return EDGE_UNSUPPORTED;
  return EDGE_OK;
}

}  // namespace

Geometry geometry_of(const edge_packed_header& header) {
  Geometry g;
  g.bits = header.bits;
  g.rows = header.rows;
  g.columns = header.columns;
  g.padded_columns = (g.columns + kStep - 1) / kStep * kStep;
  g.group_columns = header.group_size ? header.group_size : g.padded_columns;
  g.groups = (g.padded_columns + g.group_columns - 1) / g.group_columns;
  g.sum_columns = g.group_columns;
  g.sums = g.groups;
  g.tiles = (g.rows + kRows - 1) / kRows;
  g.zero_points = header.grid == EDGE_ZERO_POINT;
  g.head_bytes = 2 * kScaleBytes + (g.zero_points ? 2 * kRows : 0);
  g.tile_bytes = (g.groups + 1) / 2 * g.head_bytes + g.padded_columns / kStep * g.step_bytes();
  return g;
}

}  // namespace edge

extern "C" {

edge_status edge_check(const void* packed, size_t packed_bytes, edge_packed_header* header) {
  if (!packed) return EDGE_BAD_ARGUMENT;
  if (packed_bytes < sizeof(edge_packed_header)) return EDGE_TRUNCATED;
  const edge_packed_header found = edge::load<edge_packed_header>(packed);
  const edge_status status = edge::check_fields(found);
  if (status != EDGE_OK) return status;
  const edge::Geometry geometry = edge::geometry_of(found);  // rows and columns below 2^31: no product overflows
  if (found.payload_bytes != static_cast<uint64_t>(geometry.tiles) * geometry.tile_bytes) return EDGE_BAD_HEADER;
  if (found.payload_bytes != packed_bytes - sizeof(found)) return EDGE_TRUNCATED;
  if (header) *header = found;
  return EDGE_OK;
}

edge_status edge_verify(const void* packed, size_t packed_bytes) {
  edge_packed_header header;
  const edge_status status = edge_check(packed, packed_bytes, &header);
  if (status != EDGE_OK) return status;
  const uint8_t* bytes = static_cast<const uint8_t*>(packed);
  const uint64_t position = offsetof(edge_packed_header, checksum) / 8;
  uint64_t sum = -(2 * position + 1) * header.checksum;  // takes the field itself out again
  for (uint64_t i = 0; i < packed_bytes / 8; ++i) sum += (2 * i + 1) * edge::load<uint64_t>(bytes + 8 * i);
  return sum == header.checksum ? EDGE_OK : EDGE_BAD_CHECKSUM;
}

const char* edge_status_text(edge_status status) {
  switch (status) {
    case EDGE_OK:
      return "ok";
    case EDGE_BAD_ARGUMENT:
      return "an argument is null, has the wrong size, or names a row that is not there";
    case EDGE_TRUNCATED:
      return "the packed weights have another size than their header says";
    case EDGE_BAD_HEADER:
      return "these bytes are not packed weights, or their header is damaged";
    case EDGE_NEWER:
      return "the weights were packed by a newer version of edge";
    case EDGE_BAD_CHECKSUM:
      return "the packed weights are damaged: their checksum differs";
    case EDGE_UNSUPPORTED:
      return "no kernel serves this encoding";
    case EDGE_NO_ISA:
      return "the instruction set asked for is not in this build or this CPU";
    case EDGE_OUT_OF_MEMORY:
      return "out of memory";
  }
  return "unknown status";
}

uint32_t edge_kernels_abi(void) {
  return EDGE_KERNELS_ABI;
}

}  // extern "C"
