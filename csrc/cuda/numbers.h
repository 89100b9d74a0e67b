// Numbers as they are stored, and as they are computed with: 16-bit types in float32, with the CPU's rounding.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "roi_types.h"

namespace maskray {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(BFloat16Bits value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float widen(Float16Bits value) { return __half2float(__ushort_as_half(value.bits)); }

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
/// Nearest, ties to even; NaN becomes the one quiet NaN that the CPU writes.
__device__ __forceinline__ void narrow(float value, BFloat16Bits& to) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? 0x7fc0U : rounded);
}
__device__ __forceinline__ void narrow(float value, Float16Bits& to) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t nan = 0x7e00U | ((bits >> 16) & 0x8000U);
  const uint16_t rounded = __half_as_ushort(__float2half_rn(value));
  to.bits = (bits & 0x7fffffffU) > 0x7f800000U ? static_cast<uint16_t>(nan) : rounded;
}

/// kCount stored numbers, moved as one piece.
template <typename Stored, int kCount>
struct alignas(sizeof(Stored) * kCount) Pack {
  Stored values[kCount];
};

/// Numbers in a pack of 16 bytes, the widest move there is.
template <typename Stored>
constexpr int kWidest = 16 / sizeof(Stored);

template <int kCount, typename Stored>
__device__ __forceinline__ Pack<Stored, kCount> load(const Stored* from) {
  return *reinterpret_cast<const Pack<Stored, kCount>*>(from);
}

/// Round `values` to their storage type and write them.
template <int kCount, typename Stored>
__device__ __forceinline__ void store(Stored* to, const Computed<Stored> (&values)[kCount]) {
  Pack<Stored, kCount> pack;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    narrow(values[k], pack.values[k]);
  }
  *reinterpret_cast<Pack<Stored, kCount>*>(to) = pack;
}

/// Whether a pointer can be moved to or from in packs of 16 bytes.
inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace maskray
