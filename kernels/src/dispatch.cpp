#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern "C" {
char* getenv(const char* name);
#if defined(__aarch64__) && !defined(__APPLE__)
unsigned long getauxval(unsigned long type);
#endif
}

namespace edge {
namespace {

constexpr edge_activations a8 = EDGE_A8, f32 = EDGE_F32;
constexpr edge_isa portable = EDGE_PORTABLE;
#if defined(__x86_64__)
constexpr edge_isa avx2 = EDGE_AVX2, avx512vnni = EDGE_AVX512VNNI;
#elif defined(__aarch64__)
constexpr edge_isa neon_dotprod = EDGE_NEON_DOTPROD, neon_i8mm = EDGE_NEON_I8MM;
#endif

#define EDGE_KERNEL(name, encoding, bits, variant, activations, isa) \
  {#name "_" #activations "_" #isa, encoding, bits, variant, activations, isa, name##_##activations##_##isa},
constexpr Kernel kKernels[] = {
#include "kernels.inc"
};
#undef EDGE_KERNEL
constexpr size_t kKernelCount = sizeof(kKernels) / sizeof(kKernels[0]);

constexpr const char* kIsaNames[] = {"auto", "portable", "avx2", "avx512vnni", "neon_dotprod", "neon_i8mm"};
constexpr int kIsaCount = sizeof(kIsaNames) / sizeof(kIsaNames[0]);

#if defined(__x86_64__)
struct Cpuid {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  Cpuid(uint32_t leaf, uint32_t part) { __get_cpuid_count(leaf, part, &a, &b, &c, &d); }
};

// Register state that the operating system saves: bit 1 SSE, 2 AVX, 5-7 AVX-512.
uint32_t saved_state() {
  if (!(Cpuid(1, 0).c & bit_OSXSAVE)) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool cpu_has(edge_isa isa) {
  const uint32_t wanted_state = isa == EDGE_AVX512VNNI ? 0xe6u : 0x06u;
  if ((saved_state() & wanted_state) != wanted_state) return false;
  const Cpuid basic(1, 0), more(7, 0);
  const bool has_avx2 = (basic.c & bit_F16C) && (basic.c & bit_FMA) && (more.b & bit_AVX2);
  if (isa == EDGE_AVX2) return has_avx2;
  constexpr uint32_t wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512VL;
  return isa == EDGE_AVX512VNNI && has_avx2 && (more.b & wanted) == wanted && (more.c & bit_AVX512VNNI);
}
#elif defined(__aarch64__) && defined(__APPLE__)
bool cpu_has(edge_isa isa) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if (isa == EDGE_NEON_I8MM) return true;  // built for M2, A15 or later: asking the system would need one more symbol
#endif
  return isa == EDGE_NEON_DOTPROD;  // every Apple CPU since A13 and M1
}
#elif defined(__aarch64__)
bool cpu_has(edge_isa isa) {
  constexpr unsigned long hwcap = 16, asimd_dotprod = 1ul << 20, hwcap2 = 26, i8mm = 1ul << 13;
  const bool has_dotprod = getauxval(hwcap) & asimd_dotprod;
  if (isa == EDGE_NEON_I8MM) return has_dotprod && (getauxval(hwcap2) & i8mm);
  return isa == EDGE_NEON_DOTPROD && has_dotprod;
}
#else
bool cpu_has(edge_isa) {
  return false;
}
#endif

bool same(const char* a, const char* b) {
  while (*a && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

bool detect(edge_isa isa) {
  return isa == EDGE_PORTABLE || cpu_has(isa);
}

// The environment's cap; EDGE_AUTO without one, -1 for a name that can't run here.
int read_cap() {
  const char* name = getenv("EDGE_KERNELS_ISA");
  if (!name || !*name) return EDGE_AUTO;
  for (int isa = EDGE_PORTABLE; isa < kIsaCount; ++isa) {
    if (same(name, kIsaNames[isa])) return detect(static_cast<edge_isa>(isa)) ? isa : -1;
  }
  return same(name, kIsaNames[EDGE_AUTO]) ? EDGE_AUTO : -1;
}

// What the machine is, found out once: bit i = it runs instruction set i, bits 8-15 = the environment's cap plus 1 (0:
// one that can't run here), bit 31 = known. Threads that come first at the same time all write the same value.
uint32_t machine() {
  static uint32_t cached;
  uint32_t value = __atomic_load_n(&cached, __ATOMIC_RELAXED);
  if (value) return value;
  value = 1u << 31 | static_cast<uint32_t>(read_cap() + 1) << 8;
  for (int isa = EDGE_PORTABLE; isa < kIsaCount; ++isa) {
    if (detect(static_cast<edge_isa>(isa))) value |= 1u << isa;
  }
  __atomic_store_n(&cached, value, __ATOMIC_RELAXED);
  return value;
}

bool runs(edge_isa isa) {
  return isa > EDGE_AUTO && isa < kIsaCount && (machine() >> isa & 1);
}

bool serves(const Kernel& kernel, const edge_packed_header& header) {
  const uint32_t variant = header.encoding == EDGE_CODEBOOK ? header.dim : header.pattern;
  return kernel.encoding == header.encoding && kernel.bits == header.bits && kernel.variant == variant;
}

}  // namespace

edge_status pick_isa(edge_isa cap, edge_isa* found) {
  const int environment = static_cast<int>(machine() >> 8 & 0xff) - 1, last = kIsaCount - 1;
  if (environment < 0 || (cap != EDGE_AUTO && !runs(cap))) return EDGE_NO_ISA;
  int isa = smaller(cap == EDGE_AUTO ? last : static_cast<int>(cap), environment == EDGE_AUTO ? last : environment);
  while (!runs(static_cast<edge_isa>(isa))) --isa;  // ends at EDGE_PORTABLE
  *found = static_cast<edge_isa>(isa);
  return EDGE_OK;
}

edge_status find_kernel(const edge_packed_header& header, edge_activations activations, edge_isa cap,
                        const Kernel** found) {
  edge_isa highest;
  const edge_status status = pick_isa(cap, &highest);
  if (status != EDGE_OK) return status;
  *found = nullptr;
  for (const Kernel& kernel : kKernels) {
    const bool fits = serves(kernel, header) && kernel.activations == activations;
    if (fits && kernel.isa <= highest && runs(kernel.isa)) *found = &kernel;
  }
  return *found ? EDGE_OK : EDGE_UNSUPPORTED;
}

}  // namespace edge

extern "C" {

const char* edge_isa_name(edge_isa isa) {
  return isa >= 0 && isa < edge::kIsaCount ? edge::kIsaNames[isa] : nullptr;
}

int edge_isa_available(edge_isa isa) {
  return edge::runs(isa);
}

size_t edge_kernel_count(void) {
  return edge::kKernelCount;
}

edge_status edge_kernel_at(size_t index, edge_kernel_info* info) {
  if (index >= edge::kKernelCount || !info) return EDGE_BAD_ARGUMENT;
  const edge::Kernel& kernel = edge::kKernels[index];
  info->name = kernel.name;
  info->encoding = static_cast<int32_t>(kernel.encoding);
  info->bits = static_cast<int32_t>(kernel.bits);
  info->dim = kernel.encoding == EDGE_CODEBOOK ? static_cast<int32_t>(kernel.variant) : 0;
  info->pattern = kernel.encoding == EDGE_SPARSE ? static_cast<int32_t>(kernel.variant) : 0;
  info->activations = kernel.activations;
  info->isa = kernel.isa;
  info->available = edge::runs(kernel.isa);
  return EDGE_OK;
}

}  // extern "C"
