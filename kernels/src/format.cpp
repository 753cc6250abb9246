#include "format.h"

namespace edge {
namespace {

bool known_group(uint32_t group_size) {
  return group_size == 0 || group_size == 32 || group_size == 64 || group_size == 128;
}

bool is_blocks(const edge_packed_header& header) {
  return header.encoding == EDGE_SPARSE && header.pattern != EDGE_2OF4;
}

bool reserved_is_zero(const edge_packed_header& header) {
  uint8_t any = 0;
  for (uint8_t byte : header.reserved) any |= byte;
  return any == 0;
}

// Fields that belong to one encoding are zero in all others.
bool foreign_fields_are_zero(const edge_packed_header& header) {
  const bool codebook = header.encoding == EDGE_CODEBOOK, mixed = header.encoding == EDGE_GROUP_MIXED;
  const bool any_grid = header.encoding == EDGE_AFFINE || mixed;
  if (!any_grid && header.grid != EDGE_SYMMETRIC) return false;
  if (!codebook && (header.dim || header.entry || header.table_rows || header.table_columns)) return false;
  if (!codebook && !mixed && header.scale) return false;
  return (mixed || !header.high_groups) && (header.encoding == EDGE_SPARSE || !header.pattern);
}

edge_status check_affine(const edge_packed_header& header) {
  if (header.grid > EDGE_HALF_INTEGER) return EDGE_BAD_HEADER;
  const uint32_t bits = header.bits;
  return bits == 2 || bits == 3 || bits == 4 || bits == 8 ? EDGE_OK : EDGE_UNSUPPORTED;
}

edge_status check_codebook(const edge_packed_header& header) {
  const uint32_t group = header.group_size, rows = header.table_rows, columns = header.table_columns;
  const uint32_t bits = header.bits, dim = header.dim;
  if ((dim != 1 && dim != 2 && dim != 4) || header.entry > EDGE_INT16_ENTRIES || header.scale > EDGE_ROW_SCALES) {
    return EDGE_BAD_HEADER;
  }
  if (rows > INT32_MAX || columns > INT32_MAX) return EDGE_BAD_HEADER;
  if (header.entry == EDGE_INT16_ENTRIES && (dim != 1 || group == 0)) return EDGE_BAD_HEADER;
  if (group % (kStep * dim) != 0 || header.columns % dim != 0) return EDGE_BAD_HEADER;
  if (rows % 4 != 0 && (rows != 1 || dim != 1)) return EDGE_BAD_HEADER;
  if (columns != 0 && (group == 0 || columns % (2 * group) != 0)) return EDGE_BAD_HEADER;
  return bits >= (dim == 1 ? 1 : 2) && bits <= 4 ? EDGE_OK : EDGE_UNSUPPORTED;
}

edge_status check_mixed(const edge_packed_header& header) {
  const uint32_t group = header.group_size;
  if (header.grid > EDGE_ZERO_POINT || group == 0) return EDGE_BAD_HEADER;
  if (header.scale != EDGE_GROUP_SCALES && header.scale != EDGE_SECOND_ORDER_SCALES) return EDGE_BAD_HEADER;
  const uint32_t groups = (header.columns + group - 1) / group;
  if (groups > 1u << 16 || header.high_groups > groups) return EDGE_BAD_HEADER;  // the order's entries have 16 bits
  if (header.bits == 1 && header.grid != EDGE_SYMMETRIC) return EDGE_BAD_HEADER;
  return header.bits == 1 || header.bits == 2 ? EDGE_OK : EDGE_UNSUPPORTED;
}

edge_status check_sparse(const edge_packed_header& header) {
  if (header.pattern < EDGE_16X8 || header.pattern > EDGE_2OF4) return EDGE_BAD_HEADER;
  if (header.pattern == EDGE_2OF4 && header.columns % 4 != 0) return EDGE_BAD_HEADER;
  const uint32_t width = header.pattern == EDGE_16X8 ? 8 : 4;
  if (is_blocks(header) && (header.columns - 1) / width > UINT16_MAX) return EDGE_BAD_HEADER;  // indices have 16 bits
  return header.bits == 4 || header.bits == 8 ? EDGE_OK : EDGE_UNSUPPORTED;
}

edge_status check_encoding(const edge_packed_header& header) {
  switch (header.encoding) {
    case EDGE_AFFINE:
      return check_affine(header);
    case EDGE_CODEBOOK:
      return check_codebook(header);
    case EDGE_GROUP_MIXED:
      return check_mixed(header);
    case EDGE_SPARSE:
      return check_sparse(header);
    default:
      return EDGE_UNSUPPORTED;
  }
}

edge_status check_fields(const edge_packed_header& header) {
  if (header.magic != EDGE_PACKED_MAGIC) return EDGE_BAD_HEADER;
  if (header.version > EDGE_PACKED_VERSION) return EDGE_NEWER;
  if (header.version == 0 || header.tile_rows != kRows || !reserved_is_zero(header)) return EDGE_BAD_HEADER;
  if (header.rows == 0 || header.columns == 0) return EDGE_BAD_HEADER;
  if (header.rows > INT32_MAX || header.columns > INT32_MAX) return EDGE_BAD_HEADER;
  if (header.layout != EDGE_TILE16_STREAM || !known_group(header.group_size)) return EDGE_UNSUPPORTED;
  if (header.group_size == 0 && header.columns > EDGE_MAX_GROUP) return EDGE_UNSUPPORTED;
  const edge_status status = check_encoding(header);
  return status == EDGE_OK && !foreign_fields_are_zero(header) ? EDGE_BAD_HEADER : status;
}

// The payload of tiles that differ in size is bounded by its table of offsets alone: kernels check every offset.
edge_status check_size(const edge_packed_header& header, uint64_t bytes) {
  const Geometry g = geometry_of(header);
  if (g.tile_bytes && header.payload_bytes != g.payload_bytes) return EDGE_BAD_HEADER;
  if (!g.tile_bytes && (header.payload_bytes < g.prefix_bytes || header.payload_bytes % kLine)) return EDGE_BAD_HEADER;
  return header.payload_bytes == bytes ? EDGE_OK : EDGE_TRUNCATED;
}

uint64_t step_columns_of(const edge_packed_header& header) {
  return header.dim ? header.dim * kStep : kStep;
}

// 2:4 has a line of positions and half as many values; blocks don't come in steps.
uint64_t step_bytes_of(const edge_packed_header& header) {
  if (header.encoding != EDGE_SPARSE) return kLine * header.bits;
  return is_blocks(header) ? 0 : kLine + kLine / 2 * header.bits;
}

uint64_t head_bytes_of(const edge_packed_header& header) {
  const uint64_t zeros = header.grid == EDGE_ZERO_POINT ? 2 * kRows : 0;
  if (header.scale == EDGE_ROW_SCALES) return 0;
  return (header.scale == EDGE_SECOND_ORDER_SCALES ? 2 * kRows : 2 * kScaleBytes) + zeros;
}

void set_tables(const edge_packed_header& header, Geometry* g) {
  g->row_tables = header.table_rows == 1;
  g->plane_bytes = g->row_tables ? kLine / 4 << slot_bits(header.bits) : kLine;
  g->table_bytes = g->plane_bytes * (header.entry == EDGE_INT16_ENTRIES ? 2 : header.dim);
  if (header.table_columns) {
    g->table_groups = header.table_columns / header.group_size;
  } else if (header.table_rows) {
    g->table_groups = g->groups;
  } else {
    g->prefix_bytes = g->table_bytes;
  }
}

uint64_t pairs(uint64_t groups) {
  return (groups + 1) / 2;
}

// Below 2^37, as rows and columns are below 2^31: with up to 2^27 tiles, all products fit 64 bits.
uint64_t tile_bytes_of(const Geometry& g) {
  const uint64_t steps = g.padded_columns / g.step_columns * g.step_bytes;
  if (g.block_columns) return 0;
  if (g.encoding != EDGE_GROUP_MIXED) {
    const uint64_t tables = g.table_groups ? (g.groups + g.table_groups - 1) / g.table_groups * g.table_bytes : 0;
    return g.row_scale_bytes + tables + pairs(g.groups) * g.head_bytes + steps;
  }
  const uint64_t heads = (pairs(g.groups - g.high_groups) + pairs(g.high_groups)) * g.head_bytes;
  const uint64_t more = g.high_groups * (g.group_columns / kStep) * kLine * (high_bits_of(g.bits) - g.bits);
  return g.order_bytes + g.row_scale_bytes + heads + steps + more;
}

}  // namespace

Geometry geometry_of(const edge_packed_header& header) {
  Geometry g = {};
  g.encoding = header.encoding;
  g.bits = header.bits;
  g.dim = header.dim;
  g.pattern = header.pattern;
  g.grid = header.grid;
  g.scale = header.scale;
  g.entry = header.entry;
  g.rows = header.rows;
  g.columns = header.columns;
  g.tiles = (g.rows + kRows - 1) / kRows;
  g.step_columns = step_columns_of(header);
  g.step_bytes = step_bytes_of(header);
  g.padded_columns = rounded_up(g.columns, header.encoding == EDGE_GROUP_MIXED ? header.group_size : g.step_columns);
  g.group_columns = header.group_size ? header.group_size : g.padded_columns;
  g.groups = (g.padded_columns + g.group_columns - 1) / g.group_columns;
  g.zero_points = header.grid == EDGE_ZERO_POINT;
  g.head_bytes = head_bytes_of(header);
  g.row_scale_bytes = header.scale == EDGE_GROUP_SCALES ? 0 : 2 * kScaleBytes;
  if (header.encoding == EDGE_CODEBOOK) set_tables(header, &g);
  if (is_blocks(header)) {
    g.block_columns = header.pattern == EDGE_16X8 ? 8 : 4;
    g.prefix_bytes = rounded_up((g.tiles + 1) * sizeof(uint32_t), kLine);
  }
  if (header.encoding == EDGE_GROUP_MIXED) {
    g.high_groups = header.high_groups;
    g.order_bytes = rounded_up(g.groups * sizeof(uint16_t), kLine);
  }
  g.sum_columns = g.block_columns ? g.block_columns : g.group_columns;
  g.sums = g.block_columns ? g.padded_columns / g.block_columns : g.groups;
  g.tile_bytes = tile_bytes_of(g);
  g.payload_bytes = g.tile_bytes ? g.prefix_bytes + g.tiles * g.tile_bytes : header.payload_bytes;
  return g;
}

}  // namespace edge

extern "C" {

edge_status edge_check(const void* packed, size_t packed_bytes, edge_packed_header* header) {
  if (!packed) return EDGE_BAD_ARGUMENT;
  if (packed_bytes < sizeof(edge_packed_header)) return EDGE_TRUNCATED;
  const edge_packed_header found = edge::load<edge_packed_header>(packed);
  edge_status status = edge::check_fields(found);
  if (status == EDGE_OK) status = edge::check_size(found, packed_bytes - sizeof(found));
  if (status == EDGE_OK && header) *header = found;
  return status;
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
