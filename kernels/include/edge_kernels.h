/* C ABI of edge's low-bit kernels.
 *
 * Plain C, no allocation that outlives a call, no global state but the detected CPU. Every function checks each size
 * against the buffer that it was given and returns a status; none aborts on data. All functions may be called from
 * several threads at once. Packed weights need no alignment and are never written to. Little-endian machines only.
 */
#ifndef EDGE_KERNELS_H
#define EDGE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_API __attribute__((visibility("default")))

/* Version of this ABI; a change that breaks a caller raises it. */
#define EDGE_KERNELS_ABI 3

typedef enum edge_status {
  EDGE_OK = 0,
  EDGE_BAD_ARGUMENT = 1,  /* a null pointer, a size that doesn't match, an id outside the table */
  EDGE_TRUNCATED = 2,     /* fewer (or more) bytes than the header says */
  EDGE_BAD_HEADER = 3,    /* not packed weights, or fields that don't add up */
  EDGE_NEWER = 4,         /* packed by a newer version */
  EDGE_BAD_CHECKSUM = 5,  /* the bytes are not those that were packed */
  EDGE_UNSUPPORTED = 6,   /* a valid encoding that no kernel here serves */
  EDGE_NO_ISA = 7,        /* the instruction set asked for is not in this build or not in this CPU */
  EDGE_OUT_OF_MEMORY = 8, /* scratch memory could not be had */
} edge_status;

/* One line of English for a status; never null. */
EDGE_API const char* edge_status_text(edge_status status);

