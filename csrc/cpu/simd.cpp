// Which SIMD variant runs, and the operators by which a test forces one.
#include "cpu/simd.h"

#include <torch/csrc/stable/library.h>

#include <atomic>

#include "check.h"

namespace maskray {
namespace {

Simd best() {
#ifdef MASKRAY_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("fma")) {  // which the wider variants use as well
    return Simd::kBase;
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Simd::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) {
    return Simd::kAvx2;
  }
#endif
  return Simd::kBase;
}

std::atomic<int64_t>& chosen() {
  static std::atomic<int64_t> variant{static_cast<int64_t>(best())};
  return variant;
}

/// How many variants this machine can run: 1 (base only) to 3.
int64_t simd_variants() { return static_cast<int64_t>(best()) + 1; }

/// Use a variant (0 base, 1 AVX2, 2 AVX-512); returns the one used before.
int64_t set_simd(int64_t variant) {
  check(variant >= 0 && variant < simd_variants(), "SIMD variant is ", variant, ", this machine has 0..",
        simd_variants() - 1);
  return chosen().exchange(variant);
}

}  // namespace

Simd simd_in_use() { return static_cast<Simd>(chosen().load(std::memory_order_relaxed)); }

}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CompositeExplicitAutograd, m) {
  m.impl("simd_variants", TORCH_BOX(&maskray::simd_variants));
  m.impl("set_simd", TORCH_BOX(&maskray::set_simd));
}
