// One register of numbers at a time, loaded from and stored as any of the four floating types.
//
// The width is that of the SIMD variant's registers: GCC's vector extension also takes wider vectors, but takes them apart
// through memory. Storage in 16 bits is computed in float32: the conversions below are exact, and round to nearest even on
// the way back.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"
#include "roi_types.h"

namespace maskray {

/// Bytes in a register of a variant.
template <Simd kSimd>
constexpr int64_t kRegisterBytes = kSimd == Simd::kAvx512 ? 64 : kSimd == Simd::kAvx2 ? 32 : 16;

/// Vectors of kLanes numbers.
template <typename T, int64_t kLanes>
struct Vector {
  typedef T Type __attribute__((vector_size(sizeof(T) * kLanes)));
};

template <typename To, typename From>
MASKRAY_INLINE To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

/// The conversions, on kLanes 32-bit words.
template <int64_t kLanes>
struct Conversions {
  using Words = typename Vector<uint32_t, kLanes>::Type;
  using Floats = typename Vector<float, kLanes>::Type;

  static MASKRAY_INLINE Words choose(const Words& mask, const Words& yes, const Words& no) {
    return (mask & yes) | (~mask & no);
  }

  /// float32 bits of bfloat16 bits.
  static MASKRAY_INLINE Words widen_bfloat16(const Words& bits) { return bits << 16; }

  /// float32 bits of float16 bits: the exponent is rebased by a multiplication, which also normalises subnormals.
  static MASKRAY_INLINE Words widen_float16(const Words& bits) {
    const Words magnitude = (bits & 0x7fffU) << 13;
    const Floats rebased = same_bits<Floats>(magnitude) * 0x1p112f;
    const Words special = (Words)(magnitude >= (0x7c00U << 13));
    return same_bits<Words>(rebased) | (special & 0x7f800000U) | ((bits & 0x8000U) << 16);
  }

  /// bfloat16 bits nearest to float32 bits, ties to even; NaN becomes the one quiet NaN torch writes.
  static MASKRAY_INLINE Words narrow_bfloat16(const Words& bits) {
    const Words rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    const Words nan = (Words)((bits & 0x7fffffffU) > 0x7f800000U);
    return choose(nan, Words{} + 0x7fc0U, rounded);
  }

  /// float16 bits nearest to float32 bits, ties to even.
  static MASKRAY_INLINE Words narrow_float16(const Words& bits) {
    const Words magnitude = bits & 0x7fffffffU;
    const Words normal = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - (112U << 23)) >> 13;
    // Below 2^-14 a float16 is a multiple of 2^-24, as float32 values in [0.5, 1) are: the addition does the rounding.
    const Floats shifted = same_bits<Floats>(magnitude) + 0.5f;
    const Words subnormal = same_bits<Words>(shifted) - 0x3f000000U;
    Words result = choose((Words)(magnitude < (113U << 23)), subnormal, normal);
    result = choose((Words)(magnitude >= 0x477ff000U), Words{} + 0x7c00U, result);  // 65520 and above
    result = choose((Words)(magnitude > 0x7f800000U), Words{} + 0x7e00U, result);
    return result | ((bits >> 16) & 0x8000U);
  }
};

/// How values of one storage type are computed with: T, a register of T, loads and stores of a register.
template <typename Stored, Simd kSimd>
struct Numbers {
  static constexpr bool kSixteenBits = sizeof(Stored) == 2;
  using T = Computed<Stored>;
  static constexpr int64_t kLanes = kRegisterBytes<kSimd> / sizeof(T);
  using Lanes = typename Vector<T, kLanes>::Type;

  static MASKRAY_INLINE Lanes load(const Stored* from) {
    if constexpr (kSixteenBits) {
      typename Vector<uint16_t, kLanes>::Type bits;
      std::memcpy(&bits, from, sizeof(bits));
      const auto wide = __builtin_convertvector(bits, typename Conversions<kLanes>::Words);
      if constexpr (std::is_same_v<Stored, BFloat16Bits>) {
        return same_bits<Lanes>(Conversions<kLanes>::widen_bfloat16(wide));
      } else {
        return same_bits<Lanes>(Conversions<kLanes>::widen_float16(wide));
      }
    } else {
      Lanes lanes;
      std::memcpy(&lanes, from, sizeof(Lanes));
      return lanes;
    }
  }

  static MASKRAY_INLINE void store(Stored* to, const Lanes& lanes) {
    if constexpr (kSixteenBits) {
      const auto wide = same_bits<typename Conversions<kLanes>::Words>(lanes);
      typename Conversions<kLanes>::Words narrow;
      if constexpr (std::is_same_v<Stored, BFloat16Bits>) {
        narrow = Conversions<kLanes>::narrow_bfloat16(wide);
      } else {
        narrow = Conversions<kLanes>::narrow_float16(wide);
      }
      const auto bits = __builtin_convertvector(narrow, typename Vector<uint16_t, kLanes>::Type);
      std::memcpy(to, &bits, sizeof(bits));
    } else {
      std::memcpy(to, &lanes, sizeof(Lanes));
    }
  }

  /// The first `count` < kLanes numbers; the other lanes are zero.
  static MASKRAY_INLINE Lanes load_some(const Stored* from, int64_t count) {
    Stored padded[kLanes] = {};
    std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(Stored));
    return load(padded);
  }

  static MASKRAY_INLINE void store_some(Stored* to, const Lanes& lanes, int64_t count) {
    Stored padded[kLanes];
    store(padded, lanes);
    std::memcpy(to, padded, static_cast<size_t>(count) * sizeof(Stored));
  }
};

/// Loads and stores of one register, or of its first `some` numbers at the end of the channels.
template <bool kPartial, typename N, typename Stored>
MASKRAY_INLINE typename N::Lanes load(const Stored* from, int64_t some) {
  if constexpr (kPartial) {
    return N::load_some(from, some);
  } else {
    return N::load(from);
  }
}

template <bool kPartial, typename N, typename Stored>
MASKRAY_INLINE void store(Stored* to, const typename N::Lanes& lanes, int64_t some) {
  if constexpr (kPartial) {
    N::store_some(to, lanes, some);
  } else {
    N::store(to, lanes);
  }
}

}  // namespace maskray