// clang-format off: the diagrams below
/* ---- Packed weights -------------------------------------------------------------------------------------------------
 *
 * A matrix [rows, columns] (row = output feature) as one blob: this header, a prefix that some encodings have, then
 * ceil(rows / 16) tiles. Rows are padded to 16 with scale 0, columns to a multiple of 32 (see below) with code 0.
 *
 * A tile is one sequential stream of 16 rows. EDGE_AFFINE: for each pair of groups (g, g + 1):
 *
 *     32 bytes   fp16 scales of group g, one per row
 *     32 bytes   fp16 scales of group g + 1 (zero when the row ends with group g)
 *     16 + 16    u8 zero points of both groups, only when grid is EDGE_ZERO_POINT
 *     steps      of 32 columns, 64 * bits bytes each: those of group g, then those of group g + 1
 *
 * group_size 0 is one group for the whole row. The last group may be short; it is padded to 32 columns, not to
 * group_size. In a step, "quad j" means columns 4j .. 4j + 3 (j = 0 .. 7); byte 4 * row + (column & 3) of every 64-byte
 * atom belongs to that row and column:
 *
 *     bits 8   8 atoms, atom j:     [7 ....... 0] quad j
 *     bits 4   4 atoms, atom a:     [7 .. 4] quad 2a + 1     [3 .. 0] quad 2a
 *     bits 2   2 atoms, atom a:     [7 6] quad 4a + 3  [5 4] quad 4a + 2  [3 2] quad 4a + 1  [1 0] quad 4a
 *     bits 3   3 atoms: two as for 2 bits with the low two bits of each code; the third has bit j = high bit of quad j
 *
 * Bits per weight (long rows), symmetric: bits + 16 / group_size, so 4 bits g64 4.25, 3 bits g64 3.25, 2 bits g128
 * 2.125; the zero-point grid adds 8 / group_size.
 *
 * value = scale * (code - zero), zero = 2^(bits - 1) on the symmetric grid; on the half-integer grid (the same bytes as
 * symmetric) value = scale * (2 * code - (2^bits - 1)).
 *
 * EDGE_CODEBOOK: value = scale * table[code]. Steps are those of EDGE_AFFINE with `bits` bits (2, 3, 4), or with dim 1
 * those of 1 bit that EDGE_GROUP_MIXED has.
 *     dim 1      one code a column; the table's entries are int8 (-127 .. 127, stored + 128) or int16 (stored + 32768
 *                as a plane of low bytes and a plane of high bytes; group_size not 0)
 *     dim 2      one code for two adjacent columns, int8 entries, one plane for each of the two coordinates. A step is
 *                64 columns (columns are even and padded to 64; group_size 0, 64 or 128). Code pair i (columns 2i,
 *                2i + 1) of the four pairs of 8 columns lies where column {0, 2, 1, 3}[i & 3] + (i & ~3) of a dim 1
 *                step would.
 *     dim 4      one code for four adjacent columns, int8 entries, one plane for each coordinate. A step is 128
 *                columns (columns are a multiple of 4 and padded to 128; group_size 0 or 128). Code i of it (columns
 *                4i .. 4i + 3) lies where column i of a dim 1 step would.
 *     tables     lines of 64 bytes = 4 lanes of 16; lane i serves rows 4i .. 4i + 3. Byte e of a lane is entry e;
 *                entries past the table's or the matrix's end are 0 (stored as such: 128). With table_rows 1, every row
 *                has its own table: of 2 or 4 entries, one line, entry e of row 4i + r at byte 4r + e of lane i; of 8,
 *                two lines, line p has rows 4i + 2p and 4i + 2p + 1, at bytes 0 and 8; of 16, four lines, line r has
 *                row 4i + r. A plane is 1, 2 or 4 lines; planes (low, high; or coordinate 0, 1 ..) follow each other.
 *     table_rows, table_columns   rows and columns that share a table: 0 is all of them; rows 1 (dim 1 only) or a
 *                multiple of 4; columns a multiple of 2 * group_size. Both 0: the table is the blob's prefix. Else it
 *                stands before the head of the pair of groups that it begins with, in every tile.
 *     scale      EDGE_GROUP_SCALES: heads as in EDGE_AFFINE. EDGE_ROW_SCALES: no heads; each tile starts with 32 bytes
 *                of fp16 scales, one per row, and 32 of zeros; group_size still rules the activations.
 *     bits per weight: bits / dim + 16 / group_size, or + 16 / columns with row scales; tables in the stream add
 *                32 * lines / table_columns
 *
 * EDGE_GROUP_MIXED: bits 2 with `high_groups` groups of every tile at 4 bits, or bits 1 (symmetric) with them at 8;
 * group_size 32, 64 or 128, columns padded to it. Written for bits 2, a tile:
 *     u16 order[groups]     the groups at 2 bits, ascending, then those at 4 bits, ascending; padded to 64 bytes
 *     64 bytes              fp16 scales of the rows and 32 zeros, only with EDGE_SECOND_ORDER_SCALES
 *     pairs of groups in that order, as in EDGE_AFFINE, those at 2 bits first; an odd one out stands alone in its pair.
 *                With second-order scales, a head has u8 scales (16 + 16 bytes): scale = u8 * row's scale
 *     bits 1     1 atom:            [7 ....... 0] quads 7 .. 0; value = scale * (64 * code - 32)
 *     bits per weight: 2 + 2 * high_groups / groups + (16 or 8, and 8 with zero points) / group_size; with bits 1,
 *                1 + 7 * high_groups / groups + (16 or 8) / group_size
 *
 * EDGE_SPARSE (symmetric grid; bits 4 or 8 per stored value):
 *     EDGE_16X8, EDGE_16X4  the prefix is u32 offset[tiles + 1], in units of 64 bytes from the end of the header,
 *                padded to 64 bytes. A tile: u16 count[groups], u16 index[sum of counts] (column / width of each block,
 *                ascending within its group), padded to 64; then for each pair of groups 64 bytes of fp16 scales and
 *                the blocks of the one and the other. A block of 8 columns is quad 0 and quad 1: at 4 bits one atom, at
 *                8 bits two. A block of 4 columns is one quad: at 8 bits one atom; at 4 bits two blocks share an atom
 *                (low nibbles the first), and the count of a group is made even by a block of codes 8 with the index of
 *                the one before.
 *     EDGE_2OF4  heads as in EDGE_AFFINE. Columns are a multiple of 4; in every row, 2 of each quad of columns are
 *                stored, the left one first (columns 0 and 1 in padded quads). A step of 32 columns: 64 bytes of
 *                positions, then values. Byte 4 * row + i is quad 2m + i / 2, its kept value i & 1; positions: bits 2m,
 *                2m + 1 (m = 0 .. 3) hold the column in the quad; values of 4 bits: 2 atoms, atom a has m = 2a in the
 *                low nibble, m = 2a + 1 in the high one; of 8 bits: 4 atoms, atom m.
 *     bits per weight: blocks density * bits + 16 / group_size + 16 * density / (16 * width); 2:4 bits / 2 + 1 + 16 /
 *                group_size
 */
