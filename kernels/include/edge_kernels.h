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
#define EDGE_KERNELS_ABI 1

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

/* ---- Packed weights -------------------------------------------------------------------------------------------------
 *
 * A matrix [rows, columns] (row = output feature) as one blob: this header, then ceil(rows / 16) tiles of equal size.
 * Rows are padded to 16 with scale 0, columns to a multiple of 32 with code 0.
 *
 * A tile is one sequential stream of 16 rows. For each pair of groups (g, g + 1):
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
 * value = scale * (code - zero), zero = 2^(bits - 1) on the symmetric grid.
 */
#define EDGE_PACKED_MAGIC 0x4b474445u /* the bytes "EDGK" */
#define EDGE_PACKED_VERSION 1
#define EDGE_TILE_ROWS 16
#define EDGE_STEP_COLUMNS 32
/* Longest group: its integer sum (255 * 127 per column) must fit 32 bits. */
#define EDGE_MAX_GROUP 65536

enum { EDGE_AFFINE = 1 };                         /* edge_packed_header.encoding */
enum { EDGE_SYMMETRIC = 0, EDGE_ZERO_POINT = 1 }; /* .grid */
enum { EDGE_TILE16_STREAM = 1 };                  /* .layout */

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
  uint8_t reserved_a; /* reserved bytes are zero */
  uint64_t payload_bytes;
  /* sum over i of (2i + 1) * word i, modulo 2^64, over all 64-bit words of the blob with this field taken as zero:
   * any single changed word changes it, because every factor is odd */
  uint64_t checksum;
  uint8_t reserved_b[24];
} edge_packed_header;

#ifdef __cplusplus
static_assert(sizeof(edge_packed_header) == 64, "the header is 64 bytes on every machine");
#else
_Static_assert(sizeof(edge_packed_header) == 64, "the header is 64 bytes on every machine");
#endif

/* Check a blob's header against its size, copy the header to `header` (may be null); reads the header only. */
EDGE_API edge_status edge_check(const void* packed, size_t packed_bytes, edge_packed_header* header);

/* edge_check, then the checksum over all bytes: once per load, not per call. */
EDGE_API edge_status edge_verify(const void* packed, size_t packed_bytes);

/* ---- Instruction sets -----------------------------------------------------------------------------------------------
 * The environment variable EDGE_KERNELS_ISA (portable, avx2, avx512vnni, neon_dotprod), read once, caps what EDGE_AUTO
 * picks; a name that can't run here makes every call return EDGE_NO_ISA.
 */
typedef enum edge_isa {
  EDGE_AUTO = 0,
  EDGE_PORTABLE = 1,
  EDGE_AVX2 = 2,
  EDGE_AVX512VNNI = 3,
  EDGE_NEON_DOTPROD = 4,
} edge_isa;

/* Name of an instruction set, null for a number that is none. */
EDGE_API const char* edge_isa_name(edge_isa isa);

/* 1 when this build has kernels for `isa` and this CPU runs them. */
EDGE_API int edge_isa_available(edge_isa isa);

/* ---- Kernels --------------------------------------------------------------------------------------------------------
 * Activations: EDGE_A8 quantizes each token (row of x) to int8, group by group of the matrix's columns, so that an
 * outlier costs its own group alone:
 *     scale[g] = max|x| over g / 127,  q = clip(rint(x * (1 / scale[g])), -127, 127)   (float32, rint: half to even)
 *     out[n] = sum over g, ascending, of float(sum over k in g of (code - zero) * q) * (w_scale[n, g] * scale[g])
 * in float32, each product and sum rounded. A group whose 1 / scale is not finite (all zeros, or magnitudes below
 * 2^-121) counts as zeros. A token with a NaN or an infinity gives NaN in all its outputs.
 * EDGE_F32 multiplies in float32: p[j] = sum over k = j mod 4, ascending, of x[k] * value[n, k];
 *     out[n] = (p[0] + p[1]) + (p[2] + p[3]).
 * Then bias[n] is added, where there is one. Results are the same bits on every instruction set and thread count.
 */
typedef enum edge_activations { EDGE_A8 = 0, EDGE_F32 = 1 } edge_activations;

/* One row of the kernel table, for listings and tests. */
typedef struct edge_kernel_info {
  const char* name; /* affine4_a8_avx512vnni */
  int32_t bits;
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
} edge_parallel;

/* out [tokens, rows] = x [tokens, columns] times the matrix transposed, plus bias [rows] unless null.
 * Counts are in elements; tokens = x_count / columns. `isa` is a cap like the environment variable, EDGE_AUTO for none.
 * `parallel` may be null: then the calling thread does all. */
EDGE_API edge_status edge_linear(const void* packed, size_t packed_bytes, edge_activations activations, edge_isa isa,
                                 const float* x, size_t x_count, const float* bias, size_t bias_count, float* out,
                                 size_t out_count, const edge_parallel* parallel);

/* out [ids, columns] = the dequantized rows that `ids` name. An id below 0 or beyond the last row: EDGE_BAD_ARGUMENT.
 */
EDGE_API edge_status edge_embedding(const void* packed, size_t packed_bytes, const int64_t* ids, size_t id_count,
                                    float* out, size_t out_count);

/* EDGE_KERNELS_ABI of the library that was loaded. */
EDGE_API uint32_t edge_kernels_abi(void);

#ifdef __cplusplus
}
#endif
#endif /* EDGE_KERNELS_H */
