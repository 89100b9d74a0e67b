// SIMD by explicit function multiversioning: one body, compiled once per instruction set, chosen at run time.
//
// A body is a struct with a static always-inlined `run`. Every variant does the same operations on each element in the
// same order (-ffp-contract=off forbids fused multiply-adds), so the bits do not depend on the machine.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__)
#define MASKRAY_X86 1
#endif

#define MASKRAY_INLINE inline __attribute__((always_inline))
// A lambda has to be inlined into its variant too, or it would be compiled for the base instruction set.
#define MASKRAY_LAMBDA_INLINE __attribute__((always_inline))

namespace maskray {

enum class Simd : int64_t { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

/// The variant in use: the best the machine has, unless a test chose a lesser one.
Simd simd_in_use();

#ifdef MASKRAY_X86
template <typename Body, typename... Args>
__attribute__((target("avx2"))) void run_avx2(Args... args) {
  Body::template run<Simd::kAvx2>(args...);
}

template <typename Body, typename... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void run_avx512(Args... args) {
  Body::template run<Simd::kAvx512>(args...);
}
#endif

/// Body::run<variant>(args...) in the variant in use. Arguments are passed by value: give pointers.
template <typename Body, typename... Args>
inline void run_simd(Args... args) {
#ifdef MASKRAY_X86
  switch (simd_in_use()) {
    case Simd::kAvx512:
      return run_avx512<Body, Args...>(args...);
    case Simd::kAvx2:
      return run_avx2<Body, Args...>(args...);
    default:
      break;
  }
#endif
  Body::template run<Simd::kBase>(args...);
}

}  // namespace maskray