// clang-format on
#define EDGE_PACKED_MAGIC 0x4b474445u /* the bytes "EDGK" */
#define EDGE_PACKED_VERSION 1
#define EDGE_TILE_ROWS 16
#define EDGE_STEP_COLUMNS 32
/* Longest group: its integer sum (255 * 127 per column) must fit 32 bits. */
#define EDGE_MAX_GROUP 65536

enum { EDGE_AFFINE = 1, EDGE_CODEBOOK = 2, EDGE_GROUP_MIXED = 3, EDGE_SPARSE = 4 }; /* .encoding */
enum { EDGE_SYMMETRIC = 0, EDGE_ZERO_POINT = 1, EDGE_HALF_INTEGER = 2 };            /* .grid */
enum { EDGE_TILE16_STREAM = 1 };                                                    /* .layout */
enum { EDGE_GROUP_SCALES = 0, EDGE_ROW_SCALES = 1, EDGE_SECOND_ORDER_SCALES = 2 };  /* .scale */
enum { EDGE_INT8_ENTRIES = 0, EDGE_INT16_ENTRIES = 1 };                             /* .entry */
enum { EDGE_16X8 = 1, EDGE_16X4 = 2, EDGE_2OF4 = 3 };                               /* .pattern */

/* Fields that an encoding has no use for are zero (dim too: 1, 2 or 4 for EDGE_CODEBOOK only). */
typedef struct edge_packed_header {
  uint32_t magic;
  uint16_t version;
  uint8_t encoding;
  uint8_t bits;
  uint32_t rows;
  uint32_t columns;
  uint32_t group_size;
  uint8_t grid;
  uint8_t layout;
  uint8_t tile_rows;
  uint8_t scale;
  uint64_t payload_bytes;
  /* sum over i of (2i + 1) * word i, modulo 2^64, over all 64-bit words of the blob with this field taken as zero:
   * any single changed word changes it, because every factor is odd */
  uint64_t checksum;
  uint32_t table_rows;
  uint32_t table_columns;
  uint32_t high_groups;
  uint8_t dim;
  uint8_t entry;
  uint8_t pattern;
  uint8_t reserved[9]; /* zero */
} edge_packed_header;

#ifdef __cplusplus
static_assert(sizeof(edge_packed_header) == 64, "the header is 64 bytes on every machine");
#else
_Static_assert(sizeof(edge_packed_header) == 64, "the header is 64 bytes on every machine");
#endif

/* Check a blob's header against its size, copy the header to `header` (may be null); reads the header only. */
EDGE_API edge_status edge_check(const void* packed, size_t packed_bytes, edge_packed_header* header);

/* edge_check, then the checksum over all bytes and every index and offset in them: once per load, not per call. Kernels
 * never read outside the blob, verified or not. */
EDGE_API edge_status edge_verify(const void* packed, size_t packed_bytes);

/* ---- Instruction sets -----------------------------------------------------------------------------------------------
 * The environment variable EDGE_KERNELS_ISA (portable, avx2, avx512vnni, neon_dotprod, neon_i8mm), read once, caps what
 * EDGE_AUTO picks; a name that can't run here makes every call return EDGE_NO_ISA.
 */
typedef enum edge_isa {
  EDGE_AUTO = 0,
  EDGE_PORTABLE = 1,
  EDGE_AVX2 = 2,
  EDGE_AVX512VNNI = 3,
  EDGE_NEON_DOTPROD = 4,
  EDGE_NEON_I8MM = 5,
} edge_isa;

/* Name of an instruction set, null for a number that is none. */
EDGE_API const char* edge_isa_name(edge_isa isa);

/* 1 when this build has kernels for `isa` and this CPU runs them. */
EDGE_API int edge_isa_available(edge_isa isa);

/* ---- Kernels --------------------------------------------------------------------------------------------------------
 * Activations: EDGE_A8 quantizes each token (row of x) to int8, group by group of the matrix's columns, so that an
 * outlier costs its own group alone:
 *     scale[g] = max|x| over g / 127,  q = clip(rint(x * (1 / scale[g])), -127, 127)   (float32, rint: half to even)
 *     out[n] = sum over g of float(sum over k in g of integer(n, k) * q) * (w_scale[n, g] * scale[g])
 * in float32, each product and sum rounded, groups in the order of the stream (ascending but for EDGE_GROUP_MIXED).
 * integer(n, k) is code - zero, 2 * code - (2^bits - 1), 64 * code - 32 or the table's entry: a weight without its
 * scale. A group whose 1 / scale is not finite (all zeros, or magnitudes below 2^-121) counts as zeros. A token with a
 * NaN or an infinity gives NaN in all its outputs.
 * EDGE_F32 multiplies in float32: p[j] = sum over k = j mod 4, in the order of the stream, of x[k] * value[n, k];
 *     out[n] = (p[0] + p[1]) + (p[2] + p[3]).
 * Then bias[n] is added, where there is one. Results are the same bits on every instruction set and thread count.
 */
typedef enum edge_activations { EDGE_A8 = 0, EDGE_F32 = 1 } edge_activations;

/* One row of the kernel table, for listings and tests. */
typedef struct edge_kernel_info {
  const char* name; /* affine4_a8_avx512vnni, codebook3d1_f32_avx2, sparse4_16x8_a8_neon_i8mm, mixed2_a8_portable */
  int32_t encoding; /* EDGE_AFFINE .. */
  int32_t bits;
  int32_t dim;         /* of EDGE_CODEBOOK, else 0 */
  int32_t pattern;     /* of EDGE_SPARSE, else 0 */
  int32_t activations; /* edge_activations */
  int32_t isa;         /* edge_isa */
  int32_t available;   /* this CPU runs it */
} edge_kernel_info;

EDGE_API size_t edge_kernel_count(void);
EDGE_API edge_status edge_kernel_at(size_t index, edge_kernel_info* info);

/* Name of the kernel that edge_linear would run, to `name`. */
EDGE_API edge_status edge_linear_kernel(const void* packed, size_t packed_bytes, edge_activations activations,
                                        edge_isa isa, const char** name);

/* The host's threads: run() calls task(work, i) for each i < count, in any order, on any threads, and returns when all
 * have returned. */
typedef struct edge_parallel {
  void* host;
  void (*run)(void* host, size_t count, void (*task)(void* work, size_t index), void* work);
  size_t threads; /* how many can work at once; 0: not known */
} edge_parallel;

/* Arrays that a call reads or writes, with their number of elements. {null, 0}: absent. */
typedef struct edge_input {
  const float* data;
  size_t count;
} edge_input;
typedef struct edge_output {
  float* data;
  size_t count;
} edge_output;

/* What comes before the product: nothing; y = s / sqrt(mean(s^2) + epsilon) * norm_weight; or layer normalization,
 * y = (s - mean) / sqrt(variance + epsilon) * norm_weight + norm_bias, where s = x + skip. */
typedef enum edge_norm { EDGE_NO_NORM = 0, EDGE_RMS_NORM = 1, EDGE_LAYER_NORM = 2 } edge_norm;

/* What comes after it. The gated ones take a matrix of 2 * F rows, the gate's first: activation(gate) * up. */
typedef enum edge_epilogue {
  EDGE_NO_EPILOGUE = 0,
  EDGE_GELU = 1,
  EDGE_GELU_TANH = 2,
  EDGE_SILU_GATED = 3,
  EDGE_GELU_GATED = 4,
  EDGE_GELU_TANH_GATED = 5,
} edge_epilogue;

typedef struct edge_linear_task {
  const void* packed;
  size_t packed_bytes;
  edge_activations activations;
  edge_isa isa; /* a cap like the environment variable, EDGE_AUTO for none */
  edge_norm norm;
  edge_epilogue epilogue;
  float epsilon;
  edge_input x;           /* [tokens, columns]; tokens = count / columns */
  edge_input skip;        /* [tokens, columns] or absent */
  edge_input norm_weight; /* [columns], with a norm */
  edge_input norm_bias;   /* [columns], with EDGE_LAYER_NORM; may be absent */
  edge_input bias;        /* [rows] or absent */
  edge_output sum;        /* x + skip [tokens, columns], or absent; may be x's or skip's own memory */
  edge_output out;        /* [tokens, rows], or [tokens, rows / 2] of a gated epilogue */
} edge_linear_task;

/* out = epilogue(norm(x + skip) times the matrix transposed + bias). `parallel` may be null: then the calling thread
 * does all. */
EDGE_API edge_status edge_linear(const edge_linear_task* task, const edge_parallel* parallel);

/* out [ids, columns] = the dequantized rows that `ids` name. An id below 0 or beyond the last row: EDGE_BAD_ARGUMENT.
 */
EDGE_API edge_status edge_embedding(const void* packed, size_t packed_bytes, const int64_t* ids, size_t id_count,
                                    float* out, size_t out_count);

/* ---- Attention ------------------------------------------------------------------------------------------------------
 * Grouped-query attention of new tokens over a cache that it extends. Head h reads key and value head h / (heads /
 * kv_heads). A token at position p attends to positions max(0, p - window + 1) .. p (window 0: from 0).
 *
 * Cache: keys and values alike are [kv_heads, ceil(capacity / 16)] tiles of 16 positions, edge_cache_tile_bytes each,
 * with W = head_dim rounded up to 16:
 *     keys     element (d, position) at 16 * d + position % 16     d = 0 .. W - 1
 *     values   element (position, d) at W * (position % 16) + d
 * as float, IEEE half or int8, aligned to 4 bytes; after an int8 tile come its 16 float scales, one per position:
 * max|x| / 127 over the head.
 *
 * EDGE_CACHE_TABLE has keys and values of 2, 3, 4 or 8 bits that tables give a meaning, and in every head of every
 * token `outliers` elements in fp16. Keys are there without rotation, which they get when they are read. A head is a
 * tile as EDGE_CACHE_F16 has it (the first 16 positions, keys rotated), then tiles of codes     16 * bits bits for each
 * of: keys, the 16 positions of element d = 0 .. head_dim - 1; values, 16 elements of a position, W / 16 times for each
 * of the 16 positions. The lowest bits first. scale     fp16 [16], values only: one per position offset    fp16 [16],
 * values only outlier   fp16 [16, outliers]: keys, the element; values, (element - offset) / scale index     u8 [16,
 * outliers]: which element that is; of equals the last counts, beyond head_dim none padding   to a multiple of 4 bytes,
 * and at least 4 bytes after the codes An element of a key is levels[code] of its channel, of a value offset + scale *
 * levels[code]. A code is the number of boundaries below the element. 8 bits are an int8: of keys scale * code + offset
 * by channel, of values offset + scale * code. Outliers are the elements of a key that are farthest from their levels,
 * and those of a value that are largest, which the range of the others, offset -+ scale (8 bits: 127 * scale), leaves
 * out.
 */
typedef enum edge_cache {
  EDGE_CACHE_F32 = 0,
  EDGE_CACHE_F16 = 1,
  EDGE_CACHE_INT8 = 2,
  EDGE_CACHE_TABLE = 3
} edge_cache;

/* Bytes of one tile of keys (or of values), 0 for numbers that make no sense and for EDGE_CACHE_TABLE. */
EDGE_API size_t edge_cache_tile_bytes(edge_cache cache, int64_t head_dim);

/* Bytes of the keys, or of the values, of a head in EDGE_CACHE_TABLE; 0 for numbers that make no sense: head_dim beyond
 * 256, other bits, more than 4 outliers (or than head_dim), a capacity that is no multiple of 16. */
EDGE_API size_t edge_table_cache_bytes(int values, int64_t head_dim, int64_t bits, int64_t outliers, int64_t capacity);

typedef struct edge_attention_task {
  edge_isa isa;
  edge_cache cache;
  int64_t heads, kv_heads, head_dim;
  int64_t rotary_dim;   /* leading elements of a head that are rotated, even; 0: none */
  int64_t window;       /* positions that a token sees, itself included; 0: all */
  float scale, softcap; /* scores are scale * q k, then softcap * tanh(score / softcap) unless softcap is 0 */
  float epsilon;        /* of q_norm and k_norm */
  int64_t position;     /* of the first new token */
  int64_t capacity;     /* positions that the cache holds, a multiple of 16 */
  edge_input qkv;       /* [tokens, (heads + 2 * kv_heads) * head_dim] */
  edge_input cos, sin;  /* [positions, rotary_dim / 2], or absent without rotary_dim; halves are rotated: (x1, x2) ->
                           (x1 cos - x2 sin, x2 cos + x1 sin) */
  edge_input q_norm, k_norm; /* RMS norm of every head before the rotation, [head_dim], or absent */
  void* keys;
  size_t key_bytes;
  void* values;
  size_t value_bytes;
  edge_output out; /* [tokens, heads * head_dim] */
  /* Of EDGE_CACHE_TABLE, else absent: */
  int64_t key_bits, value_bits, outliers;
  edge_input key_table;   /* [2, kv_heads, head_dim, 2^key_bits]: levels, then boundaries between them, both ascending
                             (the last one isn't used); 8 bits: [2, kv_heads, head_dim], scale, then offset */
  edge_input value_table; /* [2, 2^value_bits], the same for all heads; 8 bits: absent */
} edge_attention_task;

EDGE_API edge_status edge_attention(const edge_attention_task* task, const edge_parallel* parallel);

/* ---- Threads --------------------------------------------------------------------------------------------------------
 * A pool for hosts that have none. Its threads spin for at most 50 microseconds between tasks, then sleep. */
typedef struct edge_pool edge_pool;
EDGE_API edge_pool* edge_pool_create(size_t threads); /* null when out of memory or threads is 0 */
EDGE_API void edge_pool_destroy(edge_pool* pool);
EDGE_API edge_parallel edge_pool_parallel(edge_pool* pool);

/* ---- Operators ------------------------------------------------------------------------------------------------------
 * The same functions for hosts that know tensors: one table, from which each binding (ONNX Runtime, ExecuTorch, torch)
 * registers all operators. Attributes are numbers; enumerations above go as their values.
 */
typedef enum edge_type {
  EDGE_FLOAT = 1,
  EDGE_UINT8 = 2,
  EDGE_INT32 = 6,
  EDGE_INT64 = 7
} edge_type; /* ONNX's numbers */
#define EDGE_MAX_RANK 8
#define EDGE_MAX_SLOTS 16

typedef struct edge_tensor {
  void* data;
  int32_t type; /* edge_type, or 0: absent */
  int32_t rank;
  int64_t dims[EDGE_MAX_RANK]; /* in `shapes`, any below 0 is unknown and reappears in the outputs that have it */
} edge_tensor;

typedef struct edge_slot {
  const char* name;
  int32_t type;
  int32_t optional;
  int32_t alias;  /* outputs: index of the input that is updated in place, else -1 */
  int32_t packed; /* inputs: packed weights, for `check` */
} edge_slot;

typedef struct edge_attribute {
  const char* name;
  int32_t is_float;
  int32_t required;
  double value; /* default */
} edge_attribute;

typedef struct edge_operator {
  const char* name; /* Linear, Embedding, Attention */
  const edge_slot* inputs;
  const edge_slot* outputs;
  const edge_attribute* attributes;
  int32_t input_count, output_count, attribute_count;
  /* Packed weights against the attributes, checksum included: once, when a weight is first seen. Inputs that are not
   * known by then are absent. */
  edge_status (*check)(const double* attributes, const edge_tensor* inputs);
  /* Types, ranks and dims of the outputs from those of the inputs; reads no data. An output that these inputs don't
   * give is absent. */
  edge_status (*shapes)(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs);
  /* Checks every type and shape, then computes. Optional outputs may be absent. An aliased output with other memory
   * than its input gets a copy first. */
  edge_status (*run)(const double* attributes, const edge_tensor* inputs, edge_tensor* outputs,
                     const edge_parallel* parallel);
} edge_operator;

EDGE_API size_t edge_operator_count(void);
EDGE_API const edge_operator* edge_operator_at(size_t index); /* null beyond the last */

/* EDGE_KERNELS_ABI of the library that was loaded. */
EDGE_API uint32_t edge_kernels_abi(void);

#ifdef __cplusplus
}
#endif
#endif /* EDGE_KERNELS_H */
